"""What an expert could have marked, simulated from full masks: points and strokes, exact, careless, or in a part only."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from models.annotation import Annotation, Coordinates, Scribble

Labels = NDArray[np.integer[Any]]
REACH = 40  # pixels: the longest stroke to each side of its start
CLEAR = 3  # pixels: how far a stroke on background stays from nuclei


def simulate_points(
    label_image: Labels,
    seed: int,
    jitter: float = 0.0,
    missing: float = 0.0,
    doubled: float = 0.0,
    share: float = 1.0,
    complete: bool = True,
) -> Annotation:
    """Return the points that an expert could have given: one a nucleus, in that pixel of it that is nearest to its centroid.

    Parameters
    ----------
    label_image : ndarray of int, shape (rows, columns)
        0 background, any other value a nucleus.
    seed : int
        The same seed gives the same points.
    jitter : float, pixels
        Points are moved in a random direction, by a distance uniform between 0 and this, but not out of the image.
    missing : float, in [0, 1]
        Share of the nuclei that were overlooked.
    doubled : float, in [0, 1]
        Share of the marked nuclei with a second point, anywhere within them.
    share : float, in (0, 1]
        Below 1, a rectangle at a random place, of the image's shape, is the annotated region: the smallest into which at least
        that share of the nuclei reaches. Only those are marked, at their centre, even where that lies outside.
    complete : bool
        Whether the annotation claims that every nucleus (of the region) is marked. False beside ``missing``: the expert marked
        some, and says so.

    Raises
    ------
    ValueError
        If an option is out of range.
    """
    if not (jitter >= 0 and 0 <= missing <= 1 and 0 <= doubled <= 1 and 0 < share <= 1):
        raise ValueError(f"out of range: jitter {jitter}, missing {missing}, doubled {doubled} or share {share}")
    random = np.random.default_rng(seed)
    region, seen = _part(label_image, share, random)
    names, pixels, starts, counts = _members(label_image)
    candidates = np.flatnonzero(np.isin(names, seen))
    kept = np.sort(random.permutation(candidates)[round(missing * len(candidates)) :])
    twice = random.permutation(kept)[: round(doubled * len(kept))]
    second = pixels[starts[twice] + (random.random(len(twice)) * counts[twice]).astype(int)]
    points = np.concatenate([_centres(pixels, starts, counts)[kept], second])
    angle, distance = random.uniform(0, 2 * np.pi, len(points)), random.uniform(0, jitter, len(points))
    points += (distance * np.stack([np.cos(angle), np.sin(angle)])).T
    inside = np.clip(points, 0, np.nextafter(label_image.shape[::-1], 0))
    return Annotation(inside, region=region, complete=complete)


def simulate_scribbles(label_image: Labels, seed: int) -> Annotation:
    """Return the strokes that an expert could have given: one through the centre of each nucleus, and some on background.

    They are straight and stay within the nucleus, or at least 3 pixels from any; one on background for every four nuclei.

    Parameters
    ----------
    label_image : ndarray of int, shape (rows, columns)
        0 background, any other value a nucleus.
    seed : int
        The same seed gives the same strokes.
    """
    random = np.random.default_rng(seed)
    _, pixels, starts, counts = _members(label_image)
    clear = distance_transform_edt(label_image == 0) > CLEAR if len(starts) else np.ones(label_image.shape, bool)
    strokes = [Scribble("foreground", _straight(label_image, centre, random)) for centre in _centres(pixels, starts, counts)]
    free = np.argwhere(clear)[:, ::-1] + 0.5
    chosen = random.permutation(len(free))[: max(1, len(starts) // 4)]
    strokes += [Scribble("background", _straight(clear, free[index], random)) for index in chosen]
    return Annotation(scribbles=tuple(strokes))


def _members(label_image: Labels) -> tuple[NDArray[Any], Coordinates, NDArray[np.intp], NDArray[np.intp]]:
    """Return the nuclei's labels, the centres of all their pixels grouped by nucleus, and each group's start and length."""
    y, x = np.nonzero(label_image)
    order = np.argsort(label_image[y, x], kind="stable")
    names, starts, counts = np.unique(label_image[y, x][order], return_index=True, return_counts=True)
    return names, np.stack([x[order], y[order]], axis=1).astype(np.float64) + 0.5, starts, counts


def _centres(pixels: Coordinates, starts: NDArray[np.intp], counts: NDArray[np.intp]) -> Coordinates:
    """Return that pixel of each group that is nearest to the group's mean."""
    if not len(starts):
        return np.empty((0, 2))
    group = np.repeat(np.arange(len(starts)), counts)
    means = np.add.reduceat(pixels, starts) / counts[:, None]
    return pixels[np.lexsort((((pixels - means[group]) ** 2).sum(axis=1), group))[starts]]


def _part(label_image: Labels, share: float, random: np.random.Generator) -> tuple[Coordinates | None, NDArray[Any]]:
    """Return the rectangle into which that share of the nuclei reaches, None for the whole image; and these nuclei's labels."""
    everything = np.setdiff1d(label_image, [0])
    if share == 1 or not len(everything):
        return None, everything
    size = np.array(label_image.shape)
    centre = random.random(2) * size

    def window(side: int) -> tuple[Coordinates, NDArray[Any]]:
        extent = np.ceil(size * side / size.max()).astype(int)
        top, left = np.clip(np.round(centre - extent / 2).astype(int), 0, size - extent)
        bottom, right = top + extent[0], left + extent[1]
        corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float64)
        return corners, np.setdiff1d(label_image[top:bottom, left:right], [0])

    wanted = max(1, round(share * len(everything)))
    return window(1 + bisect_left(range(1, int(size.max())), wanted, key=lambda side: len(window(side)[1])))


def _straight(values: NDArray[Any], start: Coordinates, random: np.random.Generator) -> Coordinates:
    """Return a line through ``start`` in a random direction, as long as ``values`` stay the same, shortened at random.

    It has a vertex every half pixel, so that drawing it meets no other pixels than those looked at here.
    """
    angle = random.uniform(0, 2 * np.pi)
    path = start + np.arange(-2 * REACH, 2 * REACH + 1)[:, None] / 2 * [np.cos(angle), np.sin(angle)]
    x, y = np.floor(path).astype(int).T
    same = (x >= 0) & (x < values.shape[1]) & (y >= 0) & (y < values.shape[0])
    middle = 2 * REACH
    same[same] = values[y[same], x[same]] == values[y[middle], x[middle]]
    ahead, behind = (int(np.argmin(np.append(side, False))) - 1 for side in (same[middle:], same[middle::-1]))
    kept = random.uniform(0.5, 0.9)
    path = path[middle - int(kept * behind) : middle + int(kept * ahead) + 1]
    return path if len(path) > 1 else np.repeat(path, 2, axis=0)
