"""Foreground probability -> label image of objects, touching ones separated -> their outlines, exact to the pixel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from models.card import ObjectSpec
from models.objects import DetectedObject

Labels = NDArray[np.int32]

FAR = 180
"""Pixels. Squares of up to twice this distance fit into 16 bits: sqrt(2 * 180**2) < 256."""
STRIP = 64
"""Rows that are worked on together: they stay in the processor's cache."""


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
    return detect(foreground, spec, (0, 0))[0]


def detect(
    foreground: NDArray[np.float32], spec: ObjectSpec, origin: tuple[int, int]
) -> tuple[Labels, tuple[DetectedObject, ...]]:
    """Find the objects as :func:`separate` does, and describe them.

    Parameters
    ----------
    foreground : ndarray, float32, shape (rows, columns)
        Probabilities.
    spec : ObjectSpec
    origin : (int, int), pixels
        (x, y) of the map's corner in the image.

    Returns
    -------
    labels : ndarray, int32, shape (rows, columns)
    objects : tuple of DetectedObject
        In the order of their labels.
    """
    labels = _in_order(_flooded(foreground, spec), spec.min_area)
    owners, polygons = outlines(labels)
    enclosing = np.unique(owners[1:][owners[1:] == owners[:-1]])
    if len(enclosing):
        labels = _in_order(_filled(labels, enclosing), spec.min_area)
        owners, polygons = outlines(labels)
    return labels, describe(labels, polygons, foreground, origin)


def describe(
    labels: Labels, polygons: list[NDArray[np.float64]], foreground: NDArray[np.float32], origin: tuple[int, int]
) -> tuple[DetectedObject, ...]:
    """Describe objects without holes by their outlines, in the order of their labels; the rest as in :func:`detect`."""
    inside = np.flatnonzero(labels > 0)
    owners = labels.ravel()[inside]
    areas = np.bincount(owners)[1:]
    scores = np.bincount(owners, weights=foreground.ravel()[inside])[1:] / areas
    return tuple(
        DetectedObject(polygon + origin, float(area), float(score))
        for polygon, area, score in zip(polygons, areas, np.clip(scores, 0.0, 1.0), strict=True)
    )


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


def _flooded(foreground: NDArray[np.float32], spec: ObjectSpec) -> Labels:
    """Threshold, and separate what touches; labels in no order."""
    mask = _without_gaps(foreground >= spec.threshold, spec.min_area)
    distance = distance_to_background(mask)
    if spec.smoothing > 0:
        distance = ndimage.gaussian_filter(distance, spec.smoothing)
        distance *= mask
    peaks = _peaks(distance, spec.peak_distance)
    labels: Labels = ndimage.label(mask, output=np.int32)[0]
    parts = labels[tuple(peaks.T)]
    # Only a part with several peaks has to be flooded. One without any, because its own lay too near to another part's, is an
    # object too
    several = (np.bincount(parts, minlength=labels.max() + 1) > 1).take(labels)
    chosen = tuple(peaks[several[tuple(peaks.T)]].T)
    markers = np.zeros(mask.shape, np.int32)
    markers[chosen] = np.arange(labels.max() + 1, labels.max() + 1 + len(chosen[0]))
    flooded = watershed(-distance, markers, mask=several, connectivity=1)  # type: ignore[no-untyped-call]
    np.copyto(labels, flooded, where=several)
    return labels


def _peaks(heights: NDArray[np.float32], apart: int) -> NDArray[np.int64]:
    """Return the peaks (row, column), shape (P, 2), the highest first and from then on in reading order.

    A peak is above the lowest height, nothing within ``apart`` pixels is higher, and no peak that comes before it is nearer
    than ``apart`` (the greater of the steps down and across). This is what scikit-image's ``peak_local_max`` finds, whose time
    grows with the square of the pixels on ridges: minutes for a picture of stripes.
    """
    highest = ndimage.maximum_filter(heights, 2 * apart + 1, mode="nearest")
    candidates = np.argwhere((heights == highest) & (heights > heights.min()))
    candidates = candidates[np.argsort(-heights[tuple(candidates.T)], kind="stable")]
    near = np.zeros((heights.shape[0] + apart, heights.shape[1] + apart), np.bool_)
    passed = near.data  # one pixel of it is read in a third of the time that the array takes
    kept = []
    for number, (row, column) in enumerate(candidates.tolist()):
        if not passed[row, column]:
            kept.append(number)
            near[max(row - apart + 1, 0) : row + apart, max(column - apart + 1, 0) : column + apart] = True
    return candidates[kept]


def distance_to_background(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return every pixel's Euclidean distance to the nearest pixel of the background, exactly.

    Parameters
    ----------
    mask : ndarray of bool, shape (rows, columns)
        The foreground. What lies beyond the image is not background.

    Returns
    -------
    ndarray, float32, shape (rows, columns), pixels
        Constant where there is no background at all.

    Notes
    -----
    First along the columns, then the least of square sums along the rows, as far as any distance reaches. Objects are small, so
    this is a few passes over 16-bit numbers, in half the time of scipy's, which is used where a distance reaches :data:`FAR`.

    References
    ----------
    Saito and Toriwaki, "New algorithms for Euclidean distance transformation of an n-dimensional digitized picture with
    applications", Pattern Recognition 27(11), 1994.
    """
    if mask.all():
        return np.ones(mask.shape, np.float32)
    column = np.empty(mask.shape, np.uint16)
    run = np.full(mask.shape[1], FAR, np.uint16)
    for inside, line in zip(mask, column, strict=True):
        run = np.minimum(run + 1, FAR) * inside
        line[:] = run
    run[:] = FAR
    for line in column[::-1]:
        run = np.minimum(run + 1, line)
        line[:] = run
    column *= column
    distance = np.empty(mask.shape, np.float32)
    for first in range(0, len(mask), STRIP):
        squares = column[first : first + STRIP].copy()
        shifted = np.empty_like(squares)
        for step in range(1, FAR):
            if step**2 >= squares.max():
                break
            np.add(column[first : first + STRIP], step**2, out=shifted)
            np.minimum(squares[:, step:], shifted[:, :-step], out=squares[:, step:])
            np.minimum(squares[:, :-step], shifted[:, step:], out=squares[:, :-step])
        else:
            return np.asarray(ndimage.distance_transform_edt(mask), np.float32)
        np.sqrt(squares, out=distance[first : first + STRIP], dtype=np.float32)
    return distance


def _without_gaps(mask: NDArray[np.bool_], most: int) -> NDArray[np.bool_]:
    """Fill the parts of the background, connected by their pixels' sides, that are smaller than ``most``."""
    gaps, _ = ndimage.label(~mask)
    sizes = np.bincount(gaps.ravel())
    small = sizes < most
    small[0] = False
    return np.asarray(mask | small.take(gaps))


def _filled(labels: Labels, enclosing: NDArray[np.int64]) -> Labels:
    """Give these objects what they enclose; an object enclosed by another vanishes."""
    boxes = ndimage.find_objects(labels)
    for label in enclosing:
        part = labels[boxes[label - 1]]
        # The background is connected by sides: a gap closed off by a corner is filled too, or the outline would touch itself
        part[ndimage.binary_fill_holes(part == label)] = label
    return labels


def _in_order(labels: Labels, min_area: int) -> Labels:
    """Renumber the objects 1..N in the order in which reading meets them; drop those smaller than ``min_area``."""
    inside = np.flatnonzero(labels > 0)
    owners = labels.ravel()[inside]
    areas = np.bincount(owners, minlength=1)
    first = np.zeros(len(areas), np.int64)
    first[owners[::-1]] = inside[::-1]  # of equal indices the last assignment stays: the first pixel
    kept = np.flatnonzero((areas >= min_area) & (areas > 0))
    numbers = np.zeros(len(areas), np.int32)
    numbers[kept[np.argsort(first[kept])]] = np.arange(1, len(kept) + 1)
    ordered = np.zeros_like(labels)
    ordered.ravel()[inside] = numbers[owners]
    return ordered


def _sides(labels: Labels) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the pixels' sides that bound objects: start and end vertex, direction and object, each (S,).

    Vertices are numbered row by row, of rows one longer than the image's. Directions are 0 right, 1 down, 2 left, 3 up, and
    the object lies to the right as one walks.
    """
    wide = labels.shape[1] + 1
    around = np.pad(labels, 1)
    rows, columns = np.divmod(np.flatnonzero(labels > 0), labels.shape[1])
    own = labels[rows, columns]
    corner = rows * wide + columns
    parts = []
    for direction, (down, across, begin, end) in enumerate(
        ((-1, 0, 0, 1), (0, 1, 1, wide + 1), (1, 0, wide + 1, wide), (0, -1, wide, 0))
    ):
        bounds = around[rows + 1 + down, columns + 1 + across] != own
        place = corner[bounds]
        parts.append((place + begin, place + end, np.full(len(place), direction), own[bounds].astype(np.int64)))
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
