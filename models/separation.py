"""Foreground probability -> label image of objects, touching ones separated -> their outlines, exact to the pixel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.segmentation import watershed

from models.card import ObjectSpec
from models.objects import DetectedObject

Labels = NDArray[np.int32]


def separate(foreground: NDArray[np.float32], spec: ObjectSpec) -> Labels:
    """Find the objects in a map of foreground probabilities.

    Parameters
    ----------
    foreground : ndarray, float32, shape (rows, columns)
        Probabilities.
    spec : ObjectSpec

    Returns
    -------
    ndarray, int32, shape (rows, columns)
        0 background, 1..N objects in reading order of their first pixels. Every object is connected by its pixels' sides and
        has no holes.

    Notes
    -----
    Pixels at or above the threshold are flooded from the peaks of their smoothed distance to the background, downhill (Beucher
    and Meyer's watershed, as scikit-image has it). A gap smaller than ``min_area`` is filled before the distance is taken: a
    pale spot in an object would split it. What an object encloses afterwards belongs to it.
    """
    mask = _without_gaps(foreground >= spec.threshold, spec.min_area)
    distance = ndimage.distance_transform_edt(mask).astype(np.float32)
    if spec.smoothing > 0:
        distance = ndimage.gaussian_filter(distance, spec.smoothing) * mask
    peaks = peak_local_max(distance, min_distance=spec.peak_distance, exclude_border=False)  # type: ignore[no-untyped-call]
    markers = np.zeros(mask.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = watershed(-distance, markers, mask=mask, connectivity=1)  # type: ignore[no-untyped-call]
    # A part whose peak lay too near to the higher peak of another part was not flooded: it is an object of its own
    rest, _ = ndimage.label(mask & (labels == 0))
    labels[rest > 0] = rest[rest > 0] + len(peaks)
    labels[np.bincount(labels.ravel())[labels] < spec.min_area] = 0
    return _in_order(_filled(labels))


def outlines(labels: Labels) -> tuple[NDArray[np.int64], list[NDArray[np.float64]]]:
    """Trace the boundaries of all objects along the sides of their pixels.

    Parameters
    ----------
    labels : ndarray, int32, shape (rows, columns)
        0 background; every object is connected by its pixels' sides.

    Returns
    -------
    owners : ndarray of int64, shape (B,)
        The object of each boundary, ascending. An object's first is its outer one, any other encloses a hole.
    polygons : list of B arrays of float64, shape (V, 2)
        Corners (x, y), corner origin, not closed, outer boundaries clockwise as seen (y points down). Of an object without
        holes the polygon is simple, and its area is the number of the object's pixels.
    """
    starts, ends, directions, owners = _sides(labels)
    if not len(owners):
        return owners, []
    vertices = (labels.shape[0] + 1) * (labels.shape[1] + 1)
    order = np.lexsort((directions, owners * vertices + starts))
    starts, ends, directions, owners = starts[order], ends[order], directions[order], owners[order]
    keys = owners * vertices + starts
    following = np.searchsorted(keys, owners * vertices + ends)
    # Where two pixels of an object meet at a corner only, two sides begin. The turn away from the own pixel keeps the outer
    # boundary outside, so that what the corner closes off counts as a hole
    second = np.minimum(following + 1, len(keys) - 1)
    forked = (keys[second] == keys[following]) & (directions[second] == (directions - 1) % 4)
    following = np.where(forked, second, following)
    walk, firsts = _cycles(following.tolist())
    turning = (directions[following] != directions)[walk]
    rows, columns = np.divmod(ends[walk[turning]], labels.shape[1] + 1)
    corners = np.stack([columns, rows], axis=1).astype(np.float64)
    counts = np.add.reduceat(turning.astype(np.int64), firsts)
    return owners[walk[firsts]], np.split(corners, np.cumsum(counts)[:-1])


def objects(labels: Labels, foreground: NDArray[np.float32], origin: tuple[int, int]) -> tuple[DetectedObject, ...]:
    """Describe every object.

    Parameters
    ----------
    labels : ndarray, int32, shape (rows, columns)
        As :func:`separate` returns it.
    foreground : ndarray, float32, shape (rows, columns)
        Probabilities.
    origin : (int, int), pixels
        (x, y) of the map's corner in the image.

    Returns
    -------
    tuple of DetectedObject
        In the order of their labels.
    """
    _, polygons = outlines(labels)
    inside = labels > 0
    areas = np.bincount(labels[inside])[1:]
    scores = np.bincount(labels[inside], weights=foreground[inside])[1:] / areas
    return tuple(
        DetectedObject(polygon + origin, float(area), float(score))
        for polygon, area, score in zip(polygons, areas, np.clip(scores, 0.0, 1.0), strict=True)
    )


def _without_gaps(mask: NDArray[np.bool_], most: int) -> NDArray[np.bool_]:
    """Fill the parts of the background, connected by their pixels' sides, that are smaller than ``most``."""
    gaps, _ = ndimage.label(~mask)
    sizes = np.bincount(gaps.ravel())
    small = sizes < most
    small[0] = False
    return np.asarray(mask | small[gaps])


def _filled(labels: Labels) -> Labels:
    """Give every object what it encloses; an object enclosed by another vanishes."""
    owners, _ = outlines(labels)
    boxes = ndimage.find_objects(labels)
    for label in np.unique(owners[1:][owners[1:] == owners[:-1]]):
        part = labels[boxes[label - 1]]
        # The background is connected by sides: a gap closed off by a corner is filled too, or the outline would touch itself
        part[ndimage.binary_fill_holes(part == label)] = label
    return labels


def _in_order(labels: Labels) -> Labels:
    """Renumber the objects 1..N in the order in which reading meets them."""
    found, first = np.unique(labels[labels > 0], return_index=True)
    numbers = np.zeros(labels.max(initial=0) + 1, np.int32)
    numbers[found[np.argsort(first)]] = np.arange(1, len(found) + 1)
    return np.asarray(numbers[labels], np.int32)


def _sides(labels: Labels) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the pixels' sides that bound objects: start and end vertex, direction and object, each (S,).

    Vertices are numbered row by row, of rows one longer than the image's. Directions are 0 right, 1 down, 2 left, 3 up, and
    the object lies to the right as one walks.
    """
    wide = labels.shape[1] + 1
    around = np.pad(labels, 1)
    parts = []
    for behind, ahead, step, turns in (
        (around[:-1, 1:-1], around[1:, 1:-1], 1, (0, 2)),
        (around[1:-1, 1:], around[1:-1, :-1], wide, (1, 3)),
    ):
        rows, columns = np.nonzero(behind != ahead)
        low = rows * wide + columns
        for owner, begin, end, turn in (
            (ahead[rows, columns], low, low + step, turns[0]),
            (behind[rows, columns], low + step, low, turns[1]),
        ):
            own = owner > 0
            parts.append((begin[own], end[own], np.full(np.count_nonzero(own), turn), owner[own].astype(np.int64)))
    starts, ends, directions, owners = (np.concatenate(column) for column in zip(*parts, strict=True))
    return starts, ends, directions, owners


def _cycles(following: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Walk a permutation: its elements cycle by cycle, and where in this list each cycle begins."""
    seen = bytearray(len(following))
    walk: list[int] = []
    firsts: list[int] = []
    for first in range(len(following)):
        if seen[first]:
            continue
        firsts.append(len(walk))
        current = first
        while not seen[current]:
            seen[current] = 1
            walk.append(current)
            current = following[current]
    return np.array(walk, np.int64), np.array(firsts, np.int64)
