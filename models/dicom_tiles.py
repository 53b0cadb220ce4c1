"""Where the tiles of a whole slide lie in its total pixel matrix (PS3.3, C.7.6.17.3 and C.8.12.14)."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import numpy as np

from models.dicom_file import Walk
from models.dicom_pixels import PixelHeader
from models.errors import Refusal
from models.image import Box

PER_FRAME = 0x52009230
"""Per-Frame Functional Groups Sequence."""
POSITION = 0x0048021A
"""Plane Position (Slide) Sequence."""
_COLUMN, _ROW = 0x0048021E, 0x0048021F


@dataclass(frozen=True)
class Tiles:
    """The tiles of a slide.

    Attributes
    ----------
    rows, columns : int, pixels
        Of the total pixel matrix.
    height, width : int, pixels
        Of a tile. The last ones may reach beyond the matrix.
    frames : dict of (int, int) to int, or None
        (row, column) of the grid of tiles -> number of the frame, from 0; None where every tile is there, row by row.
    """

    rows: int
    columns: int
    height: int
    width: int
    frames: dict[tuple[int, int], int] | None = None

    @property
    def across(self) -> int:
        """Number of tiles side by side."""
        return -(-self.columns // self.width)

    @property
    def number(self) -> int:
        """Number of tiles that cover the matrix."""
        return -(-self.rows // self.height) * self.across

    def touched(self, region: Box) -> list[tuple[int, int, int]]:
        """Return (frame, top, left) of each tile that has pixels of a region.

        Raises
        ------
        Refusal
            ``bad_request`` if the region lies where the slide has no tile: nothing is made up.
        """
        x, y, width, height = region
        found = []
        for i in range(y // self.height, (y + height - 1) // self.height + 1):
            for j in range(x // self.width, (x + width - 1) // self.width + 1):
                frame = i * self.across + j if self.frames is None else self.frames.get((i, j))
                if frame is None:
                    raise Refusal("bad_request", "The slide has no tile in a part of the region.")
                found.append((frame, i * self.height, j * self.width))
        return found

    def layout(self) -> str:
        """Return text that is equal for slides whose frames lie alike."""
        if self.frames is None:
            return "full"
        places = np.array([i * self.across + j for i, j in self.frames], np.int64)
        whole = len(places) == self.number and bool((places == np.arange(len(places))).all())
        return "full" if whole else hashlib.sha256(places.astype("<i8").tobytes()).hexdigest()


def sparse_tiles(walk: Walk, data: bytes, facts: PixelHeader, rows: int, columns: int, count: int, limit: int) -> Tiles:
    """Read the positions of tiles from the per-frame functional groups.

    Parameters
    ----------
    walk : Walk
        At the per-frame functional groups; it is left at the element after them.
    data : bytes
        The file.
    facts : PixelHeader
        Of a tile.
    rows, columns : int, pixels
        Of the total pixel matrix.
    count : int
        Frames by the header.
    limit : int, bytes
        Of the functional groups.

    Raises
    ------
    Refusal
        ``inconsistent_image`` if there is another number of groups, or a position is missing or outside the matrix;
        ``multi_frame`` for tiles that overlap or lie off a grid; ``image_too_large`` beyond the limit.
    """
    places: list[list[int]] = []
    begin, sequence = walk.head.start, 0
    while (head := walk.step()).depth:
        if head.start - begin > limit:
            raise Refusal("image_too_large", "The functional groups of the frames are larger than the limit.")
        if head.depth == 1:
            if len(places) == count:
                raise _another_number()
            places.append([0, 0])
        elif head.depth == 2:
            sequence = head.tag
        elif head.depth == 4 and sequence == POSITION and head.tag in (_COLUMN, _ROW) and head.length == 4:
            (places[-1][head.tag == _COLUMN],) = struct.unpack_from("<i", data, head.value)
    if len(places) != count:
        raise _another_number()
    frames: dict[tuple[int, int], int] = {}
    for number, (row, column) in enumerate(places):
        if not 1 <= row <= rows or not 1 <= column <= columns:
            raise Refusal("inconsistent_image", "A tile of the slide has no position, or one outside its total pixel matrix.")
        (i, top), (j, left) = divmod(row - 1, facts.rows), divmod(column - 1, facts.columns)
        if top or left or frames.setdefault((i, j), number) != number:
            raise Refusal("multi_frame", "Tiles of the slide overlap, or do not lie on a grid.")
    return Tiles(rows, columns, facts.rows, facts.columns, frames)


def _another_number() -> Refusal:
    return Refusal("inconsistent_image", "The slide has another number of functional groups than of frames.")
