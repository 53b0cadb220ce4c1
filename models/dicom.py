"""DICOM bytes -> :class:`~models.image.Image`: what may be read, consistency, identity.

The order is what makes bad files cheap to refuse: the meta header (never compressed) says how the rest is coded; the image
header is read up to the pixel data; sizes and limits are checked on the header alone; only then is anything decoded.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import BinaryIO, cast

import numpy as np
from pydicom.filereader import read_dataset
from pydicom.pixels.processing import convert_color_space
from pydicom.valuerep import VR

from models.dicom_header import age_years, flatten, has_embedded_overlay, pixel_header, spacing_mm
from models.dicom_identity import digest
from models.dicom_pixels import decode_pixels
from models.dicom_rendering import rendering
from models.dicom_syntaxes import SYNTAXES, Syntax
from models.errors import Refusal
from models.image import Image, Limits

_LONG_VRS = {b"OB", b"OW", b"OD", b"OF", b"OL", b"OV", b"UN", b"SQ", b"UC", b"UR", b"UT", b"SV", b"UV"}
_VRS = {vr.value.encode() for vr in VR if len(vr.value) == 2}
_UNDEFINED = 0xFFFFFFFF


def read_dicom(data: bytes, target: tuple[int, int] | None, limits: Limits) -> Image:
    """Decode a single-frame DICOM image.

    Call it through :func:`models.imaging.read_image`, which turns what pydicom and the codecs raise into a Refusal.

    Parameters
    ----------
    data : bytes
        A file with its preamble.
    target : (int, int) or None
    limits : Limits

    Raises
    ------
    Refusal
        See ``docs/dicom.md`` for each code and its causes.
    """
    uid, start = _transfer_syntax(data)
    syntax = SYNTAXES.get(uid)
    if syntax is None:
        raise Refusal("unsupported_transfer_syntax")
    source: BinaryIO = io.BytesIO(data)
    source.seek(start)
    if syntax.coding == "deflated":
        source = cast(BinaryIO, _Inflater(data, start, limits.max_header_bytes))
    _check_explicit(source, syntax)
    raw = read_dataset(source, syntax.implicit, not syntax.big_endian, stop_when=lambda tag, _vr, _length: tag.group >= 0x7FE0)
    header = flatten(raw, syntax, limits)
    word, length = _find_pixel_data(source, syntax)
    facts = pixel_header(header, syntax.coding, limits)
    stored: bytes | memoryview
    if syntax.coding in ("native", "deflated"):
        stored = _native_bytes(data, source, length, facts.native_bytes)
    else:
        if length != _UNDEFINED:
            raise Refusal("inconsistent_image", "The transfer syntax is a compressed one, the pixel data is not.")
        stored = _fragments(data, source.tell(), syntax.coding == "rle")
    if syntax.big_endian and word == b"OW" and facts.allocated == 8:
        stored = np.frombuffer(stored, np.uint16).byteswap().tobytes()  # bytes in big-endian words
    if syntax.coding in ("native", "deflated"):
        stored = stored[: facts.native_bytes]
    pixels, extent = decode_pixels(stored, syntax, facts, has_embedded_overlay(raw, facts), target, limits)
    if facts.photometric.startswith("YBR_FULL") and syntax.coding != "jpeg":
        pixels = np.asarray(convert_color_space(pixels, "YBR_FULL", "RGB"))
    return Image(
        pixels=pixels,
        rendering=rendering(header, facts),
        rows=facts.rows,
        columns=facts.columns,
        spacing_mm=spacing_mm(header),
        media_type="application/dicom",
        sha256=digest(header, uid, age_years(header), stored),
        header=header,
        extent=extent,
    )


def _transfer_syntax(data: bytes) -> tuple[str, int]:
    """Return the transfer syntax UID and where the data set begins. The meta header is always explicit little endian."""
    position, uid = 132, ""
    while data[position : position + 2] == b"\x02\x00":
        element, vr = struct.unpack_from("<H2s", data, position + 2)
        if vr in _LONG_VRS:
            (length,) = struct.unpack_from("<I", data, position + 8)
            position += 12
        else:
            (length,) = struct.unpack_from("<H", data, position + 6)
            position += 8
        if vr not in _VRS or position + length > len(data):
            raise Refusal("not_decodable", "The DICOM meta header is damaged.")
        if element == 0x0010:
            uid = data[position : position + length].rstrip(b"\x00 ").decode("ascii", "replace")
        position += length
    if not uid:
        raise Refusal("not_decodable", "The DICOM meta header names no transfer syntax.")
    return uid, position


class _Inflater(io.RawIOBase):
    """A file that inflates only as far as it is read, and never beyond a limit."""

    def __init__(self, data: bytes, start: int, limit: int) -> None:
        self._engine = zlib.decompressobj(-zlib.MAX_WBITS)
        self._pending = memoryview(data)[start:].tobytes()
        self._inflated = bytearray()
        self._position = 0
        self.limit = limit

    def read(self, size: int = -1) -> bytes:
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
        if whence == 2:
            raise io.UnsupportedOperation("the end is not known")
        self._position = offset + (self._position if whence == 1 else 0)
        return self._position

    def tell(self) -> int:
        return self._position


def _check_explicit(source: BinaryIO, syntax: Syntax) -> None:
    """Refuse a data set whose first element is not coded as the syntax says; pydicom would read it the other way."""
    start = source.tell()
    first = source.read(6)
    source.seek(start)
    if (first[4:6] in _VRS) == syntax.implicit:
        raise Refusal("inconsistent_image", "The data set is not coded as its transfer syntax says.")


def _find_pixel_data(source: BinaryIO, syntax: Syntax) -> tuple[bytes, int]:
    """Walk group 7FE0 to PixelData; return its VR and length, and leave ``source`` at its value."""
    order = ">" if syntax.big_endian else "<"
    while True:
        head = source.read(8)
        if not head:
            raise Refusal("no_pixel_data")
        group, element = struct.unpack_from(order + "HH", head)
        vr = b"" if syntax.implicit else head[4:6]
        if not syntax.implicit and vr in _LONG_VRS:
            head += source.read(4)
            (length,) = struct.unpack_from(order + "I", head, 8)
        else:
            (length,) = struct.unpack_from(order + ("I" if syntax.implicit else "H"), head, 4 if syntax.implicit else 6)
        if (group, element) == (0x7FE0, 0x0010):
            if not syntax.implicit and vr not in (b"OB", b"OW"):
                raise Refusal("not_decodable", "The pixel data has a wrong value representation.")
            return vr, length
        if (group, element) in ((0x7FE0, 0x0008), (0x7FE0, 0x0009)):
            raise Refusal("unsupported_transfer_syntax", "Pixel data of floating-point numbers is not read here.")
        if group in (0xFFFA, 0xFFFC):  # signatures and padding, which come last
            raise Refusal("no_pixel_data")
        if group != 0x7FE0 or length == _UNDEFINED:
            raise Refusal("not_decodable", "The data set is damaged before its pixel data.")
        source.seek(length, 1)


def _native_bytes(data: bytes, source: BinaryIO, length: int, expected: int) -> bytes | memoryview:
    if length == _UNDEFINED:
        raise Refusal("inconsistent_image", "The transfer syntax is an uncompressed one, the pixel data is not.")
    if length != expected + expected % 2:
        raise Refusal("inconsistent_image", "The pixel data has another length than the header says.")
    stored: bytes | memoryview
    if isinstance(source, _Inflater):
        source.limit = source.tell() + length
        stored = source.read(length)
    else:
        stored = memoryview(data)[source.tell() : source.tell() + length]  # the pixels are never copied
    if len(stored) != length:
        raise Refusal("not_decodable", "The file is cut within its pixel data.")
    return stored


def _fragments(data: bytes, position: int, single: bool) -> bytes:
    """Join the fragments of one frame. The first item is the offset table."""
    items: list[bytes] = []
    while True:
        head = data[position : position + 8]
        if len(head) < 8:
            raise Refusal("not_decodable", "The file is cut within its pixel data.")
        group, element, length = struct.unpack("<HHI", head)
        position += 8
        if (group, element) == (0xFFFE, 0xE0DD):
            break
        if (group, element) != (0xFFFE, 0xE000) or position + length > len(data):
            raise Refusal("not_decodable", "The fragments of the pixel data are damaged.")
        items.append(data[position : position + length])
        position += length
    frames = [item for item in items[1:] if item]
    starts = [item[:3] in (b"\xff\xd8\xff", b"\xff\x4f\xff") for item in frames]
    if not frames:
        raise Refusal("not_decodable", "The pixel data is empty.")
    if len(items[0]) > 4 or (single and len(frames) > 1) or any(starts[1:]):
        raise Refusal("inconsistent_image", "The pixel data holds more frames than the header says.")
    return frames[0] if len(frames) == 1 else b"".join(frames)
