"""Where the frames of multi-frame pixel data lie (PS3.5, A.4): found without decoding, checked against offset tables."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from models.errors import Refusal

STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff")
"""How codestreams of JPEG and of JPEG 2000 begin."""
MOST_FRAGMENTS = 16
"""Of a frame on average, beyond ten thousand; writers cut frames into 64 kilobytes or more, if at all."""
EXTENDED_TABLE, EXTENDED_LENGTHS = 0x0001, 0x0002
"""Element numbers in group 7FE0 of the Extended Offset Table and its lengths."""


@dataclass(frozen=True)
class Frames:
    """The frames of pixel data.

    Attributes
    ----------
    data : bytes
        The file.
    fragments : list of (int, int)
        Position and length in bytes, in their order; native frames are one each.
    bounds : list of int
        Number of the first fragment of each frame, and of all fragments at the end.
    """

    data: bytes
    fragments: list[tuple[int, int]]
    bounds: list[int]

    def frame(self, number: int) -> bytes:
        """Return the bytes of a frame, numbered from 0."""
        return b"".join(self.pieces(self.bounds[number], self.bounds[number + 1]))

    def pieces(self, first: int = 0, end: int | None = None) -> Iterator[memoryview]:
        """Yield fragments without copying them."""
        view = memoryview(self.data)
        for position, length in self.fragments[first:end]:
            yield view[position : position + length]

    def lengths(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return the lengths of the frames in bytes, int64, shape (frames,)."""
        sizes = np.array([length for _, length in self.fragments], np.int64)
        return np.add.reduceat(sizes, self.bounds[:-1])


def native_frames(data: bytes, position: int, length: int, count: int, size: int) -> Frames:
    """Locate uncompressed frames of ``size`` bytes each, which follow one another without padding.

    Raises
    ------
    Refusal
        ``inconsistent_image`` if the pixel data has another length, ``not_decodable`` if the file ends within it.
    """
    if length != count * size + count * size % 2:
        raise Refusal("inconsistent_image", "The pixel data has another length than the header says.")
    if position + length > len(data):
        raise Refusal("not_decodable", "The file is cut within its pixel data.")
    return Frames(data, [(position + number * size, size) for number in range(count)], list(range(count + 1)))


def encapsulated_frames(data: bytes, position: int, count: int, tables: dict[int, tuple[int, int]]) -> Frames:
    """Locate compressed frames by walking the fragments; offset tables, where there are any, must say the same.

    Parameters
    ----------
    data : bytes
        The file.
    position : int
        Of the pixel data's first item, the Basic Offset Table.
    count : int
        Frames by the header.
    tables : dict of int to (int, int)
        :attr:`models.dicom_file.PixelData.tables`.

    Raises
    ------
    Refusal
        ``not_decodable`` if fragments are damaged or cut, ``inconsistent_image`` if there is another number of frames, or an
        offset table says otherwise.
    """
    if count > (len(data) - position) // 10:  # an item's head, and two bytes at least
        raise _another_number()
    items = _items(data, position, max(10_000, MOST_FRAGMENTS * count))
    (basic, basic_length), fragments = items[0], items[1:]
    if len(fragments) == count:
        bounds = list(range(count + 1))
    else:
        # Only then does it matter where codestreams begin
        bounds = [number for number, (start, _) in enumerate(fragments) if data[start : start + 3] in STARTS]
        if len(bounds) != count or bounds[0]:
            raise _another_number()
        bounds.append(len(fragments))
    frames = Frames(data, fragments, bounds)
    _check_tables(frames, data[basic : basic + basic_length], tables)
    return frames


def _another_number() -> Refusal:
    return Refusal("inconsistent_image", "The pixel data holds another number of frames than the header says.")


def _items(data: bytes, position: int, most: int) -> list[tuple[int, int]]:
    """Return position and length of each item's value, that of the Basic Offset Table first."""
    items: list[tuple[int, int]] = []
    while True:
        if position + 8 > len(data):
            raise Refusal("not_decodable", "The file is cut within its pixel data.")
        group, element, length = struct.unpack_from("<HHI", data, position)
        position += 8
        if (group, element) == (0xFFFE, 0xE0DD):
            if not items:
                raise Refusal("not_decodable", "The pixel data is empty.")
            return items
        if (group, element) != (0xFFFE, 0xE000) or position + length > len(data) or (items and not length):
            raise Refusal("not_decodable", "The fragments of the pixel data are damaged.")
        items.append((position, length))
        position += length
        if len(items) > most:
            raise _another_number()


def _check_tables(frames: Frames, basic: bytes, tables: dict[int, tuple[int, int]]) -> None:
    """Compare offset tables with where the frames were found."""
    base = frames.fragments[0][0] - 8
    found = [frames.fragments[first][0] - 8 - base for first in frames.bounds[:-1]]
    lies = Refusal("inconsistent_image", "An offset table does not say where the frames are.")
    if basic and (len(basic) != 4 * len(found) or np.frombuffer(basic, "<u4").tolist() != found):
        raise lies
    extended, sizes = (_table(frames.data, tables.get(element)) for element in (EXTENDED_TABLE, EXTENDED_LENGTHS))
    if extended is None and sizes is None:
        return
    # It stands for frames of one fragment each, and not beside the other (PS3.3, C.7.6.3.1.8)
    if basic or extended != found or len(frames.fragments) != len(found) or sizes is None:
        raise lies
    # Lengths are without the padding byte
    padded = [size + size % 2 for size in sizes]
    if padded != [length + length % 2 for _, length in frames.fragments]:
        raise lies


def _table(data: bytes, where: tuple[int, int] | None) -> list[int] | None:
    if where is None:
        return None
    position, length = where
    offsets: list[int] = np.frombuffer(data[position : position + length - length % 8], "<u8").tolist()
    return offsets
