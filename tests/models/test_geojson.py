"""GeoJSON out, for QuPath, and regions in, with everything that is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import shapely
import shapely.geometry

from models.errors import Refusal
from models.geojson import MAX_NAMES, MAX_REGIONS, MAX_VERTICES, feature_collection, regions
from models.objects import DetectedObject, Segmentation

SQUARE = [[1, 2], [11, 2], [11, 12], [1, 12], [1, 2]]


def polygon(ring: Any = SQUARE) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [ring]}


def feature(ring: Any = SQUARE, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "id": "anything", "geometry": polygon(ring), "properties": properties}


def collection(*features: dict[str, Any]) -> bytes:
    return json.dumps({"type": "FeatureCollection", "features": features}).encode()


def refused(document: bytes | dict[str, Any]) -> str:
    with pytest.raises(Refusal) as caught:
        regions(document if isinstance(document, bytes) else json.dumps(document).encode(), 100, 50)
    assert caught.value.code == "bad_request"
    return caught.value.detail


def test_objects_become_closed_rings_that_qupath_reads() -> None:
    corners = np.array([[3, 4], [6, 4], [6, 9], [3, 9]], np.float64)
    found = (DetectedObject(corners, 15.0, 0.75), DetectedObject(corners + 20, 15.0, 0.5))
    segmentation = Segmentation(found, np.zeros((50, 50), np.int32), (), *[0.0] * 6, features=np.zeros(1, np.float32))
    document = json.loads(json.dumps(feature_collection(segmentation, "gland"), allow_nan=False))
    assert document["type"] == "FeatureCollection"
    first = document["features"][0]
    assert first["geometry"]["coordinates"] == [[[3, 4], [6, 4], [6, 9], [3, 9], [3, 4]]]
    assert first["properties"] == {
        "objectType": "detection",
        "classification": {"name": "gland"},
        "measurements": {"score": 0.75, "area px^2": 15.0},
    }
    shapes = [shapely.geometry.shape(item["geometry"]) for item in document["features"]]
    assert [shape.is_valid for shape in shapes] == [True, True]
    assert [shape.area for shape in shapes] == [15, 15]


def test_what_is_written_is_read_again() -> None:
    found = (DetectedObject(np.array([[3, 4], [6, 4], [6, 9]], np.float64), 7.5, 0.75),)
    segmentation = Segmentation(found, np.zeros((50, 50), np.int32), (), *[0.0] * 6, features=np.zeros(1, np.float32))
    (region,) = regions(json.dumps(feature_collection(segmentation)).encode(), 50, 50)
    assert region.name == "nucleus"
    np.testing.assert_array_equal(region.polygon, found[0].polygon)


@pytest.mark.parametrize("document", [polygon(), feature(), {"type": "FeatureCollection", "features": [feature()]}, [feature()]])
def test_four_forms_are_read(document: Any) -> None:
    (region,) = regions(json.dumps(document).encode(), 100, 50)
    assert region.name == "region 1"
    assert region.polygon.dtype == np.float64
    np.testing.assert_array_equal(region.polygon, SQUARE[:-1])


def test_names_are_taken_where_there_are_any() -> None:
    named = collection(
        feature(name="tumour", classification={"name": "x"}),
        feature(classification={"name": "stroma", "color": [1, 2, 3]}, objectType="annotation", isLocked=False),
        feature(),
        {**feature(), "properties": None},
        feature(classification={"names": ["Tumor", "Positive"], "color": [1, 2, 3]}, measurements={"Area": float("nan")}),
    )
    names = [region.name for region in regions(named, 100, 50)]
    assert names == ["tumour", "stroma", "region 3", "region 4", "Tumor: Positive"]


def test_the_image_with_its_edge_may_be_a_region() -> None:
    whole = [[0, 0], [50, 0], [50, 100], [0, 100], [0, 0]]
    assert len(regions(json.dumps(polygon(whole)).encode(), 100, 50)) == 1
    assert "leaves the image" in refused(polygon([[0, 0], [50.01, 0], [50, 100], [0, 100], [0, 0]]))
    assert "leaves the image" in refused(polygon([[0, 0], [50, 0], [50, 100], [-1e-9, 100], [0, 0]]))


@pytest.mark.parametrize(
    ("ring", "word"),
    [
        ([[1, 1], [11, 11], [11, 1], [1, 11], [1, 1]], "crosses"),
        ([[1, 1], [11, 1], [6, 1], [1, 1]], "no area"),
        ([[5, 5], [5, 5], [5, 5], [5, 5]], "no area"),
        ([[1, 1], [11, 1], [11, 11], [1, 11]], "not closed"),
        ([[1, 1], [11, 1], [1, 1]], "too_short"),
        ([[1, 1], [11, 1], [11], [1, 1]], "too_short"),
        ([[1, 1], [11, 1], [11, 11, 0, 0], [1, 1]], "too_long"),
        ([[1, 1], [11, 1], [True, 11], [1, 1]], "float"),
        ([[1, 1], [11, 1], ["11", 11], [1, 1]], "float"),
        ([[1, 1], [11, 1], [None, 11], [1, 1]], "float"),
        ([[1, 1], [11, 1], [10**400, 11], [1, 1]], ""),
        ("ring", "list"),
    ],
)
def test_rings_that_are_refused(ring: Any, word: str) -> None:
    assert word in refused(polygon(ring))


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_numbers_that_are_not_finite(value: bytes) -> None:
    refused(b'{"type": "Polygon", "coordinates": [[[1, 1], [11, 1], [11, %s], [1, 1]]]}' % value)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'[{"type": "Polygon", "coordinates": [[[1, 1], [9, 1], [9, 9], [1, 1]]]}]',
        b'[], "type": "Feature"',
        b'"Polygon"',
        b"{}",
        b'{"type": "Point", "coordinates": [1, 2]}',
        b'{"type": "Polygon"}',
        b'{"type": "Polygon", "coordinates": []}',
        b'{"type": "Feature", "geometry": null}',
        b'{"type": "FeatureCollection", "features": []}',
        b'{"type": ["Polygon"], "coordinates": []}',
        b"[" * 100_000,
        b'{"type": "Polygon", "coordinates": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    ],
)
def test_documents_that_are_refused(document: bytes) -> None:
    refused(document)


def test_holes_and_several_parts_are_refused() -> None:
    refused({"type": "Polygon", "coordinates": [SQUARE, [[3, 4], [5, 4], [5, 6], [3, 4]]]})
    refused({"type": "MultiPolygon", "coordinates": [[SQUARE]]})


def test_too_many_of_anything() -> None:
    assert len(regions(collection(*[feature()] * MAX_REGIONS), 100, 50)) == MAX_REGIONS
    refused(collection(*[feature()] * (MAX_REGIONS + 1)))
    refused(json.dumps([feature()] * (MAX_REGIONS + 1)).encode())
    refused(collection(feature(classification={"names": ["a"] * (MAX_NAMES + 1)})))
    angles = np.linspace(0, 2 * np.pi, MAX_VERTICES)
    circle = np.stack([25 + 20 * np.cos(angles), 25 + 20 * np.sin(angles)], axis=1)
    circle[-1] = circle[0]
    assert len(regions(json.dumps(polygon(circle.tolist())).encode(), 100, 50)[0].polygon) == MAX_VERTICES - 1
    assert "vertices" in refused(collection(feature(circle.tolist()), feature()))


@pytest.mark.parametrize("name", ["", "x" * 101, 7, ["a"]])
def test_names_that_are_refused(name: Any) -> None:
    refused(collection(feature(name=name)))


def test_a_refusal_does_not_repeat_what_was_sent() -> None:
    assert "Jane" not in refused({"type": "Jane Doe"})
    assert "Jane" not in refused(collection(feature(name=["Jane Doe"])))
    assert "Jane" not in refused(b'{"Jane Doe": ')
    assert "Jane" not in refused(polygon([[1, 1], [11, 1], ["Jane Doe", 11], [1, 1]]))
