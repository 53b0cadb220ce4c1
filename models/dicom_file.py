"""The outer form of a DICOM file (PS3.10; PS3.5, 7): meta header, how elements are coded, where the pixel data is."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from pydicom.valuerep import VR

from models.dicom_syntaxes import Syntax
from models.errors import Refusal

UNDEFINED = 0xFFFFFFFF
"""The length of what ends with a delimiter."""
LONG_VRS = {b"OB", b"OW", b"OD", b"OF", b"OL", b"OV", b"UN", b"SQ", b"UC", b"UR", b"UT", b"SV", b"UV"}
MOST_READS = 6_000
"""Of a header: an element takes two or three. Ordinary images have some hundred elements, mammograms a thousand."""
VRS = {vr.value.encode() for vr in VR if len(vr.value) == 2}


@dataclass(frozen=True)
class Meta:
    """What the meta header says: transfer syntax, SOP class (empty where it does not say), and where the data set begins."""

    transfer_syntax: str
    sop_class: str
    start: int


@dataclass(frozen=True)
class PixelData:
    """The head of the pixel data.

    Attributes
    ----------
    vr : bytes
        Empty in an implicit data set.
    length : int, bytes
        Or :data:`UNDEFINED`.
    tables : dict of int to (int, int)
        Other elements of group 7FE0 that come before: element number -> position of the value in the data set, and its length.
    """

    vr: bytes
    length: int
    tables: dict[int, tuple[int, int]]


def read_meta(data: bytes) -> Meta:
    """Read the meta header, which is always explicit little endian.

    Raises
    ------
    Refusal
        ``not_decodable`` if it is damaged or names no transfer syntax.
    """
    position, found = 132, {0x0002: "", 0x0010: ""}
    while data[position : position + 2] == b"\x02\x00":
        element, vr = struct.unpack_from("<H2s", data, position + 2)
        if vr in LONG_VRS:
            (length,) = struct.unpack_from("<I", data, position + 8)
            position += 12
        else:
            (length,) = struct.unpack_from("<H", data, position + 6)
            position += 8
        if vr not in VRS or position + length > len(data):
            raise Refusal("not_decodable", "The DICOM meta header is damaged.")
        if element in found:
            found[element] = data[position : position + length].rstrip(b"\x00 ").decode("ascii", "replace")
        position += length
    if not found[0x0010]:
        raise Refusal("not_decodable", "The DICOM meta header names no transfer syntax.")
    return Meta(found[0x0010], found[0x0002], position)


class Inflater(io.RawIOBase):
    """A file that inflates only as far as it is read, and never beyond a limit."""

    def __init__(self, data: bytes, start: int, limit: int) -> None:
        self._engine = zlib.decompressobj(-zlib.MAX_WBITS)
        self._pending = memoryview(data)[start:].tobytes()
        self._inflated = bytearray()
        self._position = 0
        self.limit = limit

    def read(self, size: int = -1) -> bytes:
        """Inflate as far as is asked for."""
        end = self._position + size if size >= 0 else self.limit + 1
        while len(self._inflated) < end and self._pending and not self._engine.eof:
            if end > self.limit:
                raise Refusal("image_too_large", "The deflated data set is larger than its header allows.")
            self._inflated += self._engine.decompress(self._pending, min(end - len(self._inflated), 1 << 20))
            self._pending = self._engine.unconsumed_tail
        piece = bytes(self._inflated[self._position : end])
        self._position += len(piece)
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move; what is passed over is inflated when something after it is read."""
        if whence == 2:
            raise io.UnsupportedOperation("the end is not known")
        self._position = offset + (self._position if whence == 1 else 0)
        return self._position

    def tell(self) -> int:
        """Return the position in the inflated data set."""
        return self._position


class Counted(io.RawIOBase):
    """A file that may be read in so many pieces only.

    pydicom reads what a header holds piece by piece, at some ten microseconds each, and a small file has room for millions of
    elements or of a sequence's items: that is a minute's work.
    """

    def __init__(self, source: BinaryIO, most: int = MOST_READS) -> None:
        self._source, self._left = source, most

    def read(self, size: int = -1) -> bytes:
        """Read, as long as there is a piece left.

        Raises
        ------
        Refusal
            ``image_too_large``.
        """
        self._left -= 1
        if self._left < 0:
            raise Refusal("image_too_large", "The header has more elements than the limit.")
        return self._source.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move."""
        return self._source.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._source.tell()


def check_explicit(source: BinaryIO, syntax: Syntax) -> None:
    """Refuse a data set whose first element is not coded as the syntax says; pydicom would read it the other way."""
    start = source.tell()
    first = source.read(6)
    source.seek(start)
    if (first[4:6] in VRS) == syntax.implicit:
        raise Refusal("inconsistent_image", "The data set is not coded as its transfer syntax says.")


def find_pixel_data(source: BinaryIO, syntax: Syntax) -> PixelData:
    """Walk group 7FE0 to PixelData, and leave ``source`` at its value.

    Raises
    ------
    Refusal
        ``no_pixel_data``, ``not_decodable``, or ``unsupported_transfer_syntax`` for floating-point numbers.
    """
    order = ">" if syntax.big_endian else "<"
    tables: dict[int, tuple[int, int]] = {}
    while True:
        head = source.read(8)
        if not head:
            raise Refusal("no_pixel_data")
        group, element = struct.unpack_from(order + "HH", head)
        vr = b"" if syntax.implicit else head[4:6]
        if not syntax.implicit and vr in LONG_VRS:
            head += source.read(4)
            (length,) = struct.unpack_from(order + "I", head, 8)
        else:
            (length,) = struct.unpack_from(order + ("I" if syntax.implicit else "H"), head, 4 if syntax.implicit else 6)
        if (group, element) == (0x7FE0, 0x0010):
            if not syntax.implicit and vr not in (b"OB", b"OW"):
                raise Refusal("not_decodable", "The pixel data has a wrong value representation.")
            return PixelData(vr, length, tables)
        if (group, element) in ((0x7FE0, 0x0008), (0x7FE0, 0x0009)):
            raise Refusal("unsupported_transfer_syntax", "Pixel data of floating-point numbers is not read here.")
        if group in (0xFFFA, 0xFFFC):  # signatures and padding, which come last
            raise Refusal("no_pixel_data")
        if group != 0x7FE0 or length == UNDEFINED:
            raise Refusal("not_decodable", "The data set is damaged before its pixel data.")
        tables[element] = (source.tell(), length)
        source.seek(length, 1)


class Head(NamedTuple):
    """An element without its value. ``depth`` is 0 at the top, 1 for the items of a sequence, 2 for their elements, and so on."""

    depth: int
    tag: int
    start: int
    value: int
    length: int


END = 0xFFFFFFFF
"""No element has this tag."""


class Walk:
    """Steps from head to head of a little-endian data set without reading values: sequences, their items, what is in them.

    Parameters
    ----------
    data : bytes
    start : int
        Position of the first element.
    implicit : bool
    sequences : frozenset of int
        Tags of sequences to be entered in an implicit data set, where only those of undefined length can be told.

    Attributes
    ----------
    head : Head
        Where it stands; beyond the last one it has the tag :data:`END`.

    Notes
    -----
    Each step costs the same at any depth; pydicom reads all items at once, at some 60 microseconds each.
    """

    def __init__(self, data: bytes, start: int, implicit: bool, sequences: frozenset[int] = frozenset()) -> None:
        self._data, self._implicit, self._sequences = data, implicit, sequences
        self._heads = _heads(data, start, implicit, sequences)
        self.step()

    def step(self) -> Head:
        """Go to the next head, and return it.

        Raises
        ------
        Refusal
            ``not_decodable`` where an element, an item or a sequence does not end where it should.
        """
        self.head = next(self._heads, Head(0, END, len(self._data), len(self._data), 0))
        return self.head

    def until(self, tag: int, most: int) -> Head:
        """Go to the first element at the top whose tag is at least ``tag``, in ``most`` steps.

        Raises
        ------
        Refusal
            ``image_too_large`` if it takes more; as :meth:`step` says.
        """
        while self.head.depth or self.head.tag < tag:
            self.step()
            most -= 1
            if most < 0:
                raise Refusal("image_too_large", "The header has more elements than the limit.")
        return self.head

    def leap(self, most: int) -> Head:
        """Go to the next element at the top, over all that the present one holds, as :meth:`until` says."""
        if self.head.length != UNDEFINED:
            self._heads = _heads(self._data, self.head.value + self.head.length, self._implicit, self._sequences)
        self.step()
        return self.until(0, most)


def _heads(data: bytes, start: int, implicit: bool, sequences: frozenset[int]) -> Iterator[Head]:
    """Yield the heads of a data set, in their order: sequences before their items."""
    broken = Refusal("not_decodable", "The data set is damaged before its pixel data.")
    ends: list[int | None] = [None]  # of what is entered, None up to its delimiter; sequences and items take turns
    within = [implicit]
    position = start
    while position + 8 <= len(data):
        depth = len(ends) - 1
        if ends[-1] is not None and position >= ends[-1]:
            if position > ends[-1]:
                raise broken
            ends.pop(), within.pop()
            continue
        group, element, length = struct.unpack_from("<HHI", data, position)
        if group == 0xFFFE:
            if element == 0xE000 and depth % 2:
                yield Head(depth, 0xFFFEE000, position, position + 8, length)
                ends.append(None if length == UNDEFINED else position + 8 + length)
                within.append(within[-1])
            elif element == (0xE0DD if depth % 2 else 0xE00D) and depth and ends[-1] is None and not length:
                ends.pop(), within.pop()
            else:
                raise broken
            position += 8
            continue
        if depth % 2:
            raise broken
        tag, vr, value = group << 16 | element, data[position + 4 : position + 6], position + 8
        if not within[-1]:
            if vr not in VRS:
                raise broken
            if vr in LONG_VRS:
                (length,) = struct.unpack_from("<I", data, value)
                value += 4
            else:
                length >>= 16
        yield Head(depth, tag, position, value, length)
        if length == UNDEFINED or (vr == b"SQ" if not within[-1] else tag in sequences):
            ends.append(None if length == UNDEFINED else value + length)
            # An unknown sequence is coded implicitly wherever it stands (PS3.5, 6.2.2)
            within.append(within[-1] or vr == b"UN")
            position = value
        else:
            position = value + length
