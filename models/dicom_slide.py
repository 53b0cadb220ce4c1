"""A region of a whole slide (VL Whole Slide Microscopy Image, PS3.3, A.32.8) -> :class:`~models.image.Image`.

A slide has far more pixels than are ever decoded at once. Its tiles are found and counted without decoding; those that the region
touches are decoded one by one. Its identity is that of the whole slide, so that all regions are known to be of one image.
"""

from __future__ import annotations

import hashlib
import io

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue

from models.dicom_file import UNDEFINED, Meta, Walk, check_explicit, find_pixel_data
from models.dicom_frames import Frames, encapsulated_frames, native_frames
from models.dicom_header import age_years, flatten, number_in, pixel_header, spacing_mm, stated
from models.dicom_identity import digest
from models.dicom_pixels import PixelHeader, decode_pixels, to_rgb
from models.dicom_rendering import rendering
from models.dicom_syntaxes import Syntax
from models.dicom_tiles import PER_FRAME, POSITION, Tiles, sparse_tiles
from models.errors import Refusal
from models.image import Box, Image, Limits

SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""SOP class: VL Whole Slide Microscopy Image Storage."""
MAX_HEADS = 20_000
"""Elements and items of the header beside the per-frame functional groups: pydicom reads as many in about a second."""
_SHARED, _MEASURES, _LUTS = 0x52009229, 0x00289110, (0x00283000, 0x00283010)
_SEQUENCES = frozenset({PER_FRAME, POSITION, _SHARED, _MEASURES, *_LUTS})
"""What is entered, by pydicom or here."""
_PIXELS = 0x7FE00000


def read_slide(data: bytes, meta: Meta, syntax: Syntax, region: Box | None, limits: Limits) -> Image:
    """Decode a region of a slide.

    Parameters
    ----------
    data : bytes
        A file whose meta header names :data:`SLIDE`.
    meta : Meta
    syntax : Syntax
    region : (int, int, int, int) or None
        In pixels of the total pixel matrix.
    limits : Limits

    Returns
    -------
    Image
        ``rows`` and ``columns`` are those of the total pixel matrix; ``pixels`` and ``region`` are the region's.

    Raises
    ------
    Refusal
        ``region_required`` without a region; ``bad_request`` for one that leaves the slide or has no tile; see ``docs/dicom.md``.
    """
    if syntax.coding not in ("native", "jpeg", "jpeg2000") or syntax.big_endian:
        raise Refusal("unsupported_transfer_syntax", "Slides are read uncompressed (little endian), as JPEG or as JPEG 2000.")
    if region is None:
        raise Refusal("region_required")
    source = io.BytesIO(data)
    source.seek(meta.start)
    check_explicit(source, syntax)
    walk = Walk(data, meta.start, syntax.implicit, _SEQUENCES)
    walk.until(PER_FRAME, MAX_HEADS)
    raw = read_dataset(source, syntax.implicit, True, stop_when=lambda tag, _vr, _length: tag >= PER_FRAME)
    header = _header(raw, syntax, limits)
    facts = _facts(header, syntax, limits)
    tiles = _tiles(header, facts, walk, data, limits)
    _check_region(region, tiles, facts, limits.max_wavelet_pixels if syntax.coding == "jpeg2000" else limits.max_pixels)
    touched = tiles.touched(region)
    source.seek(walk.until(_PIXELS, MAX_HEADS).start)
    frames = _frames(data, source, syntax, facts, number_in(header, "NumberOfFrames"))
    lengths = hashlib.sha256(frames.lengths().astype("<i8").tobytes()).hexdigest()
    return Image(
        pixels=_decode(region, touched, frames, syntax, facts, limits),
        rendering=rendering(header, facts),
        rows=tiles.rows,
        columns=tiles.columns,
        spacing_mm=spacing_mm(header),
        media_type="application/dicom",
        sha256=digest(header, meta.transfer_syntax, age_years(header), frames.pieces(), f"{tiles.layout()} {lengths}"),
        header=header,
        region=region,
    )


def _header(raw: Dataset, syntax: Syntax, limits: Limits) -> Dataset:
    """Return what is kept of the header, with the pixel spacing from the shared functional groups."""
    spacing = None
    if "SharedFunctionalGroupsSequence" in raw:
        shared = raw["SharedFunctionalGroupsSequence"].value
        measures = shared[0].get("PixelMeasuresSequence") if shared else None
        spacing = measures[0].get("PixelSpacing") if measures else None
        del raw["SharedFunctionalGroupsSequence"]
    header = flatten(raw, syntax, limits)
    if stated(header, "SOPClassUID") != SLIDE:
        raise Refusal("inconsistent_image", "The meta header names another SOP class than the data set.")
    if isinstance(spacing, MultiValue):
        header.PixelSpacing = spacing
    return header


def _facts(header: Dataset, syntax: Syntax, limits: Limits) -> PixelHeader:
    """Check the attributes of a slide, and those that describe the pixels of its tiles."""
    kind = header.get("ImageType")
    if isinstance(kind, MultiValue) and len(kind) > 2 and str(kind[2]).strip().upper() in ("LABEL", "OVERVIEW"):
        raise Refusal("not_tissue")
    if "ConcatenationUID" in header:
        raise Refusal("multi_frame", "The slide is spread over several instances, which is not read here.")
    if number_in(header, "NumberOfOpticalPaths", 1) != 1 or number_in(header, "TotalPixelMatrixFocalPlanes", 1) != 1:
        raise Refusal("multi_frame", "The slide has several optical paths or focal planes, which are not read here.")
    tile = Dataset()
    tile.update({element.tag: element for element in header if element.keyword != "NumberOfFrames"})
    facts = pixel_header(tile, syntax.coding, limits)
    if facts.samples != 3 or facts.stored != 8 or facts.allocated != 8:
        raise Refusal("unsupported_transfer_syntax", "Slides are read in colour of 8 bits only.")
    return facts


def _tiles(header: Dataset, facts: PixelHeader, walk: Walk, data: bytes, limits: Limits) -> Tiles:
    """Compare the number of frames with the sizes, and find where they lie; the walk is left after the functional groups."""
    rows, columns = number_in(header, "TotalPixelMatrixRows"), number_in(header, "TotalPixelMatrixColumns")
    count = number_in(header, "NumberOfFrames")
    if min(rows, columns, count) < 1:
        raise Refusal("inconsistent_image", "The total pixel matrix or NumberOfFrames is not positive.")
    tiles = Tiles(rows, columns, facts.rows, facts.columns)
    if stated(header, "DimensionOrganizationType") == "TILED_FULL":
        if count != tiles.number:
            raise Refusal("inconsistent_image", "NumberOfFrames is not the number of tiles that the total pixel matrix has.")
        if walk.head.tag == PER_FRAME:
            walk.leap(MAX_HEADS * 10)
        return tiles
    if count > tiles.number:
        raise Refusal("inconsistent_image", "The slide has more frames than its total pixel matrix has tiles.")
    if walk.head.tag != PER_FRAME:
        raise Refusal("inconsistent_image", "The slide does not say where its tiles lie.")
    return sparse_tiles(walk, data, facts, rows, columns, count, limits.max_header_bytes)


def _check_region(region: Box, tiles: Tiles, facts: PixelHeader, limit: int) -> None:
    x, y, width, height = region
    if min(x, y) < 0 or min(width, height) < 1 or x + width > tiles.columns or y + height > tiles.rows:
        raise Refusal("bad_request", f"region must lie inside the slide of {tiles.columns} x {tiles.rows} pixels.")
    if width * height * facts.samples > limit:
        raise Refusal("image_too_large", f"The region has more than {limit // facts.samples} pixels; ask for a smaller one.")


def _frames(data: bytes, source: io.BytesIO, syntax: Syntax, facts: PixelHeader, count: int) -> Frames:
    found = find_pixel_data(source, syntax)
    if (syntax.coding == "native") != (found.length != UNDEFINED):
        raise Refusal("inconsistent_image", "Of transfer syntax and pixel data, one is compressed and the other is not.")
    if syntax.coding == "native":
        return native_frames(data, source.tell(), found.length, count, facts.native_bytes)
    return encapsulated_frames(data, source.tell(), count, found.tables)


def _decode(
    region: Box, touched: list[tuple[int, int, int]], frames: Frames, syntax: Syntax, facts: PixelHeader, limits: Limits
) -> NDArray[np.uint8]:
    """Decode the tiles that a region touches, one at a time; return its pixels, RGB, (height, width, 3)."""
    x, y, width, height = region
    pixels = np.empty((height, width, facts.samples), np.uint8)
    for number, top, left in touched:
        tile, _ = decode_pixels(frames.frame(number), syntax, facts, False, None, limits)
        # Where the tile and the region meet, in the slide's pixels
        upper, lower = max(y, top), min(y + height, top + facts.rows)
        first, last = max(x, left), min(x + width, left + facts.columns)
        part = to_rgb(tile, syntax, facts)[upper - top : lower - top, first - left : last - left]
        pixels[upper - y : lower - y, first - x : last - x] = part
    return pixels
