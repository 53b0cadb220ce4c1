"""An image as the rest of the code sees it: stored pixels, how they are rendered, and the source's header."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from models.errors import Refusal

COLOUR_DIFFERENCE = 8 / 255
"""Channels that differ by less than this share of the range count as equal: a grey JPEG's chroma noise stays below it."""
COLOUR_FRACTION = 1e-3
"""An image is coloured if more than this share of its pixels is: a small coloured mark leaves an X-ray grey."""


Box = tuple[int, int, int, int]
"""A part of an image: x, y, width, height, in original pixels."""
_BOX = re.compile(r"([0-9]{1,9}),([0-9]{1,9}),([0-9]{1,9}),([0-9]{1,9})")


def read_box(text: str) -> Box:
    """Read a region as it is written in a query or on a command line: ``x,y,width,height``.

    Raises
    ------
    Refusal
        ``bad_request`` for anything else.
    """
    numbers = _BOX.fullmatch(text)
    if numbers is None:
        raise Refusal("bad_request", "region must be x,y,width,height in whole pixels.")
    x, y, width, height = (int(number) for number in numbers.groups())
    return x, y, width, height


@dataclass(frozen=True)
class Limits:
    """What is decoded at most; checked against headers, before any pixel is decoded.

    Attributes
    ----------
    max_pixels : int
        Rows x columns x frames x samples.
    max_wavelet_pixels : int
        The same for JPEG 2000, after its reduction: its decoder is the slowest and needs the most memory.
    max_header_bytes : int
        What is inflated before the pixel data of a deflated DICOM file, and a DICOM sequence that is read.
    """

    max_pixels: int = 40_000_000
    max_wavelet_pixels: int = 16_000_000
    max_header_bytes: int = 8_000_000


@dataclass(frozen=True)
class Rendering:
    """How stored values become display values.

    Attributes
    ----------
    low, high : float
        The display values that the darkest and the brightest possible stored value would get.
    offset : int
        Stored value of the table's first row.
    table : (N,) or (N, 3) float32, or None
        Display value (or RGB colour) of every stored value; None where there is a chain, or where stored values are display
        values already.
    chain : Dataset or None
        The DICOM attributes of a chain that is linear up to clipping, and can therefore be applied after resizing.
    invert : bool
        MONOCHROME1: the lowest stored value is shown brightest.
    """

    low: float
    high: float
    offset: int = 0
    table: NDArray[np.float32] | None = None
    chain: Dataset | None = None
    invert: bool = False

    @property
    def after_resizing(self) -> bool:
        """Whether the chain may be applied to interpolated values; tables and palettes may not."""
        return self.table is None

    def look_up(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Render stored values of any shape; a palette adds a last axis of 3."""
        table, offset = self.table, self.offset
        if table is None:
            offset = int(stored.min())
            span = int(stored.max()) - offset + 1
            if span > stored.size:
                return self.evaluate(stored)
            # Fewer values than pixels: the chain is evaluated once a value
            table = self.evaluate(np.arange(offset, offset + span))
        # take() widens its indices to the platform's integer: a strip at a time keeps that small
        out = np.empty(stored.shape + table.shape[1:], np.float32)
        for first in range(0, len(stored), 256):
            strip = stored[first : first + 256]
            np.take(table, strip.astype(np.intp) - offset, axis=0, out=out[first : first + 256], mode="clip")
        return out

    def evaluate(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Render stored or interpolated values (float) where :attr:`after_resizing` holds."""
        if self.chain is None:
            return values.astype(np.float32)
        shown = shown_values(values, self.chain)
        return np.asarray(self.low + self.high - shown if self.invert else shown, dtype=np.float32)


def shown_values(values: NDArray[Any], chain: Dataset) -> NDArray[Any]:
    """Apply the modality LUT (or rescale), then the VOI LUT (or window), as pydicom does; no inversion."""
    shown: NDArray[Any] = apply_voi_lut(apply_modality_lut(values, chain), chain)
    return shown


@dataclass(frozen=True, eq=False)
class Image:
    """A decoded image.

    Attributes
    ----------
    pixels : (H, W) or (H, W, 3) integer array
        Stored values; colour is RGB. It may be smaller than the source where it was decoded at a reduced resolution.
    rendering : Rendering
        How stored values become display values.
    rows, columns : int, pixels
        Size of the source.
    spacing_mm : (float, float) or None
        Distance of the source's rows and of its columns; None where it is absent or not positive.
    media_type : str
        "application/dicom", "image/png" or "image/jpeg".
    sha256 : str
        Identity: for pictures of the file's bytes; for DICOM of the stored pixel data and of each attribute that affects how
        it is rendered or judged (``models.dicom_identity.JUDGED``).
    header : Dataset or None
        The DICOM file's standard top-level elements, without pixel data, sequences, private elements, overlays and whatever
        could not be read; a slide's PixelSpacing stands among them. None for pictures.
    extent : (float, float, float, float) or None
        Where the source's left, top, right and bottom edges lie in ``pixels`` (corner origin) after decoding at a reduced
        resolution; None where they are the edges of ``pixels``.
    region : (int, int, int, int) or None
        Of a whole slide: the part of it that ``pixels`` hold, in pixels of its total pixel matrix, which is what ``rows`` and
        ``columns`` are the size of. None for every other image.
    """

    pixels: NDArray[Any]
    rendering: Rendering
    rows: int
    columns: int
    spacing_mm: tuple[float, float] | None
    media_type: str
    sha256: str
    header: Dataset | None
    extent: tuple[float, float, float, float] | None = None
    region: Box | None = None

    def rendered(self) -> NDArray[np.float32]:
        """Return the display values, float32, (H, W) or (H, W, 3): all LUTs, the palette and the inversion applied."""
        return self.rendering.look_up(self.pixels)

    @cached_property
    def is_colour(self) -> bool:
        """Whether the image has colour, beyond noise and small marks."""
        shown: NDArray[Any] = self.pixels
        if self.rendering.table is not None and self.rendering.table.ndim == 2:
            shown = self.rendered()
        return shown.ndim == 3 and has_colour(shown, self.rendering.high - self.rendering.low)


def has_colour(rgb: NDArray[Any], span: float) -> bool:
    """Tell whether more than COLOUR_FRACTION of the pixels (H, W, 3) differ between channels.

    Parameters
    ----------
    rgb : (H, W, 3) array
    span : float
        Range of the values, to which COLOUR_DIFFERENCE refers.
    """
    coloured = 0
    for strip in np.array_split(rgb, max(1, rgb.shape[0] // 256)):
        # Planes against each other: a reduction along the short last axis takes ten times as long
        red, green, blue = np.moveaxis(strip, 2, 0)
        most, least = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
        difference = most.astype(np.float64) - least
        coloured += int(np.count_nonzero(difference > COLOUR_DIFFERENCE * span))
    return bool(coloured > COLOUR_FRACTION * rgb.shape[0] * rgb.shape[1])
