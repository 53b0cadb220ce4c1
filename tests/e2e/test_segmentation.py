"""A real server with both kinds of model: answers, restarts, and objects that a GeoJSON reader can take."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import shapely
import shapely.geometry

from models.example import TISSUE_COLUMNS, TISSUE_ROWS, tissue_phantom

PART = [128, 64, 200, 220]


@pytest.fixture(scope="module")
def both(start_server: Callable[..., Any], package: Path, make_segmenter: Callable[..., Path]) -> Any:
    """A server of a classifier and a segmenter."""
    return start_server(package, make_segmenter("nuclei"))


def ask(server: Any, body: bytes | None = None, accept: str = "*/*", **query: str) -> httpx.Response:
    headers = {"content-type": "image/png", "accept": accept}
    body = body or tissue_phantom()
    return httpx.post(f"{server.url}/v1/predict", params={"model": "nuclei"} | query, content=body, headers=headers, timeout=60)


def test_both_are_served_side_by_side(both: Any, draw: Any, predict: Any) -> None:
    listed = httpx.get(f"{both.url}/v1/models", timeout=10).json()["models"]
    assert [(entry["name"], entry["default"]) for entry in listed] == [("tiny", True), ("nuclei", False)]
    with ThreadPoolExecutor(4) as pool:
        tissue = [pool.submit(ask, both) for _ in range(4)]
        chests = [pool.submit(predict, both, draw(seed)) for seed in range(8)]
    assert {answer.result().json()["task"] for answer in chests} == {"classification"}
    assert len({answer.result().content for answer in tissue}) == 1
    assert tissue[0].result().json()["quantities"]["count"] > 50


def test_objects_are_valid_geometry_in_both_forms(both: Any) -> None:
    answer = ask(both).json()
    polygons = [shapely.Polygon(item["polygon"]) for item in answer["objects"]]
    inside = shapely.box(0, 0, TISSUE_COLUMNS, TISSUE_ROWS)
    assert all(polygon.is_valid and inside.covers(polygon) for polygon in polygons)
    response = ask(both, accept="application/geo+json")
    assert response.headers["content-type"] == "application/geo+json"
    shapes = [shapely.geometry.shape(feature["geometry"]) for feature in response.json()["features"]]
    assert all(one.equals(other) for one, other in zip(shapes, polygons, strict=True))
    assert not shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)]).is_valid  # the control: the check sees a bow tie


def test_regions_and_pictures_in_one_form(both: Any) -> None:
    x, y, width, height = PART
    ring = [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]
    part = {"type": "Feature", "properties": {"name": "part"}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    files = {
        "image": ("tissue.png", tissue_phantom(), "image/png"),
        "regions": ("regions.geojson", json.dumps(part).encode(), "application/geo+json"),
    }
    query = {"model": "nuclei", "overlay": "true", "label_image": "true"}
    answer = httpx.post(f"{both.url}/v1/predict", params=query, files=files, timeout=60).json()
    (region,) = answer["regions"]
    assert 0 < region["quantities"]["count"] < answer["quantities"]["count"]
    assert answer["overlay"]["data"]
    assert answer["label_image"]["data"]
    crossing = part | {"geometry": {"type": "Polygon", "coordinates": [[ring[0], ring[2], ring[1], ring[3], ring[0]]]}}
    files["regions"] = ("regions.geojson", json.dumps(crossing).encode(), "application/geo+json")
    refused = httpx.post(f"{both.url}/v1/predict", params={"model": "nuclei"}, files=files, timeout=60)
    assert (refused.status_code, refused.json()["code"]) == (400, "bad_request")


def test_what_was_answered_outlives_the_server(
    start_server: Callable[..., Any], package: Path, make_segmenter: Callable[..., Path]
) -> None:
    segmenter = make_segmenter("nuclei")
    first = start_server(package, segmenter)
    region = ",".join(map(str, PART))
    whole, part, geo = ask(first), ask(first, region=region), ask(first, accept="application/geo+json")
    assert first.stop() == 0
    again = start_server(package, segmenter, state=first.state)
    for response in (whole, part):
        url = f"{again.url}/v1/results/{response.json()['result_id']}"
        assert httpx.get(url, timeout=30).content == response.content
    url = f"{again.url}/v1/results/{whole.json()['result_id']}"
    assert httpx.get(url, headers={"accept": "application/geo+json"}, timeout=30).content == geo.content
    assert ask(again).content == whole.content
    assert ask(again, region=region).content == part.content
    assert whole.json()["result_id"] != part.json()["result_id"]
    assert again.stop() == 0
