"""Label Studio's documents: what we tell it of a result, and what it tells us of an annotation.

Positions are percent of the image's width and height there, pixels from the upper left corner here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any
from xml.etree import ElementTree

from pydantic import BaseModel, ConfigDict, Field

from models.card import ModelCard, SegmenterCard
from models.errors import Refusal
from models.triage import Verdict
from service.answers import card_of
from service.label_documents import class_of, shown
from service.store import Stored

Json = dict[str, Any]
IMAGE, CLASS, POINT, OUTLINE, REGION = "image", "class", "point", "outline", "region"
"""Names of the tags of :func:`label_config`: what a result refers to."""
REGION_LABEL = "Region"
SLACK = 0.01
"""Percent that a position may lie outside by rounding; then it is moved to the edge."""


class Value(BaseModel):
    """The ``value`` of a part of an annotation; what we do not read is passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    choices: Annotated[list[Annotated[str, Field(min_length=1, max_length=128)]], Field(max_length=100)] | None = None
    x: float | None = None
    y: float | None = None
    width: float | None = None
    height: float | None = None
    rotation: float | None = None
    points: list[tuple[float, float]] | None = None
    keypointlabels: list[str] | None = None
    polygonlabels: list[str] | None = None
    rectanglelabels: list[str] | None = None


class Part(BaseModel):
    """A part of an annotation: a choice, a point, a polygon, a rectangle."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: str
    value: Value
    original_width: int | None = None
    original_height: int | None = None
    image_rotation: float | None = None


def label_config(card: ModelCard | SegmenterCard) -> str:
    """Return the labelling interface for a model's images, to be pasted into the project's settings."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=IMAGE, value="$image", zoom="true", zoomControl="true")
    if isinstance(card, ModelCard):
        choices = ElementTree.SubElement(view, "Choices", name=CLASS, toName=IMAGE, choice="single", showInLine="true")
        for name in card.output.classes:
            ElementTree.SubElement(choices, "Choice", value=name)
    else:
        for kind, name, label in (
            ("KeyPointLabels", POINT, card.output.label),
            ("PolygonLabels", OUTLINE, card.output.label),
            ("RectangleLabels", REGION, REGION_LABEL),
        ):
            tag = ElementTree.SubElement(view, kind, name=name, toName=IMAGE)
            ElementTree.SubElement(tag, "Label", value=label)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def prediction(stored: Stored, verdict: Verdict) -> Json:
    """Return a result as a prediction of Label Studio.

    ``score`` is larger the less doubtful the image is: 1 - loss percentile / 100. Where the model says nothing (``refuse``), and
    where it found no object, there is no part in it.
    """
    model, row = stored.model, stored.result
    try:
        document = shown(stored, verdict)
    except Refusal:
        parts: list[Json] = []
    else:
        parts = _parts(document, card_of(stored), row["rows"], row["columns"])
    version = f"{model['name']} {model['version']} {model['sha256'][:12]}"
    return {"result": parts, "score": 1 - row["loss_percentile"] / 100, "model_version": version}


def _parts(document: Json, card: ModelCard | SegmenterCard, rows: int, columns: int) -> list[Json]:
    if isinstance(card, ModelCard):
        return [{"from_name": CLASS, "to_name": IMAGE, "type": "choices", "value": {"choices": [class_of(document)]}}]
    size = {"original_width": columns, "original_height": rows, "image_rotation": 0}
    outlines = [feature["geometry"]["coordinates"][0][:-1] for feature in document["features"]]
    return [
        {
            "id": f"object{number}", "from_name": OUTLINE, "to_name": IMAGE, "type": "polygonlabels", **size,
            "value": {
                "points": [[100 * x / columns, 100 * y / rows] for x, y in outline],
                "closed": True,
                "polygonlabels": [card.output.label],
            },
        }
        for number, outline in enumerate(outlines, start=1)
    ]  # fmt: skip


def said(parts: Sequence[Part], stored: Stored) -> Json:
    """Return what an annotation says, as the fields of :class:`service.label_schemas.LabelIn`.

    Raises
    ------
    Refusal
        ``label_invalid`` for a part that is not read here (brush strokes and ellipses, for instance), an image that was turned or
        is of another size, or no single choice.
    """
    row = stored.result
    if isinstance(card_of(stored), ModelCard):
        chosen = [name for part in parts for name in part.value.choices or ()]
        if len(chosen) != 1:
            raise Refusal("label_invalid", "The annotation must hold one choice.")
        return {"classes": {chosen[0]: True}}
    return {
        "annotation": {"type": "FeatureCollection", "features": [_feature(part, row["rows"], row["columns"]) for part in parts]}
    }


def _feature(part: Part, rows: int, columns: int) -> Json:
    value = part.value
    if part.image_rotation:
        raise Refusal("label_invalid", "The image was turned in Label Studio: turn it back.")
    if (part.original_width or columns, part.original_height or rows) != (columns, rows):
        raise Refusal("label_invalid", "The image in Label Studio has another size than the one that was scored.")

    def place(x: float | None, y: float | None) -> list[float]:
        return [_pixels(x, columns), _pixels(y, rows)]

    if part.type == "keypointlabels":
        x, y = place(value.x, value.y)
        # The right and lower edges belong to no pixel
        inside = [math.nextafter(at, 0) if at == size else at for at, size in ((x, columns), (y, rows))]
        geometry, names = {"type": "Point", "coordinates": inside}, value.keypointlabels
    elif part.type == "polygonlabels":
        ring = [place(x, y) for x, y in value.points or ()]
        geometry, names = {"type": "Polygon", "coordinates": [ring]}, value.polygonlabels
    elif part.type == "rectanglelabels" and not value.rotation:
        left, top = value.x or 0, value.y or 0
        right, bottom = left + (value.width or 0), top + (value.height or 0)
        ring = [place(left, top), place(right, top), place(right, bottom), place(left, bottom)]
        geometry, names = {"type": "Polygon", "coordinates": [ring]}, value.rectanglelabels
    else:
        raise Refusal("label_invalid", "Only points, polygons and upright rectangles are read.")
    properties = {"classification": {"name": names[0]}} if names else {}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def _pixels(percent: float | None, size: int) -> float:
    """Return a position in pixels. What lies outside stays there, and is refused with the annotation."""
    if percent is None:
        raise Refusal("label_invalid", "A part of the annotation has no position.")
    if -SLACK <= percent < 0 or 100 < percent <= 100 + SLACK:
        return 0.0 if percent < 0 else float(size)
    return percent * size / 100
