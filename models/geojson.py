"""Objects as GeoJSON that QuPath opens, and the regions of a request as GeoJSON that QuPath writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from models.errors import Refusal
from models.objects import Segmentation

MAX_REGIONS = 100
MAX_VERTICES = 10_000
"""Of all regions of a request together."""
MAX_NAME = 100
"""Characters."""
MAX_NAMES = 10
"""Of a class that is derived from others."""


def feature_collection(segmentation: Segmentation, label: str = "nucleus") -> dict[str, Any]:
    """Return the objects as a GeoJSON FeatureCollection.

    Parameters
    ----------
    segmentation : Segmentation
    label : str
        What an object is (the card's ``output.label``): the name of its class.

    Returns
    -------
    dict
        One Feature an object, in the order of their labels: a Polygon (x, y) in original pixels, corner origin, which is QuPath's
        too, its ring closed; ``objectType`` "detection", ``classification`` and ``measurements`` ("score", "area px^2").
    """
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [[*item.polygon.tolist(), item.polygon[0].tolist()]]},
                "properties": {
                    "objectType": "detection",
                    "classification": {"name": label},
                    "measurements": {"score": item.score, "area px^2": item.area},
                },
            }
            for item in segmentation.objects
        ],
    }


@dataclass(frozen=True)
class Region:
    """A part of the image that is measured by itself.

    Attributes
    ----------
    name : str
        As the request names it, or "region N".
    polygon : ndarray, float64, shape (V, 2)
        (x, y) in original pixels, corner origin; valid and simple, not closed, inside the image.
    """

    name: str
    polygon: NDArray[np.float64]


Coordinate = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Position = Annotated[list[Coordinate], Field(min_length=2, max_length=3)]
Ring = Annotated[list[Position], Field(min_length=4)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


class _Polygon(BaseModel):
    type: Literal["Polygon"]
    coordinates: Annotated[list[Ring], Field(min_length=1, max_length=1)]


class _Class(BaseModel):
    """Of QuPath: it has a name, or, where it is derived from another, a list of names."""

    name: Name | None = None
    names: Annotated[list[Name], Field(max_length=MAX_NAMES)] = []


class _Properties(BaseModel):
    name: Name | None = None
    classification: _Class | None = None


class _Feature(BaseModel):
    type: Literal["Feature"]
    geometry: _Polygon
    properties: _Properties | None = None


Features = Annotated[list[_Feature], Field(min_length=1, max_length=MAX_REGIONS)]


class _Collection(BaseModel):
    type: Literal["FeatureCollection"]
    features: Features


_DOCUMENT: TypeAdapter[_Polygon | _Feature | _Collection] = TypeAdapter(
    Annotated[_Polygon | _Feature | _Collection, Field(discriminator="type")]
)
_FEATURES: TypeAdapter[list[_Feature]] = TypeAdapter(Features)


def regions(document: bytes, rows: int, columns: int) -> list[Region]:
    """Read the regions of a request.

    Parameters
    ----------
    document : bytes
        GeoJSON: a FeatureCollection, a Feature or a Polygon, or a list of Features, as QuPath writes it where no collection is
        asked for; polygons without holes. Names are optional, and taken from ``properties.name``, else from
        ``properties.classification``: its ``name``, or its ``names``, joined as QuPath shows them. Whatever else it holds is
        ignored.
    rows, columns : int, pixels
        Size of the image.

    Returns
    -------
    list of Region
        1 to :data:`MAX_REGIONS`.

    Raises
    ------
    Refusal
        ``bad_request`` if it is anything else, has too many polygons or vertices, or a polygon crosses itself, has no area or
        leaves the image.
    """
    listed = document.lstrip()[:1] == b"["
    try:
        found = _FEATURES.validate_json(document) if listed else _DOCUMENT.validate_json(document)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        # The location may hold keys of the document only where they are the model's own, and positions
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise Refusal("bad_request", f"The regions are not GeoJSON polygons without holes: {where}: {first['type']}.") from None
    if isinstance(found, list):
        features = found
    elif isinstance(found, _Collection):
        features = found.features
    else:
        features = [found if isinstance(found, _Feature) else _Feature(type="Feature", geometry=found)]
    if sum(len(feature.geometry.coordinates[0]) for feature in features) > MAX_VERTICES:
        raise Refusal("bad_request", f"The regions have more than {MAX_VERTICES} vertices.")
    return [_region(feature, number, rows, columns) for number, feature in enumerate(features, start=1)]


def _region(feature: _Feature, number: int, rows: int, columns: int) -> Region:
    ring = np.array([position[:2] for position in feature.geometry.coordinates[0]], np.float64)
    if not np.array_equal(ring[0], ring[-1]):
        raise Refusal("bad_request", f"The ring of region {number} is not closed.")
    if ring.min() < 0 or (ring > (columns, rows)).any():
        raise Refusal("bad_request", f"Region {number} leaves the image of {columns} x {rows} pixels.")
    polygon = shapely.Polygon(ring)
    if not polygon.is_valid or polygon.area == 0:
        raise Refusal("bad_request", f"Region {number} crosses or touches itself, or has no area.")
    properties = feature.properties or _Properties()
    kind = properties.classification or _Class()
    named = properties.name or kind.name or ": ".join(kind.names)
    return Region(named or f"region {number}", ring[:-1])
