"""What an expert marked in one image: points, scribbles, outlines; read from GeoJSON (as QuPath writes it) and CSV."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import shapely
from numpy.typing import NDArray

from models.errors import Refusal

Coordinates = NDArray[np.float64]
Label = Literal["foreground", "background"]

LARGEST_FILE = 16 * 1024 * 1024
"""Bytes: some 800,000 points or 15,000 outlines, far more than one image holds."""
GEOJSON = (".geojson", ".json")

# Classes, in lower case. QuPath's own list has "Region*" and "Ignore*".
FOREGROUND = frozenset({"foreground", "nucleus", "nuclei"})
BACKGROUND = frozenset({"background"})
REGION = frozenset({"region", "region*"})
IGNORED = frozenset({"ignore", "ignore*"})


@dataclass(frozen=True, eq=False)
class Scribble:
    """A stroke on what is surely nucleus, or surely not.

    Attributes
    ----------
    label : "foreground" or "background"
        A foreground stroke lies within one nucleus.
    line : ndarray, float64, shape (V, 2), V >= 2
        (x, y) in original pixels, corner origin.
    """

    label: Label
    line: Coordinates


@dataclass(frozen=True, eq=False)
class Annotation:
    """What was marked in one image. All positions are (x, y), in original pixels, corner origin.

    Attributes
    ----------
    points : ndarray, float64, shape (N, 2)
        One a nucleus, anywhere within it.
    scribbles : tuple of Scribble
    polygons : tuple of ndarray, each float64, shape (V, 2)
        Outlines, one a nucleus; valid and simple, not closed (the first vertex is not repeated).
    region : ndarray, float64, shape (V, 2), or None
        The part in which every nucleus was marked, including those that only reach into it; None is the whole image.
        A polygon like those above.
    complete : bool
        Whether every nucleus of the region is marked. If not, a part without a mark says nothing.
    """

    points: Coordinates = field(default_factory=lambda: np.empty((0, 2)))
    scribbles: tuple[Scribble, ...] = ()
    polygons: tuple[Coordinates, ...] = ()
    region: Coordinates | None = None
    complete: bool = True


def read_annotation(path: Path, rows: int, columns: int) -> Annotation:
    """Read what was marked in an image of that size.

    GeoJSON (``.geojson``, ``.json``): a FeatureCollection, or a list of Features as QuPath exports it. Point and MultiPoint are
    points; LineString is a scribble, whose class says foreground or background; Polygon and MultiPolygon are outlines, or
    the region if the class is "Region". CSV (``.csv``): the columns x and y and, optionally, label and stroke; a row is a
    point, or, where stroke names one, a vertex of that scribble.

    Parameters
    ----------
    path : Path
    rows, columns : int, pixels
        Of the image.

    Raises
    ------
    Refusal
        ``data_invalid``, naming the feature or row, counted from 1: whatever cannot be read or does not fit the image; no
        nucleus marked at all; more of them than pixels.
    """
    suffix = path.suffix.lower()
    if suffix not in (*GEOJSON, ".csv"):
        _refuse("an annotation is a .geojson, .json or .csv file.")
    if suffix == ".csv":
        return _checked(_from_csv(_text(path), _Frame(rows, columns)), rows, columns)
    try:
        document = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise Refusal("data_invalid", "the annotation is no readable JSON.") from error
    return annotation_of(document, rows, columns)


def annotation_of(document: Any, rows: int, columns: int) -> Annotation:
    """Return what a GeoJSON document marks in an image of that size; refuses as :func:`read_annotation` does.

    Parameters
    ----------
    document : object
        As ``json`` gives it.
    rows, columns : int, pixels
    """
    return _checked(_from_geojson(document, _Frame(rows, columns)), rows, columns)


def geojson_of(annotation: Annotation) -> dict[str, Any]:
    """Return an annotation as a GeoJSON FeatureCollection; :func:`annotation_of` gives it back, to the last bit."""
    return {"type": "FeatureCollection", "features": _features(annotation)}


def _checked(annotation: Annotation, rows: int, columns: int) -> Annotation:
    marked = len(annotation.points) + len(annotation.polygons) + sum(s.label == "foreground" for s in annotation.scribbles)
    if not marked:
        _refuse("no nucleus is marked.")
    if marked > rows * columns:
        _refuse("more nuclei are marked than the image has pixels.")
    return annotation


def _refuse(what: str) -> NoReturn:
    raise Refusal("data_invalid", what)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_FILE:
            _refuse(f"the annotation is larger than {LARGEST_FILE // 2**20} MiB.")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal("data_invalid", f"the annotation cannot be read ({type(error).__name__}).") from error


@dataclass(frozen=True)
class _Frame:
    """The image's size, and what may lie in it. ``where`` names the feature or row of a refusal."""

    rows: int
    columns: int

    def point(self, where: str, value: Any) -> tuple[float, float]:
        """Check a position of a point: within a pixel."""
        x, y = self.vertex(where, value)
        if x == self.columns or y == self.rows:
            _refuse(f"{where}: a point lies outside the image.")
        return x, y

    def vertex(self, where: str, value: Any) -> tuple[float, float]:
        """Check a position of a line: the image's edge belongs to it."""
        # A third number would be a height.
        if not isinstance(value, list) or len(value) not in {2, 3} or any(type(part) not in {int, float} for part in value):
            _refuse(f"{where}: a position is not a pair of numbers.")
        x, y = value[0], value[1]
        # Compared before any conversion: a JSON integer may be too large for a float. NaN fails every comparison.
        if not (-math.inf < x < math.inf and -math.inf < y < math.inf):
            _refuse(f"{where}: a position is not finite.")
        if not (0 <= x <= self.columns and 0 <= y <= self.rows):
            _refuse(f"{where}: a position lies outside the image.")
        return float(x), float(y)

    def line(self, where: str, value: Any) -> Coordinates:
        if not isinstance(value, list) or len(value) < 2:
            _refuse(f"{where}: a line needs two positions.")
        return np.array([self.vertex(where, position) for position in value])

    def polygon(self, where: str, value: Any) -> Coordinates:
        """Check the rings of a GeoJSON polygon."""
        if not isinstance(value, list) or len(value) != 1:
            _refuse(f"{where}: a polygon needs one ring; holes are not read.")
        ring = self.line(where, value[0])
        # A vertex that repeats the next one adds nothing, nor does the last one that closes the ring.
        ring = ring[np.any(ring != np.roll(ring, -1, axis=0), axis=1)]
        if len(ring) < 3:
            _refuse(f"{where}: a polygon needs three vertices that differ.")
        if not shapely.Polygon(ring).is_valid:
            _refuse(f"{where}: a polygon crosses or touches itself.")
        return ring


def _from_csv(text: str, frame: _Frame) -> Annotation:
    try:
        reader = csv.DictReader(StringIO(text), strict=True)
        header = list(reader.fieldnames or ())
        records = list(reader)
    except csv.Error as error:
        raise Refusal("data_invalid", "the annotation is no readable CSV.") from error
    if header.count("x") != 1 or header.count("y") != 1 or max(header.count("label"), header.count("stroke")) > 1:
        _refuse("the annotation needs one column x, one y, and at most one label and one stroke.")
    points: list[tuple[float, float]] = []
    strokes: dict[str, tuple[str, Label, list[list[float]]]] = {}
    for number, record in enumerate(records, 1):
        where = f"row {number}"
        if None in record or None in record.values():
            _refuse(f"{where}: another number of columns than the header.")
        try:
            position = [float(record["x"]), float(record["y"])]
        except ValueError as error:
            raise Refusal("data_invalid", f"{where}: x and y must be numbers.") from error
        name, stroke = ((record.get(column) or "").strip() for column in ("label", "stroke"))
        if stroke:
            _, label, vertices = strokes.setdefault(stroke, (where, _label_of(where, name.lower()), []))
            if label != _label_of(where, name.lower()):
                _refuse(f"{where}: its stroke began with another label.")
            vertices.append(position)
        else:
            points.append(frame.point(where, position))
            _check_marks_a_nucleus(where, name.lower())
    scribbles = tuple(Scribble(label, frame.line(where, vertices)) for where, label, vertices in strokes.values())
    return Annotation(np.array(points).reshape(-1, 2), scribbles)


def _label_of(where: str, name: str) -> Label:
    """Return what a class says of a line; nothing is guessed."""
    if name not in FOREGROUND | BACKGROUND:
        _refuse(f"{where}: a line needs the class foreground or background.")
    return "foreground" if name in FOREGROUND else "background"


def _from_geojson(document: Any, frame: _Frame) -> Annotation:
    features = document.get("features") if isinstance(document, dict) else document
    if not isinstance(features, list) or not features:
        _refuse("the annotation holds no list of features.")
    found = _Found()
    for number, feature in enumerate(features, 1):
        _read_feature(f"feature {number}", feature, frame, found)
    region = found.regions[0] if found.regions else None
    return Annotation(np.array(found.points).reshape(-1, 2), tuple(found.scribbles), tuple(found.polygons), region)


@dataclass(frozen=True)
class _Found:
    """What the features read so far hold."""

    points: list[tuple[float, float]] = field(default_factory=list)
    scribbles: list[Scribble] = field(default_factory=list)
    polygons: list[Coordinates] = field(default_factory=list)
    regions: list[Coordinates] = field(default_factory=list)


def _read_feature(where: str, feature: Any, frame: _Frame, found: _Found) -> None:
    is_feature = isinstance(feature, dict) and feature.get("type") == "Feature"
    # QuPath's cells have the outline of the whole cell as their geometry, and their nucleus beside it
    geometry = feature.get("nucleusGeometry", feature.get("geometry")) if is_feature else None
    if not isinstance(geometry, dict):
        _refuse(f"{where}: not a Feature with a geometry.")
    kind, positions, name = geometry.get("type"), geometry.get("coordinates"), _class_of(where, feature)
    parts: Any = positions if kind in ("MultiPoint", "MultiPolygon") else [positions]
    if not isinstance(parts, list):
        _refuse(f"{where}: its coordinates are no list.")
    if kind in ("Point", "MultiPoint"):
        _check_marks_a_nucleus(where, name)
        found.points.extend(frame.point(where, part) for part in parts)
    elif kind == "LineString":
        found.scribbles.append(Scribble(_label_of(where, name), frame.line(where, positions)))
    elif kind in ("Polygon", "MultiPolygon"):
        polygons = [frame.polygon(where, part) for part in parts]
        if name not in REGION:
            _check_marks_a_nucleus(where, name)
            found.polygons.extend(polygons)
        elif found.regions or len(polygons) != 1:
            _refuse(f"{where}: there may be one region, of one part.")
        else:
            found.regions.extend(polygons)
    else:
        _refuse(f"{where}: its geometry is none of Point, MultiPoint, LineString, Polygon, MultiPolygon.")


def _class_of(where: str, feature: dict[str, Any]) -> str:
    """Return the class's name in lower case; "" if there is none, as QuPath leaves it out of unclassified objects."""
    properties = feature.get("properties")
    if isinstance(properties, dict) and properties.get("childObjects"):
        _refuse(f"{where}: objects within objects are not read; export them as one flat list.")
    if isinstance(properties, dict) and properties.get("objectType") == "cell" and "nucleusGeometry" not in feature:
        _refuse(f"{where}: a cell without its nucleus; its outline is not that of a nucleus.")
    classification = properties.get("classification") if isinstance(properties, dict) else properties
    name = classification.get("name") if isinstance(classification, dict) else "" if classification is None else None
    if isinstance(classification, dict) and isinstance(names := classification.get("names"), list):
        name = next(iter(names), None)  # of a derived class, "Tumor: Positive" for one, what it is derived from
    if not isinstance(name, str):
        _refuse(f"{where}: its classification has no name.")
    return name.strip().lower()


def _check_marks_a_nucleus(where: str, name: str) -> None:
    """Refuse classes that say that no nucleus is meant; all others, such as cell types, and none at all mean one."""
    if name in BACKGROUND | REGION | IGNORED:
        _refuse(f"{where}: this class marks no nucleus; mark background by a line.")


def _features(annotation: Annotation) -> list[dict[str, Any]]:
    """Return the GeoJSON features, one for all points as QuPath's points tool makes it."""

    def feature(kind: str, coordinates: Any, name: str) -> dict[str, Any]:
        properties = {"objectType": "annotation", "classification": {"name": name}}
        return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": properties}

    def closed(polygon: Coordinates) -> list[Any]:
        return [np.concatenate([polygon, polygon[:1]]).tolist()]

    features = [feature("MultiPoint", annotation.points.tolist(), "Nucleus")] if len(annotation.points) else []
    features += [feature("LineString", s.line.tolist(), s.label.capitalize()) for s in annotation.scribbles]
    features += [feature("Polygon", closed(polygon), "Nucleus") for polygon in annotation.polygons]
    if annotation.region is not None:
        features.append(feature("Polygon", closed(annotation.region), "Region*"))
    return features
