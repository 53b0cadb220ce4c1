"""Stored pixel data -> array, one decoder a transfer syntax, each checked against the image header first.

The codecs are chosen for speed and for releasing the GIL: imagecodecs' libjpeg-turbo (JPEG lossless and 12 bit), CharLS and
OpenJPEG; Pillow where less than the whole image is decoded. imagecodecs' OpenJPH would decode HTJ2K faster, but swallows
errors within a codestream, and wraps values that overshoot at a lower resolution.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from pydicom.pixels.processing import convert_color_space

from models.codestreams import Codestream, parse_jpeg, parse_jpeg2000, split_rle
from models.dicom_syntaxes import Syntax
from models.errors import Refusal
from models.image import Limits

Extent = tuple[float, float, float, float]


@dataclass(frozen=True)
class PixelHeader:
    """The attributes that describe the stored pixels, already checked against each other (``models.dicom_header``)."""

    rows: int
    columns: int
    samples: int
    photometric: str
    allocated: int
    stored: int
    signed: bool
    planar: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The array's type: native byte order, ``allocated`` bits."""
        return np.dtype(f"{'i' if self.signed else 'u'}{self.allocated // 8}")

    @property
    def native_bytes(self) -> int:
        """Length of the uncompressed pixel data, without its padding byte."""
        samples = 2 if self.photometric == "YBR_FULL_422" else self.samples
        return self.rows * self.columns * samples * self.allocated // 8


def decode_pixels(
    data: bytes | memoryview, syntax: Syntax, header: PixelHeader, overlaid: bool, target: tuple[int, int] | None, limits: Limits
) -> tuple[NDArray[Any], Extent | None]:
    """Decode one frame.

    Parameters
    ----------
    data : bytes or memoryview
        The stored pixel data: native without padding, or the frame's fragments joined.
    syntax, header
    overlaid : bool
        Overlays lie in the bits above BitsStored: mask them, instead of refusing them.
    target : (int, int) or None
        See :func:`models.imaging.read_image`.
    limits : Limits

    Returns
    -------
    pixels : (H, W) or (H, W, 3) integer array
        Within BitsStored. Colour as stored (RGB or YBR_FULL), except that the colour transforms which belong to a codestream
        (YBR_ICT, YBR_RCT, and YBR_FULL and YBR_FULL_422 in JPEG) are undone.
    extent : (float, float, float, float) or None
        See :class:`models.image.Image`.

    Raises
    ------
    Refusal
        ``inconsistent_image``, ``not_decodable``, ``unsupported_transfer_syntax`` or ``image_too_large``.
    """
    extent: Extent | None = None
    frame = data if isinstance(data, bytes) else b""  # only native data comes as a view
    if syntax.coding in ("native", "deflated"):
        pixels = _native(data, syntax, header)
    elif syntax.coding == "rle":
        pixels = _rle(frame, header)
    else:
        stream = parse_jpeg2000(frame) if syntax.coding == "jpeg2000" else parse_jpeg(frame)
        _check_codestream(stream, syntax, header)
        if syntax.coding == "jpeg2000":
            pixels, extent = _jpeg2000(frame, stream, header, target, limits)
        elif syntax.coding == "jpegls":
            pixels = imagecodecs.jpegls_decode(frame)
        else:
            pixels, extent = _jpeg(frame, stream, header, target)
    if header.samples != (pixels.shape[2] if pixels.ndim == 3 else 1):
        raise Refusal("inconsistent_image", "The pixel data has another number of samples than the header says.")
    if pixels.dtype != header.dtype:
        pixels = _as_stored(pixels, header)
    if overlaid:
        spare = header.allocated - header.stored
        return (pixels << spare) >> spare, extent  # arithmetic for signed values: their sign comes from the highest stored bit
    _check_range(pixels, header)
    return pixels, extent


def to_rgb(pixels: NDArray[Any], syntax: Syntax, header: PixelHeader) -> NDArray[Any]:
    """Turn what :func:`decode_pixels` has left as YBR_FULL into RGB; grey and RGB stay as they are."""
    if header.photometric.startswith("YBR_FULL") and syntax.coding != "jpeg":
        return np.asarray(convert_color_space(pixels, "YBR_FULL", "RGB"))
    return pixels


def _native(data: bytes | memoryview, syntax: Syntax, header: PixelHeader) -> NDArray[Any]:
    stored = np.frombuffer(data, header.dtype.newbyteorder(">" if syntax.big_endian else "<"))
    stored = stored.astype(header.dtype, copy=False)
    shape = (header.rows, header.columns)
    if header.photometric == "YBR_FULL_422":
        # Two pixels share their chroma: Y1 Y2 Cb Cr
        pairs = stored.reshape(-1, 4)
        return np.stack([pairs[:, [0, 2, 3]], pairs[:, [1, 2, 3]]], axis=1).reshape(*shape, 3)
    if header.samples == 1:
        return stored.reshape(shape)
    if header.planar == 1:
        return np.ascontiguousarray(stored.reshape(header.samples, *shape).transpose(1, 2, 0))
    return stored.reshape(*shape, header.samples)


def _rle(data: bytes, header: PixelHeader) -> NDArray[Any]:
    shape, width = (header.rows, header.columns), header.allocated // 8
    segments = split_rle(data, header.samples * width)
    samples = []
    for first in range(0, len(segments), width):
        sample: NDArray[Any] | None = None
        for segment in segments[first : first + width]:
            # The output's size is given, so that a bomb cannot unfold
            plane = imagecodecs.packbits_decode(segment, out=header.rows * header.columns)
            if len(plane) != header.rows * header.columns:
                raise Refusal("inconsistent_image", "The RLE data decodes to another size than the header says.")
            byte = np.frombuffer(plane, np.uint8)
            if sample is None:
                sample = byte.astype(f"u{width}")
            else:
                sample <<= 8
                sample |= byte
        assert sample is not None
        samples.append(sample.reshape(shape).view(header.dtype))
    return samples[0] if header.samples == 1 else np.stack(samples, axis=2)


def _check_codestream(stream: Codestream, syntax: Syntax, header: PixelHeader) -> None:
    if stream.family != syntax.coding or stream.process not in syntax.processes:
        raise Refusal("inconsistent_image", "The compressed pixel data is of another kind than the transfer syntax says.")
    if syntax.lossless and not stream.lossless:
        raise Refusal("inconsistent_image", "The compressed pixel data is lossy, the transfer syntax lossless.")
    if syntax.predictor and stream.predictor != syntax.predictor:
        raise Refusal("inconsistent_image", "The JPEG predictor is not the transfer syntax's.")
    if (stream.rows, stream.columns) != (header.rows, header.columns):
        raise Refusal("inconsistent_image", "The compressed pixel data has another size than the header says.")
    if stream.components != header.samples:
        raise Refusal("inconsistent_image", "The compressed pixel data has another number of samples than the header says.")
    # Lossless codestreams may leave bits unused, if the values do
    exact = stream.family == "jpeg" and not stream.lossless
    if not header.stored <= stream.precision <= (header.stored if exact else header.allocated):
        raise Refusal("inconsistent_image", "The compressed pixel data has another precision than the header says.")
    transformed = {"YBR_RCT": True, "YBR_ICT": True, "YBR_FULL": False}.get(header.photometric, stream.colour_transform)
    if stream.family == "jpeg2000" and stream.colour_transform != transformed:
        raise Refusal("inconsistent_image", "The codestream's colour transform is not the photometric interpretation's.")
    if stream.family == "jpeg2000" and stream.signed != header.signed:
        raise Refusal("inconsistent_image", "The compressed pixel data and the header disagree on signed values.")
    if stream.family == "jpeg" and not stream.lossless and header.signed and stream.precision < header.allocated:
        raise Refusal("unsupported_transfer_syntax", "Signed values in lossy JPEG are not read here.")


def _jpeg(
    data: bytes, stream: Codestream, header: PixelHeader, target: tuple[int, int] | None
) -> tuple[NDArray[Any], Extent | None]:
    if stream.lossless or stream.precision != 8:
        if header.samples == 3 and header.photometric != "RGB":
            raise Refusal("unsupported_transfer_syntax", "Colour in lossless or 12-bit JPEG is read as RGB only.")
        # Naming the same colour space twice keeps libjpeg from converting
        space = "RGB" if header.samples == 3 else None
        pixels: NDArray[Any] = imagecodecs.jpeg8_decode(data, colorspace=space, outcolorspace=space)
        return pixels, None
    source = JpegImageFile(io.BytesIO(data))
    if header.samples == 3:
        transformed = header.photometric != "RGB"
        marked = stream.adobe is not None or stream.rgb
        if marked and transformed == (stream.rgb or stream.adobe == 0):
            raise Refusal("inconsistent_image", "The JPEG's colour transform is not the photometric interpretation's.")
        if not marked and not transformed:
            # Without the marker libjpeg takes RGB for YCbCr; asking for YCbCr makes it hand on what is stored
            source.draft("YCbCr", source.size)
    return np.asarray(source), reduce_jpeg(source, target)


def reduce_jpeg(source: JpegImageFile, target: tuple[int, int] | None) -> Extent | None:
    """Have a JPEG decoded at 1/2, 1/4 or 1/8 of its size, at least twice ``target``; return where its edges then lie."""
    if target is None:
        return None
    reduced = source.draft(None, (2 * target[1], 2 * target[0]))  # None keeps the mode
    return None if reduced is None else (0.0, 0.0, *reduced[1][2:])


def _jpeg2000(
    data: bytes, stream: Codestream, header: PixelHeader, target: tuple[int, int] | None, limits: Limits
) -> tuple[NDArray[Any], Extent | None]:
    reduction = 0
    # Values above BitsStored can only be told at full resolution, so an over-precise codestream is decoded whole. Pillow,
    # which alone decodes less of a JPEG 2000, cuts colour of more than 8 bits, and knows no grey of more than 16
    depth = 8 if header.samples == 3 else 16
    if target is not None and stream.precision == header.stored <= depth:
        spare = min(header.rows // (2 * target[0]), header.columns // (2 * target[1]))
        reduction = min(stream.levels, max(spare, 1).bit_length() - 1)
    if header.rows * header.columns * header.samples >> 2 * reduction > limits.max_wavelet_pixels:
        raise Refusal("image_too_large", "The JPEG 2000 image has more pixels than the limit.")
    if reduction == 0:
        return imagecodecs.jpeg2k_decode(data), None
    source = Jpeg2KImageFile(io.BytesIO(data))
    source.reduce = reduction  # the plugin's attribute, read by load()
    # load() divides the size and rounds it to the nearest, where the decoder rounds up: a multiple leaves nothing to round
    step = 1 << reduction
    source._size = (-(-header.columns // step) * step, -(-header.rows // step) * step)
    pixels = np.asarray(source)
    # Pillow makes the values unsigned and scales them to fill 8 or 16 bits: undone here, exactly, by shifting back
    pixels = pixels >> (pixels.dtype.itemsize * 8 - stream.precision)
    return _aligned(pixels.astype(np.int32) - (1 << stream.precision - 1) if stream.signed else pixels, header, reduction)


def _aligned(pixels: NDArray[Any], header: PixelHeader, reduction: int) -> tuple[NDArray[Any], Extent]:
    """Say where the source's edges lie in a lower resolution of a wavelet transform.

    Its samples sit on every 2^n-th pixel, beginning with the first, not in the middle of 2^n pixels (T.800 annex F). The
    source therefore ends up to half a sample beyond the last one, which is repeated.
    """
    pixels = np.pad(pixels, ((0, 1), (0, 1), (0, 0))[: pixels.ndim], mode="edge")
    step = 1 << reduction
    first = 0.5 - 0.5 / step
    return pixels, (first, first, header.columns / step + first, header.rows / step + first)


def _as_stored(pixels: NDArray[Any], header: PixelHeader) -> NDArray[Any]:
    if pixels.dtype.kind == "u" and header.signed and pixels.dtype.itemsize == header.dtype.itemsize:
        return pixels.view(header.dtype)  # JPEG and JPEG-LS know no sign: the bits are two's complement
    return pixels.astype(header.dtype)


def _check_range(pixels: NDArray[Any], header: PixelHeader) -> None:
    if header.stored == header.allocated:
        return
    low, high = (-(1 << header.stored - 1), (1 << header.stored - 1) - 1) if header.signed else (0, (1 << header.stored) - 1)
    if pixels.max() > high or (header.signed and pixels.min() < low):
        raise Refusal("inconsistent_image", "Pixel values need more bits than BitsStored.")
