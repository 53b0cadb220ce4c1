"""Annotations survive writing and reading to the last bit; whatever does not fit the image is refused, with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.annotation import LARGEST_FILE, Annotation, Label, Scribble, read_annotation
from models.errors import Refusal
from tests.annotations import write_annotation

ROWS, COLUMNS = 40, 60
SQUARE = [[10, 10], [20, 10], [20, 20], [10, 20], [10, 10]]


def feature(kind: str, coordinates: Any, name: str | None = None, **properties: Any) -> dict[str, Any]:
    if name is not None:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    return {"type": "Feature", "id": "a-b", "geometry": {"type": kind, "coordinates": coordinates}, "properties": properties}


def collection(*features: Any) -> str:
    return json.dumps({"type": "FeatureCollection", "features": list(features)})


def read(folder: Path, text: str | bytes, suffix: str = ".geojson", rows: int = ROWS, columns: int = COLUMNS) -> Annotation:
    path = folder / f"patient-name{suffix}"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_annotation(path, rows, columns)


def refusal(folder: Path, text: str | bytes, suffix: str = ".geojson", **size: int) -> str:
    with pytest.raises(Refusal) as caught:
        read(folder, text, suffix, **size)
    assert caught.value.code == "data_invalid"
    assert "patient-name" not in caught.value.detail
    return caught.value.detail


def same(one: Annotation, other: Annotation) -> bool:
    def arrays(annotation: Annotation) -> list[Any]:
        lines = [(scribble.label, scribble.line.tolist()) for scribble in annotation.scribbles]
        region = None if annotation.region is None else annotation.region.tolist()
        return [annotation.points.tolist(), lines, [polygon.tolist() for polygon in annotation.polygons], region]

    return arrays(one) == arrays(other)


def within(side: int) -> st.SearchStrategy[float]:
    return st.floats(0, side, exclude_max=True)


POSITION = st.tuples(within(COLUMNS), within(ROWS))


@st.composite
def stars(draw: st.DrawFn) -> NDArray[np.float64]:
    """A polygon without crossings: vertices at rising angles round a centre."""
    angles = np.arange(draw(st.integers(3, 9)))
    angles = angles * 2 * np.pi / len(angles) + draw(st.floats(0, 6))
    radii = np.array(draw(st.lists(st.floats(0.5, 9), min_size=len(angles), max_size=len(angles))))
    centre = [draw(st.floats(10, COLUMNS - 10)), draw(st.floats(10, ROWS - 10))]
    polygon: NDArray[np.float64] = centre + (radii * [np.cos(angles), np.sin(angles)]).T
    return polygon


@st.composite
def annotations(draw: st.DrawFn) -> Annotation:
    labels: st.SearchStrategy[Label] = st.sampled_from(["foreground", "background"])
    lines = st.lists(POSITION, min_size=2, max_size=5).map(np.array)
    return Annotation(
        np.array(draw(st.lists(POSITION, min_size=1, max_size=8))),
        tuple(draw(st.lists(st.builds(Scribble, labels, lines), max_size=3))),
        tuple(draw(st.lists(stars(), max_size=3))),
        draw(st.none() | stars()),
    )


@settings(max_examples=150, deadline=None)
@given(annotations())
def test_geojson_gives_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, annotation: Annotation) -> None:
    path = tmp_path_factory.getbasetemp() / "written.geojson"
    write_annotation(path, annotation)
    again = read_annotation(path, ROWS, COLUMNS)
    assert same(again, annotation)
    assert not same(again, Annotation(annotation.points + 1e-9, annotation.scribbles, annotation.polygons, annotation.region))
    assert again.points.dtype == np.float64


@settings(max_examples=100, deadline=None)
@given(annotations())
def test_csv_gives_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, annotation: Annotation) -> None:
    path = tmp_path_factory.getbasetemp() / "written.csv"
    write_annotation(path, annotation)
    assert same(read_annotation(path, ROWS, COLUMNS), Annotation(annotation.points, annotation.scribbles))


def test_what_qupath_exports_is_read(tmp_path: Path) -> None:
    features = [
        feature("Point", [3.25, 4.5], objectType="annotation"),
        feature("MultiPoint", [[5, 6], [7, 8]], "Tumor", objectType="annotation", isLocked=True),
        feature("LineString", [[1, 1], [2, 1], [3, 2]], "Background"),
        feature("LineString", [[5, 6], [6, 6]], " nucleus "),
        feature("Polygon", [SQUARE], "Immune cells", measurements={"Area": 3}),
        feature("MultiPolygon", [[SQUARE], [[[30, 30], [35, 30], [30, 35], [30, 30]]]]),
        feature("Polygon", [[[0, 0], [COLUMNS, 0], [COLUMNS, ROWS], [0, ROWS], [0, 0]]], "Region*"),
    ]
    for text in (collection(*features), json.dumps(features), "\ufeff" + collection(*features)):
        found = read(tmp_path, text, ".JSON")
        assert found.points.tolist() == [[3.25, 4.5], [5, 6], [7, 8]]
        assert [(s.label, s.line.tolist()) for s in found.scribbles] == [
            ("background", [[1, 1], [2, 1], [3, 2]]),
            ("foreground", [[5, 6], [6, 6]]),
        ]
        assert [polygon.tolist() for polygon in found.polygons] == [SQUARE[:4], SQUARE[:4], [[30, 30], [35, 30], [30, 35]]]
        assert found.region is not None
        assert found.region.tolist() == [[0, 0], [COLUMNS, 0], [COLUMNS, ROWS], [0, ROWS]]


def test_derived_classes_of_qupath_are_what_they_are_derived_from(tmp_path: Path) -> None:
    def derived(kind: str, positions: Any, *names: str) -> dict[str, Any]:
        return feature(kind, positions, classification={"names": list(names), "color": [200, 0, 0]})

    found = read(tmp_path, collection(
        derived("Point", [3, 4], "Tumor", "Positive"),
        derived("LineString", [[1, 1], [2, 1]], "Background", "Stroma"),
        derived("Polygon", [SQUARE], "Region*", "Left"),
    ))  # fmt: skip
    assert found.points.tolist() == [[3, 4]]
    assert [s.label for s in found.scribbles] == ["background"]
    assert found.region is not None
    assert "marks no nucleus" in refusal(tmp_path, collection(POINT, derived("Point", [3, 4], "Ignore*", "Positive")))


def test_of_a_cell_of_qupath_the_nucleus_counts(tmp_path: Path) -> None:
    inner = [[12, 12], [18, 12], [18, 18], [12, 12]]
    cell = feature("Polygon", [SQUARE], objectType="cell")
    whole = cell | {"nucleusGeometry": {"type": "Polygon", "coordinates": [inner]}}
    assert [polygon.tolist() for polygon in read(tmp_path, collection(whole)).polygons] == [inner[:3]]
    assert refusal(tmp_path, collection(whole, cell)).startswith("feature 2: a cell without its nucleus")
    assert "not a Feature with a geometry" in refusal(tmp_path, collection(cell | {"nucleusGeometry": None}))
    assert read(tmp_path, collection(feature("Polygon", [SQUARE], objectType="detection"))).polygons[0].tolist() == SQUARE[:4]


@pytest.mark.parametrize(
    "ring", [SQUARE, SQUARE[:4], [*SQUARE, [10, 10]], [SQUARE[0], *SQUARE], [*SQUARE[:3], SQUARE[2], *SQUARE[3:]]]
)
def test_repeated_vertices_add_nothing(tmp_path: Path, ring: list[list[float]]) -> None:
    assert read(tmp_path, collection(feature("Polygon", [ring]))).polygons[0].tolist() == SQUARE[:4]


def test_csv_with_labels_and_other_columns(tmp_path: Path) -> None:
    text = '\ufeffname,y,x,label\r\n"a, b",4.5,3.25,Tumor\r\nc,6,5,\r\n'
    assert read(tmp_path, text, ".csv").points.tolist() == [[3.25, 4.5], [5.0, 6.0]]


def test_strokes_in_csv_are_put_together_by_their_names(tmp_path: Path) -> None:
    rows = ["1,1,Background,a", "3,4,,", "5,6,nucleus,b", "2,1,background,a", "60,40,Background,a", "6,6,Nuclei,b"]
    found = read(tmp_path, "\n".join(["x,y,label,stroke", *rows]), ".csv")
    assert found.points.tolist() == [[3, 4]]
    assert [(s.label, s.line.tolist()) for s in found.scribbles] == [
        ("background", [[1, 1], [2, 1], [60, 40]]),
        ("foreground", [[5, 6], [6, 6]]),
    ]


POINT = feature("Point", [1, 1])


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (feature("Point", [-0.1, 1]), "outside the image"),
        (feature("Point", [COLUMNS, 1]), "outside the image"),
        (feature("Point", [1, ROWS]), "outside the image"),
        (feature("MultiPoint", [[1, 1], [1, 1e9]]), "outside the image"),
        (feature("Point", [10**400, 1]), "outside the image"),
        (feature("Point", [float("nan"), 1]), "not finite"),
        (feature("MultiPoint", [[1, float("-inf")]]), "not finite"),
        (feature("Point", [1]), "not a pair"),
        (feature("Point", "1, 1"), "not a pair"),
        (feature("Point", ["1", "1"]), "not a pair"),
        (feature("Point", [True, 1]), "not a pair"),
        (feature("Point", [None, 1]), "not a pair"),
        (feature("Point", [[1, 1]]), "not a pair"),
        (feature("MultiPoint", None), "no list"),
        (feature("MultiPoint", [1, 1]), "not a pair"),
        (feature("Point", [1, 1], "Background"), "marks no nucleus"),
        (feature("Polygon", [SQUARE], "Ignore*"), "marks no nucleus"),
        (feature("LineString", [[1, 1], [2, 2]]), "needs the class"),
        (feature("LineString", [[1, 1], [2, 2]], "Tumor"), "needs the class"),
        (feature("LineString", [[1, 1]], "Background"), "two positions"),
        (feature("LineString", [[1, 1], [99, 2]], "Background"), "outside the image"),
        (feature("Polygon", [[[10, 10], [20, 20], [20, 10], [10, 20], [10, 10]]]), "crosses or touches itself"),
        (feature("Polygon", [[[10, 10], [20, 10], [15, 15], [20, 20], [10, 20], [15, 15]]]), "crosses or touches itself"),
        (feature("Polygon", [[[10, 10], [20, 20], [30, 30], [10, 10]]]), "crosses or touches itself"),
        (feature("Polygon", [[[10, 10], [20, 20], [10, 10]]]), "three vertices"),
        (feature("Polygon", [[[10, 10]] * 5]), "three vertices"),
        (feature("Polygon", [SQUARE, SQUARE]), "holes"),
        (feature("Polygon", SQUARE), "one ring"),
        (feature("Polygon", []), "one ring"),
        (feature("Polygon", [[[-1, 10], [20, 10], [20, 20]]]), "outside the image"),
        (feature("MultiPolygon", [[SQUARE], [SQUARE]], "Region*"), "one region"),
        (feature("GeometryCollection", []), "none of"),
        (feature("MultiLineString", [[[1, 1], [2, 2]]], "Background"), "none of"),
        ({"type": "Feature", "geometry": {"type": ["Point"], "coordinates": [1, 1]}}, "none of"),
        ({"type": "Feature", "geometry": None}, "not a Feature"),
        ({"type": "Point", "coordinates": [1, 1]}, "not a Feature"),
        (3, "not a Feature"),
        (feature("Polygon", [SQUARE], "Region*", childObjects=[POINT]), "within objects"),
        (POINT | {"properties": 3}, "has no name"),
        (POINT | {"properties": {"classification": "Tumor"}}, "has no name"),
        (POINT | {"properties": {"classification": {"name": 3}}}, "has no name"),
        (POINT | {"properties": {"classification": {"names": []}}}, "has no name"),
        (POINT | {"properties": {"classification": {"names": [3]}}}, "has no name"),
    ],
)
def test_a_bad_feature_is_refused_by_its_number(tmp_path: Path, bad: Any, told: str) -> None:
    detail = refusal(tmp_path, collection(POINT, bad, POINT))
    assert detail.startswith("feature 2: ")
    assert told in detail
    assert len(read(tmp_path, collection(POINT, POINT)).points) == 2


def test_a_second_region_is_refused(tmp_path: Path) -> None:
    region = feature("Polygon", [SQUARE], "region")
    assert read(tmp_path, collection(POINT, region)).region is not None
    assert refusal(tmp_path, collection(POINT, region, region)).startswith("feature 3: there may be one region")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x,y\n1,1\n1,40\n", "row 2: a point lies outside"),
        ("x,y\n1,1\n-1,4\n", "row 2: a position lies outside"),
        ("x,y\n1,1\n1,nan\n", "row 2: a position is not finite"),
        ("x,y\n1,1\n1,-inf\n", "row 2: a position is not finite"),
        ("x,y\n1,1\n1,\n", "row 2: x and y must be numbers"),
        ('x,y\n1,1\n"1,5",3\n', "row 2: x and y must be numbers"),
        ("x,y\n1,1\n1\n", "row 2: another number of columns"),
        ("x,y\n1,1\n1,1,1\n", "row 2: another number of columns"),
        ("x,y,label\n1,1,a\n1,1,background\n", "row 2: this class marks no nucleus"),
        ("x,y,label,stroke\n1,1,,\n1,1,nucleus,a\n2,2,background,a\n", "row 3: its stroke began with another label"),
        ("x,y,label,stroke\n1,1,,\n1,1,,a\n2,2,,a\n", "row 2: a line needs the class"),
        ("x,y,stroke\n1,1,\n1,1,a\n2,2,a\n", "row 2: a line needs the class"),
        ("x,y,label,stroke\n1,1,,\n1,1,nucleus,a\n", "row 2: a line needs two positions"),
        ("x,y,label,stroke\n1,1,,\n1,1,nucleus,a\n1,41,nucleus,a\n", "row 2: a position lies outside"),
        ("x,y,stroke,stroke\n1,1,,\n", "one column x"),
        ("x;y\n1;1\n", "one column x"),
        ("x,x,y\n1,1,1\n", "one column x"),
        ("1,1\n2,2\n", "one column x"),
        ("", "one column x"),
        ("x,y\n", "no nucleus is marked"),
        ('x,y\n"1,1\n', "no readable CSV"),
        ("x,y\n" + "1" * 200_000 + ",1\n", "no readable CSV"),
    ],
)
def test_a_bad_row_is_refused_by_its_number(tmp_path: Path, text: str, told: str) -> None:
    assert told in refusal(tmp_path, text, ".csv")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no readable JSON"),
        ("{", "no readable JSON"),
        ("[" * 100_000, "no readable JSON"),
        ('[{"x": ' + "1" * 5000 + "}]", "no readable JSON"),
        (b"\xff\xfe\x00", "cannot be read"),
        ("null", "no list of features"),
        ("3", "no list of features"),
        ("{}", "no list of features"),
        ("[]", "no list of features"),
        (collection(), "no list of features"),
        (json.dumps(POINT), "no list of features"),
        (collection(feature("MultiPoint", [])), "no nucleus is marked"),
        (collection(feature("LineString", [[1, 1], [2, 2]], "Background")), "no nucleus is marked"),
        (collection(feature("Polygon", [SQUARE], "Region*")), "no nucleus is marked"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str | bytes, told: str) -> None:
    assert told in refusal(tmp_path, text)


def test_more_nuclei_than_pixels(tmp_path: Path) -> None:
    four = feature("MultiPoint", [[0.1, 0.1], [0.2, 0.2], [1, 1], [1.5, 0.5]])
    assert len(read(tmp_path, collection(four), rows=2, columns=2).points) == 4
    detail = refusal(tmp_path, collection(four, feature("Point", [1.1, 1.1])), rows=2, columns=2)
    assert "more nuclei" in detail


def test_an_over_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.geojson"
    with path.open("wb") as stream:
        stream.truncate(LARGEST_FILE + 1)
    with pytest.raises(Refusal, match="larger than 16 MiB"):
        read_annotation(path, ROWS, COLUMNS)


def test_what_is_not_there_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="cannot be read"):
        read_annotation(tmp_path / "none.csv", ROWS, COLUMNS)
    assert "is a .geojson" in refusal(tmp_path, "x\ty\n1\t1\n", ".tsv")
