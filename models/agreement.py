"""How far two readers agree: Cohen's kappa of classes, Dice of outlines, F1 of marks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import shapely
from numpy.typing import NDArray

from models.annotation import Annotation, Coordinates

MARK_DISTANCE = 12.0
"""Pixels: about a nucleus' radius at 40x (0.25 micrometres a pixel). Two marks that lie nearer may mean one nucleus."""
SAME_OBJECT_IOU = 0.5
"""Above it, two outlines mean one object, and no third can."""
AGREE_FROM = 0.7
"""Dice or F1 from which on two annotations of an image agree."""


@dataclass(frozen=True)
class Likeness:
    """How alike two labels of one image are.

    Attributes
    ----------
    measure : "same_class", "dice" or "f1"
    value : float or None
        In [0, 1]; None where no part of the image was marked by both.
    agree : bool
    """

    measure: Literal["same_class", "dice", "f1"]
    value: float | None
    agree: bool


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Return how far two readers' classes agree beyond chance: 1 always, 0 as often as chance would have it.

    Parameters
    ----------
    first, second : sequence of str
        The classes that each gave to the same images, in the same order.

    Returns
    -------
    float or None
        In [-1, 1]; None where it is not defined: no image, or both gave one and the same class throughout.

    Raises
    ------
    ValueError
        If the lengths differ.

    References
    ----------
    Cohen, "A Coefficient of Agreement for Nominal Scales", Educational and Psychological Measurement 20(1), 1960.
    """
    if len(first) != len(second):
        raise ValueError("both readers must have labelled the same images")
    n = len(first)
    if not n:
        return None
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    mine, theirs = Counter(first), Counter(second)
    by_chance = sum(mine[name] * theirs[name] for name in mine) / n**2
    return None if by_chance == 1 else (observed - by_chance) / (1 - by_chance)


def same_class(first: str, second: str) -> Likeness:
    """Return whether two readers gave one class."""
    return Likeness("same_class", float(first == second), first == second)


def annotation_likeness(first: Annotation, second: Annotation) -> Likeness:
    """Compare what two readers marked in one image, within the part that both marked.

    Two that hold outlines alone are compared by area (Dice: twice the common area over the sum of the areas). Otherwise
    objects are paired one to one, as many as can be (F1: twice the pairs over the number of objects): two outlines of an IoU
    above 0.5, or marks, one of them a point or a stroke, that lie within 12 pixels of each other, a point within an outline
    at 0. Strokes on background take no part.

    Returns
    -------
    Likeness
        ``agree`` from 0.7 on. Two that mark nothing in the common part agree.
    """
    common = _common(first.region, second.region)
    if common is not None and shapely.is_empty(common):
        return Likeness("f1", None, False)
    mine, theirs = _objects(first, common), _objects(second, common)
    if _outlines_alone(first) and _outlines_alone(second):
        value = _dice(mine, theirs)
        return Likeness("dice", value, value >= AGREE_FROM)
    total = len(mine) + len(theirs)
    value = 2 * _pairs(mine, theirs) / total if total else 1.0
    return Likeness("f1", value, value >= AGREE_FROM)


def _outlines_alone(annotation: Annotation) -> bool:
    return not len(annotation.points) and not any(each.label == "foreground" for each in annotation.scribbles)


def _common(first: Coordinates | None, second: Coordinates | None) -> shapely.Geometry | None:
    regions = [shapely.Polygon(each) for each in (first, second) if each is not None]
    return shapely.intersection_all(regions) if regions else None


def _objects(annotation: Annotation, common: shapely.Geometry | None) -> NDArray[np.object_]:
    strokes = [shapely.LineString(each.line) for each in annotation.scribbles if each.label == "foreground"]
    marks = [shapely.Point(x, y) for x, y in annotation.points]
    found = np.array([*marks, *strokes, *map(shapely.Polygon, annotation.polygons)], dtype=np.object_)
    if common is None or not len(found):
        return found
    cut = np.asarray(shapely.intersection(found, common), dtype=np.object_)
    return cut[~shapely.is_empty(cut)]


def _dice(mine: NDArray[np.object_], theirs: NDArray[np.object_]) -> float:
    first, second = shapely.union_all(mine), shapely.union_all(theirs)
    areas = first.area + second.area
    return 2 * float(first.intersection(second).area) / areas if areas else 1.0


def _pairs(mine: NDArray[np.object_], theirs: NDArray[np.object_]) -> int:
    """Return the size of the largest one-to-one pairing of objects that may be one."""
    if not len(mine) or not len(theirs):
        return 0
    # Here, because they take a quarter of a second to import, and the service stores many labels before it compares two
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    left, right = shapely.STRtree(theirs).query(mine, predicate="dwithin", distance=MARK_DISTANCE)
    a, b = mine[left], theirs[right]
    both_outlines = (shapely.area(a) > 0) & (shapely.area(b) > 0)
    unions = shapely.area(shapely.union(a, b))
    overlap = np.divide(shapely.area(shapely.intersection(a, b)), unions, out=np.zeros(len(a)), where=unions > 0)
    same = np.where(both_outlines, overlap > SAME_OBJECT_IOU, True)
    graph = csr_array((np.ones(same.sum(), np.int8), (left[same], right[same])), shape=(len(mine), len(theirs)))
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())
