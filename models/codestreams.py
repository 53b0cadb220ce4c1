"""What a compressed codestream says about itself, read without decoding: size, components, precision, variant.

Only marker segments are walked. JPEG: ITU-T T.81 annex B; JPEG-LS: T.87 annex C; JPEG 2000 and HTJ2K: T.800 annex A and
T.814; RLE: DICOM PS3.5 annex G.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from typing import Literal

from models.errors import Refusal

MAX_SCANS = 100
"""A progressive JPEG has about ten scans; each costs a pass over the whole image, so their number is bounded."""
MAX_TILES = 4096


@dataclass(frozen=True)
class Codestream:
    """The facts of one codestream.

    Attributes
    ----------
    family : "jpeg", "jpegls" or "jpeg2000"
    process : int
        JPEG and JPEG-LS: the start-of-frame marker's second byte. JPEG 2000: 0, or 1 for high-throughput block coding.
    rows, columns, components, precision : int
        Precision in bits a component.
    signed : bool
        JPEG 2000 only.
    lossless : bool
        Whether the coding is reversible.
    predictor : int
        JPEG lossless: the selection value.
    levels : int
        JPEG 2000: resolution levels that may be dropped.
    colour_transform : bool
        JPEG 2000: the components are transformed from RGB, and decoded to it.
    adobe : int or None
        JPEG: the colour transform of the Adobe marker.
    rgb : bool
        JPEG: the components are named R, G and B.
    """

    family: Literal["jpeg", "jpegls", "jpeg2000"]
    process: int
    rows: int
    columns: int
    components: int
    precision: int
    signed: bool = False
    lossless: bool = False
    predictor: int = 0
    levels: int = 0
    colour_transform: bool = False
    adobe: int | None = None
    rgb: bool = False


def _broken(what: str) -> Refusal:
    return Refusal("not_decodable", f"The compressed pixel data is damaged: {what}.")


def parse_jpeg(data: bytes) -> Codestream:
    """Read the markers of a JPEG or JPEG-LS codestream up to its first scan, and check that it is closed.

    Raises
    ------
    Refusal
        ``not_decodable`` if a marker is missing, cut or out of place.
    """
    end = len(data) - len(data[-64:]) + len(data[-64:].rstrip(b"\x00"))
    # A padding byte after the end marker may be 0 or 0xFF (a fill byte)
    if data[end - 2 : end] != b"\xff\xd9" and data[end - 3 : end] != b"\xff\xd9\xff":
        raise _broken("it has no end marker")
    if data[:2] != b"\xff\xd8":
        raise _broken("it has no start marker")
    frame: tuple[int, bytes] | None = None
    adobe: int | None = None
    position = 2
    while position + 4 <= end:
        if data[position] != 0xFF:
            raise _broken("a marker is missing")
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        body = data[position + 4 : position + 2 + length]
        if length < 2 or len(body) != length - 2:
            raise _broken("a marker segment is cut")
        if marker in (0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7):
            if frame is not None or len(body) < 6 or len(body) != 6 + 3 * body[5]:
                raise _broken("its frame header is wrong")
            frame = (marker, body)
        elif marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
            adobe = body[11]
        elif marker == 0xDA:
            if frame is None or len(body) < 4:
                raise _broken("a scan comes before the frame header")
            # Of a single component libjpeg reads one scan; the count below walks the whole stream
            if frame[1][5] > 1 and data.count(b"\xff\xda") > MAX_SCANS:
                raise _broken("it has too many scans")
            return _jpeg_facts(frame[0], frame[1], body, adobe)
        position += 2 + length
    raise _broken("it has no scan")


def _jpeg_facts(marker: int, frame: bytes, scan: bytes, adobe: int | None) -> Codestream:
    precision, rows, columns, components = struct.unpack_from(">BHHB", frame)
    identifiers = bytes(frame[6 + 3 * i] for i in range(components))
    near = scan[-3]  # Ss: the predictor of JPEG lossless, the tolerance NEAR of JPEG-LS
    if marker == 0xF7:
        return Codestream("jpegls", marker, rows, columns, components, precision, lossless=near == 0)
    lossless = marker == 0xC3
    return Codestream(
        "jpeg",
        marker,
        rows,
        columns,
        components,
        precision,
        lossless=lossless,
        predictor=near if lossless else 0,
        adobe=adobe,
        rgb=identifiers == b"RGB",
    )


def parse_jpeg2000(data: bytes) -> Codestream:
    """Read the main header of a JPEG 2000 codestream and walk its tile-parts to the end marker.

    Raises
    ------
    Refusal
        ``not_decodable`` if a segment is missing or cut, or tile-parts do not end where the codestream does;
        ``unsupported_transfer_syntax`` for a JP2 file, subsampled components, components of unlike precision, or an offset.
    """
    if data[:12] == b"\x00\x00\x00\x0cjP  \r\n\x87\n":
        raise Refusal("unsupported_transfer_syntax", "The pixel data is a JP2 file, where DICOM asks for a bare codestream.")
    if data[:4] != b"\xff\x4f\xff\x51":
        raise _broken("it has no start marker")
    position = 2
    size: bytes = b""
    coding: bytes = b""
    high_throughput = False
    while data[position : position + 2] != b"\xff\x90":
        if len(data) < position + 4 or data[position] != 0xFF:
            raise _broken("its main header is cut")
        marker = data[position + 1]
        (length,) = struct.unpack_from(">H", data, position + 2)
        body = data[position + 4 : position + 2 + length]
        if length < 2 or len(body) != length - 2:
            raise _broken("a marker segment is cut")
        if marker == 0x51:
            size = body
        elif marker == 0x52:
            coding = body
        elif marker == 0x50:
            high_throughput = bool(struct.unpack_from(">I", body)[0] & 0x00020000)
        position += 2 + length
    _walk_tile_parts(data, position)
    return _jpeg2000_facts(size, coding, high_throughput)


def _walk_tile_parts(data: bytes, position: int) -> None:
    while data[position : position + 2] == b"\xff\x90":
        if len(data) < position + 12:
            raise _broken("a tile-part is cut")
        length, _part = struct.unpack_from(">IB", data, position + 6)
        if length == 0:  # the last tile-part may leave its length open
            end = data.rfind(b"\xff\xd9", position)
            position = end if end > 0 else len(data)
            break
        if length < 14:
            raise _broken("a tile-part has no length")
        position += length
    if data[position : position + 2] != b"\xff\xd9" or len(data) - position > 4:
        raise _broken("its tile-parts do not end at its end marker")


def _jpeg2000_facts(size: bytes, coding: bytes, high_throughput: bool) -> Codestream:
    if len(size) < 39 or len(coding) < 10:
        raise _broken("its size or coding segment is missing")
    x1, y1, x0, y0, tile_width, tile_height, tile_x, tile_y, components = struct.unpack_from(">8IH", size, 2)
    if len(size) != 36 + 3 * components or not components:
        raise _broken("its size segment is wrong")
    parts = {tuple(size[36 + 3 * i : 39 + 3 * i]) for i in range(components)}
    depth, step_x, step_y = next(iter(parts))
    if len(parts) != 1 or (step_x, step_y) != (1, 1) or (x0, y0, tile_x, tile_y) != (0, 0, 0, 0):
        raise Refusal("unsupported_transfer_syntax", "The JPEG 2000 image is subsampled, offset, or of mixed precision.")
    if not tile_width or not tile_height or -(-x1 // tile_width) * -(-y1 // tile_height) > MAX_TILES:
        raise _broken("its tiles are wrong")
    levels, transform = coding[5], coding[9]
    return Codestream(
        "jpeg2000",
        int(high_throughput),
        y1,
        x1,
        components,
        (depth & 0x7F) + 1,
        signed=bool(depth & 0x80),
        lossless=transform == 1,
        levels=levels,
        colour_transform=coding[4] == 1,
    )


def split_rle(data: bytes, planes: int) -> list[bytes]:
    """Check the header of an RLE frame, and return its segments: one a byte plane, in order, most significant first.

    Raises
    ------
    Refusal
        ``not_decodable`` if it is cut, ``inconsistent_image`` if its number of segments contradicts the image header.
    """
    if len(data) < 64:
        raise _broken("its RLE header is cut")
    count, *offsets = struct.unpack_from("<16I", data)
    if count != planes:
        raise Refusal("inconsistent_image", "The RLE data has another number of byte planes than the header says.")
    bounds = [*offsets[:count], len(data)]
    if bounds[0] != 64 or any(a >= b for a, b in itertools.pairwise(bounds)) or any(offsets[count:]):
        raise _broken("its RLE segments are out of order")
    return [data[a:b] for a, b in itertools.pairwise(bounds)]
