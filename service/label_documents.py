"""What a label says, against the card and the image: checked, completed, and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import shapely

from models.agreement import Likeness, annotation_likeness, same_class
from models.annotation import Annotation, Coordinates, annotation_of, geojson_of
from models.card import ModelCard, SegmenterCard
from models.errors import Refusal
from models.triage import Verdict, called_findings
from service.answers import card_of
from service.label_schemas import Kind
from service.segmentation import unpack
from service.store import Stored

Document = dict[str, Any]


def kind_of(card: ModelCard | SegmenterCard) -> Kind:
    """Return what a label of this model's images is."""
    return "classes" if isinstance(card, ModelCard) else "annotation"


def class_of(document: Mapping[str, bool]) -> str:
    """Return the class that a complete document of classes names."""
    return next(name for name, holds in document.items() if holds)


def of_class(card: ModelCard, name: str) -> Document:
    """Return the complete document that names one class."""
    return {each: each == name for each in card.output.classes}


def complete_classes(given: Mapping[str, bool], card: ModelCard) -> Document:
    """Return all classes, exactly one of which is true.

    Parameters
    ----------
    given : mapping of str to bool
        A part of the classes: the one that holds, or all that do not.
    card : ModelCard

    Raises
    ------
    Refusal
        ``label_invalid`` for a class that the card does not know, for several that hold, or where none is said to.
    """
    classes = card.output.classes
    if not set(given) <= set(classes):
        raise Refusal("label_invalid", f"The classes of this model are {', '.join(classes)}.")
    hold = [name for name in classes if given.get(name)] or [name for name in classes if name not in given]
    if len(hold) != 1:
        raise Refusal("label_invalid", "Exactly one class holds of an image: say which.")
    return of_class(card, hold[0])


def checked_annotation(given: Any, rows: int, columns: int) -> Document:
    """Return an annotation as it is stored.

    Raises
    ------
    Refusal
        ``label_invalid`` if it does not fit the image; the message names the feature.
    """
    try:
        return geojson_of(annotation_of(given, rows, columns))
    except Refusal as refusal:
        raise Refusal("label_invalid", f"The annotation: {refusal.detail}") from refusal


def shown(stored: Stored, verdict: Verdict) -> Document:
    """Return, as a label, what a reader was shown of a result.

    Raises
    ------
    Refusal
        ``label_invalid`` under the verdict ``refuse``, and where no object was found: nothing was said that could be right.
    """
    if verdict == "refuse":
        raise Refusal("label_invalid", "The model said nothing of this image that could be confirmed.")
    card, row = card_of(stored), stored.result
    if isinstance(card, ModelCard):
        return of_class(card, _called(card, row["probabilities"], verdict))
    objects = unpack(row["segmentation"]).objects
    if not objects:
        raise Refusal("label_invalid", "The model found no object that could be confirmed.")
    outlines = [_simple(item.polygon) for item in objects]
    return geojson_of(Annotation(polygons=tuple(outline for outline in outlines if outline is not None)))


def _simple(outline: Sequence[tuple[float, float]]) -> Coordinates | None:
    """Return the largest part of an outline that does not touch itself, as those of pixels may; None where it has no area."""
    polygon = shapely.Polygon(outline)
    parts = [polygon] if polygon.is_valid else list(getattr(polygon.buffer(0), "geoms", [polygon.buffer(0)]))
    largest = max(parts, key=lambda part: float(part.area))
    return np.array(largest.exterior.coords)[:-1, :2] if largest.area > 0 else None


def _called(card: ModelCard, probabilities: Mapping[str, float], verdict: Verdict) -> str:
    called = called_findings(probabilities, card, verdict)
    positive = [label for label, holds in called.items() if holds]
    # Softmax: of several findings above their points the likeliest is meant, and of none the likeliest class that is no finding
    choices = positive or [name for name in card.output.classes if name not in called] or list(card.output.classes)
    return max(choices, key=probabilities.__getitem__)


def likeness(kind: str, first: Document, second: Document, rows: int, columns: int) -> Likeness:
    """Compare two documents of one image, as they are stored."""
    if kind == "classes":
        return same_class(class_of(first), class_of(second))
    return annotation_likeness(annotation_of(first, rows, columns), annotation_of(second, rows, columns))
