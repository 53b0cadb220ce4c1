"""An image as a plain picture and back: what is kept of a scan has its pixels as they are shown, and no header."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngImageFile

from models.image import Image, Rendering

FAST = 1
"""zlib's level. A radiograph takes a tenth more room than at the usual level, in a quarter of the time."""


@dataclass(frozen=True)
class Picture:
    """A rendered image.

    Attributes
    ----------
    pixels : (rows, columns) uint8 or uint16, or (rows, columns, 3) uint8 array
    window : (float, float) or None
        Display values that 0 and the largest value of ``pixels`` stand for; None where these are display values already.
    """

    pixels: NDArray[Any]
    window: tuple[float, float] | None

    @property
    def bits(self) -> int:
        """8 or 16."""
        return 8 * self.pixels.dtype.itemsize

    def png(self) -> bytes:
        """Return a PNG without any text, time or profile."""
        stream = BytesIO()
        Pillow.fromarray(self.pixels).save(stream, format="PNG", compress_level=FAST)
        return stream.getvalue()


def render(image: Image) -> Picture:
    """Render an image that was decoded whole.

    Grey is kept in 8 bits where nothing is lost by it, else in 16: all tables, the window and the inversion are applied, and the
    range of possible display values is spread over 0..65535. Colour is kept in 8 bits a channel.
    """
    if image.pixels.shape[:2] != (image.rows, image.columns):
        raise ValueError("the image was decoded at a reduced resolution")
    how = image.rendering
    if how.chain is None and how.table is None and image.pixels.ndim == 2:  # a PNG or JPEG: display values already
        return Picture(image.pixels, None)
    shown = image.rendered()
    if shown.ndim == 3:
        return Picture(_spread(shown, how, 255).astype(np.uint8), None)
    eight = image.pixels.dtype.itemsize == 1 and how.high - how.low == 255
    if eight and np.abs(shown - np.rint(shown)).max() < 1e-3:
        return Picture(_spread(shown, how, 255).astype(np.uint8), (how.low, how.high))
    return Picture(_spread(shown, how, 65535).astype(np.uint16), (how.low, how.high))


def _spread(shown: NDArray[np.float32], how: Rendering, largest: int) -> NDArray[np.float32]:
    """Spread the possible display values over 0..largest, rounded."""
    scaled = (shown - np.float32(how.low)) * np.float32(largest / (how.high - how.low))
    return np.asarray(np.rint(np.clip(scaled, 0, largest)))


def restore(png: bytes, **source: Any) -> Image:
    """Read a picture that :meth:`Picture.png` wrote.

    Parameters
    ----------
    png : bytes
    **source
        ``spacing_mm``, ``media_type``, ``sha256`` and ``header`` of the image that was rendered.

    Returns
    -------
    Image
        What it gives as a tensor is what the original gives, but for the rounding, and for where the original was decoded at a
        reduced resolution or its window was applied after resizing.
    """
    with PngImageFile(BytesIO(png)) as stored:
        pixels = np.asarray(stored)
    largest = 65535 if pixels.dtype == np.uint16 else 255
    return Image(pixels, Rendering(0, largest), *pixels.shape[:2], **source)
