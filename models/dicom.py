"""DICOM bytes -> :class:`~models.image.Image`: what may be read, consistency, identity.

The order is what makes bad files cheap to refuse: the meta header (never compressed) says how the rest is coded; the image
header is read up to the pixel data; sizes and limits are checked on the header alone; only then is anything decoded.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import BinaryIO, cast

import numpy as np
from pydicom.filereader import read_dataset
from pydicom.tag import Tag

from models.dicom_file import UNDEFINED, Counted, Inflater, Meta, check_explicit, find_pixel_data, read_meta
from models.dicom_frames import STARTS
from models.dicom_header import age_years, flatten, has_embedded_overlay, pixel_header, spacing_mm
from models.dicom_identity import digest
from models.dicom_pixels import decode_pixels, to_rgb
from models.dicom_rendering import rendering
from models.dicom_slide import SLIDE, read_slide
from models.dicom_syntaxes import SYNTAXES, Syntax
from models.errors import Refusal
from models.image import Box, Image, Limits

UIDS = ("SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def read_dicom(data: bytes, target: tuple[int, int] | None, limits: Limits, region: Box | None = None) -> Image:
    """Decode a single-frame DICOM image, or a region of a whole slide.

    Call it through :func:`models.imaging.read_image`, which turns what pydicom and the codecs raise into a Refusal.

    Parameters
    ----------
    data : bytes
        A file with its preamble.
    target : (int, int) or None
    limits : Limits
    region : (int, int, int, int) or None
        Of a whole slide; other images are decoded whole.

    Raises
    ------
    Refusal
        See ``docs/dicom.md`` for each code and its causes.
    """
    meta = read_meta(data)
    syntax = SYNTAXES.get(meta.transfer_syntax)
    if syntax is None:
        raise Refusal("unsupported_transfer_syntax")
    if meta.sop_class == SLIDE:
        return read_slide(data, meta, syntax, region, limits)
    source = _open(data, meta, syntax, limits)
    counted = cast(BinaryIO, Counted(source))
    raw = read_dataset(counted, syntax.implicit, not syntax.big_endian, stop_when=lambda tag, _vr, _length: tag.group >= 0x7FE0)
    header = flatten(raw, syntax, limits)
    found = find_pixel_data(source, syntax)
    facts = pixel_header(header, syntax.coding, limits)
    stored: bytes | memoryview
    if syntax.coding in ("native", "deflated"):
        stored = _native_bytes(data, source, found.length, facts.native_bytes)
    else:
        if found.length != UNDEFINED:
            raise Refusal("inconsistent_image", "The transfer syntax is a compressed one, the pixel data is not.")
        stored = _fragments(data, source.tell(), syntax.coding == "rle")
    if syntax.big_endian and found.vr == b"OW" and facts.allocated == 8:
        stored = np.frombuffer(stored, np.uint16).byteswap().tobytes()  # bytes in big-endian words
    if syntax.coding in ("native", "deflated"):
        stored = stored[: facts.native_bytes]
    pixels, extent = decode_pixels(stored, syntax, facts, has_embedded_overlay(raw, facts), target, limits)
    return Image(
        pixels=to_rgb(pixels, syntax, facts),
        rendering=rendering(header, facts),
        rows=facts.rows,
        columns=facts.columns,
        spacing_mm=spacing_mm(header),
        media_type="application/dicom",
        sha256=digest(header, meta.transfer_syntax, age_years(header), [stored]),
        header=header,
        extent=extent,
    )


def read_elements(data: bytes, limits: Limits, keywords: Sequence[str] = UIDS) -> dict[str, str]:
    """Read a few texts of a header, within the bounds of :func:`read_dicom`, and nothing else of the file.

    Parameters
    ----------
    data : bytes
        A file with its preamble.
    limits : Limits
    keywords : sequence of str
        Of top-level elements; the UIDs of SOP class, study, series and instance unless given.

    Returns
    -------
    dict of str to str
        Keyword -> text, as far as the data set states them.

    Raises
    ------
    Refusal
        As :func:`read_dicom`; it is called within :func:`models.imaging.refusing` too.
    """
    meta = read_meta(data)
    syntax = SYNTAXES.get(meta.transfer_syntax)
    if syntax is None:
        raise Refusal("unsupported_transfer_syntax")
    counted = cast(BinaryIO, Counted(_open(data, meta, syntax, limits)))
    # Functional groups are not entered: a slide has thousands
    found = read_dataset(
        counted,
        syntax.implicit,
        not syntax.big_endian,
        stop_when=lambda tag, _vr, _length: tag.group >= 0x5200,
        specific_tags=[Tag(keyword) for keyword in keywords],
    )
    return {keyword: str(found[keyword].value or "") for keyword in keywords if keyword in found}


def _open(data: bytes, meta: Meta, syntax: Syntax, limits: Limits) -> BinaryIO:
    """Return the data set as a file; a deflated one is inflated only as far as it is read."""
    source: BinaryIO = io.BytesIO(data)
    source.seek(meta.start)
    if syntax.coding == "deflated":
        source = cast(BinaryIO, Inflater(data, meta.start, limits.max_header_bytes))
    check_explicit(source, syntax)
    return source


def _native_bytes(data: bytes, source: BinaryIO, length: int, expected: int) -> bytes | memoryview:
    if length == UNDEFINED:
        raise Refusal("inconsistent_image", "The transfer syntax is an uncompressed one, the pixel data is not.")
    if length != expected + expected % 2:
        raise Refusal("inconsistent_image", "The pixel data has another length than the header says.")
    stored: bytes | memoryview
    if isinstance(source, Inflater):
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
    if not frames:
        raise Refusal("not_decodable", "The pixel data is empty.")
    if len(items[0]) > 4 or (single and len(frames) > 1) or any(item.startswith(STARTS) for item in frames[1:]):
        raise Refusal("inconsistent_image", "The pixel data holds more frames than the header says.")
    return frames[0] if len(frames) == 1 else b"".join(frames)
