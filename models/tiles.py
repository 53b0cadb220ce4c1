"""An image of any size -> overlapping tiles of the network's size, and maps of the tiles -> one map without seams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

STRIDE = 16
"""Pixels: a multiple of the strides of every segmenter here."""


def reach(overlap: int) -> int:
    """Return how many pixels before the image its first tile begins: a quarter of the overlap, rounded up to whole strides."""
    return -(-(overlap // 4) // STRIDE) * STRIDE


def starts(length: int, tile: int, overlap: int) -> NDArray[np.int64]:
    """Place tiles along one side of an image.

    Parameters
    ----------
    length, tile, overlap : int, pixels
        Of the image and of a tile; the least overlap of neighbours.

    Returns
    -------
    ndarray of int64, shape (T,), pixels
        Where the tiles begin, spread evenly over multiples of :data:`STRIDE`, since a network with strides says something else of
        an image that is moved by less. The last ends a quarter of the overlap behind the image, or less than a stride further;
        or where one tile is more than enough.
    """
    first = -reach(overlap) // STRIDE
    last = max(first, -(-(length + overlap // 4 - tile) // STRIDE))
    step = max(1, (tile - overlap) // STRIDE)
    gaps = -((first - last) // step)
    return STRIDE * (first + np.arange(gaps + 1, dtype=np.int64) * (last - first) // max(gaps, 1))


def ramp(tile: int, overlap: int) -> NDArray[np.float32]:
    """Return the weight of a tile's pixels along one side, float32, shape (tile,), before it is divided by the neighbours' sum.

    It is 0 in the outer quarter of the overlap, where the tile's border is too near to be trusted, rises as a squared sine over
    the middle half, and is 1 from there on: weights of two tiles that overlap by ``overlap`` add up to 1.
    """
    margin = overlap // 4
    depth = np.minimum(np.arange(tile), np.arange(tile)[::-1]) + 0.5 - margin
    rise = np.clip(depth / max(overlap - 2 * margin, 1), 0.0, 1.0) if overlap else np.ones(tile)
    return np.asarray(np.sin(rise * np.pi / 2) ** 2, np.float32)


@dataclass(frozen=True)
class Tiling:
    """Where the tiles of an image lie, in reading order.

    The image is continued by reflection: at its edge by a quarter of the overlap at least, so that no pixel of it depends on
    what a network does at the border of a tile, and further where the image is smaller than a tile.

    Attributes
    ----------
    rows, columns : int, pixels
        Of the image.
    height, width : int, pixels
        Of a tile.
    overlap : int, pixels
        Least overlap of neighbours, at most half a tile.
    """

    rows: int
    columns: int
    height: int
    width: int
    overlap: int

    def corners(self) -> list[tuple[int, int]]:
        """Return (top, left) of every tile, in pixels of the image; negative where a tile begins before it."""
        tops, lefts = starts(self.rows, self.height, self.overlap), starts(self.columns, self.width, self.overlap)
        return [(int(top), int(left)) for top in tops for left in lefts]

    def boxes(self) -> list[tuple[int, int, int, int]]:
        """Return (x, y, width, height) of the part of every tile that lies in the image."""
        boxes = []
        for top, left in self.corners():
            x, y = max(left, 0), max(top, 0)
            boxes.append((x, y, min(left + self.width, self.columns) - x, min(top + self.height, self.rows) - y))
        return boxes

    def cut(self, values: NDArray[Any], corners: list[tuple[int, int]]) -> NDArray[Any]:
        """Cut tiles out of an image.

        Parameters
        ----------
        values : ndarray, shape (rows, columns, ...)
        corners : list of (int, int)
            Of these tiles; some or all of :meth:`corners`.

        Returns
        -------
        ndarray, shape (len(corners), height, width, ...)
        """
        margin = reach(self.overlap)
        behind = self.height + margin, self.width + margin
        down = np.pad(np.arange(self.rows), (margin, behind[0]), mode="reflect")
        across = np.pad(np.arange(self.columns), (margin, behind[1]), mode="reflect")
        tiles = np.empty((len(corners), self.height, self.width, *values.shape[2:]), values.dtype)
        for tile, (top, left) in zip(tiles, corners, strict=True):
            lines = values.take(down[top + margin : top + margin + self.height], axis=0)
            lines.take(across[left + margin : left + margin + self.width], axis=1, out=tile, mode="clip")
        return tiles

    def blend(self, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """Blend the tiles' maps into one of the image.

        Parameters
        ----------
        maps : ndarray, float32, shape (T, height, width)
            Of all tiles, in the order of :meth:`corners`.

        Returns
        -------
        ndarray, float32, shape (rows, columns)
            The mean over the tiles that cover a pixel, weighted by :func:`ramp`. It equals what the network says of the whole
            image, continued by reflection, where its receptive field reaches at most a quarter of the overlap to each side.
        """
        margin = reach(self.overlap)
        tops, down = _weights(self.rows, self.height, self.overlap)
        lefts, across = _weights(self.columns, self.width, self.overlap)
        canvas = np.zeros((tops[-1] + margin + self.height, lefts[-1] + margin + self.width), np.float32)
        for index, part in enumerate(maps):
            i, j = divmod(index, len(lefts))
            y, x = tops[i] + margin, lefts[j] + margin
            canvas[y : y + self.height, x : x + self.width] += part * (down[i][:, None] * across[j])
        return canvas[margin : margin + self.rows, margin : margin + self.columns]


def _weights(length: int, tile: int, overlap: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return where tiles begin along one side, and their weights (T, tile), which add up to 1 at every pixel of the image."""
    begins = starts(length, tile, overlap)
    weight, margin = ramp(tile, overlap), reach(overlap)
    total = np.zeros(begins[-1] + margin + tile, np.float32)
    for begin in begins + margin:
        total[begin : begin + tile] += weight
    total[total == 0] = 1.0  # in the margins, which are cut off
    return begins, np.stack([weight / total[begin : begin + tile] for begin in begins + margin])
