"""Any bytes -> :class:`~models.image.Image`: tell the media type, read PNG and JPEG here, hand DICOM on."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from models.codestreams import MAX_SCANS
from models.dicom import read_dicom
from models.dicom_pixels import reduce_jpeg
from models.errors import Refusal
from models.image import Box, Image, Limits, Rendering, has_colour
from models.quiet import silence_readers

__all__ = ["MEDIA_TYPES", "Image", "Limits", "read_image", "sniff"]

MEDIA_TYPES = ("application/dicom", "image/png", "image/jpeg")
DEFAULT_LIMITS = Limits()


def sniff(data: bytes) -> str:
    """Tell the media type from the first bytes.

    Returns
    -------
    str
        One of MEDIA_TYPES.

    Raises
    ------
    Refusal
        ``not_decodable`` if the bytes begin like none of them.
    """
    if data[128:132] == b"DICM":
        return "application/dicom"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    raise Refusal("not_decodable", "The bytes are neither a DICOM file (with its preamble) nor a PNG nor a JPEG.")


def read_image(
    data: bytes, *, target: tuple[int, int] | None = None, region: Box | None = None, limits: Limits = DEFAULT_LIMITS
) -> Image:
    """Decode an image.

    Parameters
    ----------
    data : bytes
        A DICOM, PNG or JPEG file.
    target : (int, int) or None
        Height and width that are needed. JPEG and JPEG 2000 may then be decoded at a reduced resolution, at least twice the
        target in both directions (where the source is); None decodes everything.
    region : (int, int, int, int) or None
        x, y, width, height of the part of a whole slide to decode, at full resolution; of other images everything is.
    limits : Limits
        What is decoded at most.

    Returns
    -------
    Image

    Raises
    ------
    Refusal
        With a code; whatever the decoders raise on malformed bytes becomes ``not_decodable``.
    """
    media_type = sniff(data)
    with refusing():
        if media_type == "application/dicom":
            return read_dicom(data, target, limits, region)
        return _read_picture(data, media_type, target, limits)


@contextmanager
def refusing() -> Iterator[None]:
    """Turn whatever the readers raise into a Refusal, and keep them silent: their messages quote the file."""
    silence_readers()
    try:
        yield
    except Refusal:
        raise
    except MemoryError as error:
        raise Refusal("image_too_large", "The image needs more memory than there is.") from error
    # Mutated files make pydicom, Pillow and the codecs raise more than a dozen exception types, IndexError, KeyError,
    # struct.error and RecursionError among them: there is no shorter list of what bad bytes can cause.
    except Exception as error:  # noqa: BLE001
        if isinstance(error.__context__, Refusal):  # raised by what pydicom read from, and wrapped by it
            raise error.__context__ from None
        raise Refusal("not_decodable", f"The file is malformed ({type(error).__name__}).") from None


def _read_picture(data: bytes, media_type: str, target: tuple[int, int] | None, limits: Limits) -> Image:
    # The plugin classes are named: Image.open would try others too, and turns some JPEGs into multi-picture files
    source: ImageFile = (PngImageFile if media_type == "image/png" else JpegImageFile)(io.BytesIO(data))
    if source.width * source.height * len(source.getbands()) > limits.max_pixels:
        raise Refusal("image_too_large")
    if getattr(source, "n_frames", 1) > 1:
        raise Refusal("multi_frame")
    if media_type == "image/jpeg" and data.count(b"\xff\xda") > MAX_SCANS:
        raise Refusal("not_decodable", "The JPEG has too many scans.")
    orientation = source.getexif().get(0x0112, 1)
    rows, columns = (source.width, source.height) if orientation in (5, 6, 7, 8) else (source.height, source.width)
    # Decoding less leaves part of a pixel at the right and lower edge, so turned pictures are decoded whole
    extent = reduce_jpeg(source, target) if isinstance(source, JpegImageFile) and orientation == 1 else None
    picture = _without_alpha(ImageOps.exif_transpose(source))
    pixels = np.asarray(picture)
    if pixels.ndim == 3 and not has_colour(pixels, 255):
        pixels = np.asarray(picture.convert("L"))
    high = 65535 if pixels.dtype == np.uint16 else 255
    digest = hashlib.sha256(data).hexdigest()
    return Image(pixels, Rendering(0, high), rows, columns, None, media_type, digest, None, extent)


def _without_alpha(picture: Pillow.Image) -> Pillow.Image:
    """Convert to L, I;16 or RGB; transparency is laid on black, the background of an X-ray."""
    if picture.mode in ("L", "I;16", "RGB") and "transparency" not in picture.info:
        return picture
    if picture.mode == "I;16B":
        return picture.convert("I;16")
    if picture.has_transparency_data and picture.mode != "I;16":
        layer = picture.convert("RGBA")
        return Pillow.alpha_composite(Pillow.new("RGBA", layer.size, (0, 0, 0, 255)), layer).convert("RGB")
    return picture if picture.mode == "I;16" else picture.convert("L" if picture.mode == "1" else "RGB")
