"""PNG and JPEG, media types, and the one place where readers' exceptions become refusals."""

from __future__ import annotations

import hashlib
import io
import logging
import threading
import warnings

import numpy as np
import pydicom
import pytest
from PIL import Image as Pillow

import models.imaging
from models.errors import Refusal
from models.image import Limits
from models.imaging import read_image, sniff
from tests.models.dicom_files import dicom, ramp


def picture(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Pillow.Image) else Pillow.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


GREY = ramp(40, 60, 8)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=2)


@pytest.mark.parametrize(
    ("data", "media_type"),
    [(picture(GREY), "image/png"), (picture(GREY, "JPEG"), "image/jpeg"), (dicom(ramp(), 12), "application/dicom")],
)
def test_the_media_type_is_told_from_the_bytes(data: bytes, media_type: str) -> None:
    assert sniff(data) == media_type
    assert read_image(data).media_type == media_type


@pytest.mark.parametrize("data", [b"", b"%PDF-1.7", picture(GREY, "GIF"), picture(GREY, "TIFF"), dicom(ramp(), 12)[128:]])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(Refusal, match="not_decodable"):
        sniff(data)
    with pytest.raises(Refusal, match="not_decodable"):
        read_image(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_grey_is_read_as_grey(kind: str) -> None:
    data = picture(GREY, kind)
    image = read_image(data)
    assert image.pixels.shape == (40, 60)
    assert (image.rows, image.columns, image.header, image.spacing_mm) == (40, 60, None, None)
    assert not image.is_colour
    assert image.sha256 == hashlib.sha256(data).hexdigest()
    assert np.abs(image.rendered() - GREY).max() <= (0 if kind == "PNG" else 4)


def test_sixteen_bits_stay_sixteen_bits() -> None:
    deep = (ramp(40, 60, 12) * 16).astype(np.uint16)
    image = read_image(picture(deep))
    assert image.pixels.dtype == np.uint16
    assert np.array_equal(image.pixels, deep)
    assert image.rendering.high == 65535


def test_colour_is_read_as_rgb() -> None:
    image = read_image(picture(COLOUR))
    assert np.array_equal(image.pixels, COLOUR)
    assert image.is_colour


def test_equal_and_nearly_equal_channels_are_grey() -> None:
    noise = np.random.default_rng(0).integers(-3, 4, (40, 60, 3))
    nearly = np.clip(GREY[:, :, None].astype(int) + noise, 0, 255).astype(np.uint8)
    for pixels in (np.repeat(GREY[:, :, None], 3, axis=2), nearly):
        image = read_image(picture(pixels))
        assert image.pixels.ndim == 2
        assert np.abs(image.pixels.astype(int) - GREY).max() <= 3
    assert read_image(picture(np.repeat(GREY[:, :, None], 3, axis=2), "JPEG")).pixels.ndim == 2


def test_a_small_coloured_mark_leaves_an_image_grey() -> None:
    marked = np.repeat(ramp(100, 100, 8)[:, :, None], 3, axis=2).copy()
    marked[:2, :4] = (255, 0, 0)
    assert not read_image(picture(marked)).is_colour
    marked[:20, :20] = (255, 0, 0)
    assert read_image(picture(marked)).is_colour


def test_transparency_lies_on_black() -> None:
    alpha = np.zeros_like(GREY)
    alpha[:, :30] = 255
    image = read_image(picture(np.dstack([GREY, GREY, GREY, alpha])))
    assert np.array_equal(image.pixels[:, :30], GREY[:, :30])
    assert image.pixels[:, 30:].max() == 0
    grey = Pillow.merge("LA", [Pillow.fromarray(GREY), Pillow.fromarray(alpha)])
    assert np.array_equal(read_image(picture(grey)).pixels, image.pixels)


def test_a_palette_becomes_colour() -> None:
    palette = Pillow.fromarray(COLOUR).quantize(64)
    image = read_image(picture(palette))
    assert np.array_equal(image.pixels, np.asarray(palette.convert("RGB")))
    assert image.is_colour
    assert read_image(picture(Pillow.fromarray(GREY > 100))).pixels.tolist() == ((GREY > 100) * 255).tolist()


def test_cmyk_becomes_rgb() -> None:
    image = read_image(picture(Pillow.fromarray(COLOUR).convert("CMYK"), "JPEG", quality=95))
    assert image.pixels.shape == (40, 60, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_exif_orientation_is_applied(kind: str) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    image = read_image(picture(GREY, kind, exif=exif), target=(5, 5))
    assert (image.rows, image.columns) == image.pixels.shape == (60, 40)
    assert np.abs(image.pixels.astype(int) - np.rot90(GREY, -1)).max() < 6


def test_a_large_jpeg_is_decoded_at_a_reduced_resolution() -> None:
    data = picture(ramp(803, 1201, 8), "JPEG")
    image = read_image(data, target=(100, 100))
    assert image.pixels.shape == (201, 301)
    assert (image.rows, image.columns) == (803, 1201)
    assert image.extent == (0, 0, 300.25, 200.75)
    assert read_image(data).pixels.shape == (803, 1201)
    assert read_image(data).extent is None


def test_an_animated_png_is_several_frames() -> None:
    frames = [Pillow.fromarray(GREY), Pillow.fromarray(GREY[::-1])]
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(Refusal, match="multi_frame"):
        read_image(file.getvalue())


def test_the_limit_holds_before_decoding() -> None:
    with pytest.raises(Refusal, match="image_too_large"):
        read_image(picture(GREY), limits=Limits(max_pixels=2399))
    assert read_image(picture(GREY), limits=Limits(max_pixels=2400)).rows == 40
    with pytest.raises(Refusal, match="image_too_large"):
        read_image(dicom(ramp(), 12), limits=Limits(max_pixels=767))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damaged_pictures_are_refused_or_read(kind: str) -> None:
    data = picture(COLOUR, kind)
    random = np.random.default_rng(5)
    refused = 0
    for _ in range(400):
        spoiled = bytearray(data)
        for where in random.integers(8, len(data), 3):
            spoiled[where] = random.integers(0, 256)
        try:
            read_image(bytes(spoiled[: random.integers(20, len(data) + 1)]))
        except Refusal as refusal:
            refused += refusal.code in ("not_decodable", "image_too_large", "multi_frame")
    assert refused > 200


def test_whatever_a_reader_raises_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (IndexError("canary"), KeyError("canary"), RecursionError("canary"), MemoryError("canary")):

        def broken(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(models.imaging, "read_dicom", broken)
        with pytest.raises(Refusal) as refused:
            read_image(dicom(ramp(), 12))
        assert refused.value.code == ("image_too_large" if isinstance(error, MemoryError) else "not_decodable")
        assert "canary" not in str(refused.value)


def test_an_interrupt_is_not_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(models.imaging, "read_dicom", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_image(dicom(ramp(), 12))


def test_readers_are_silent(caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder) -> None:
    """pydicom quotes values in its warnings and log lines; a name must not get into either."""
    bad = dicom(ramp(), 12).replace(b"ID-1", b"\xff\xfe\xfd\xfc").replace(b"2.25.1", b"2.2x.1")
    with caplog.at_level(logging.DEBUG):
        read_image(bad)
    assert caplog.records == []
    assert not recwarn.list


def test_silence_holds_in_threads_under_warnings_as_errors() -> None:
    """With catch_warnings, which restores a list that all threads share, some of these would raise."""
    data = dicom(ramp(), 12).replace(b"2.25.1", b"2.2x.1")
    raised: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                assert read_image(data).header is not None
        except BaseException as error:  # noqa: BLE001  # to be looked at in the test's thread
            raised.append(error)

    with pytest.raises(UserWarning):  # control: there is something to be silent about
        _ = pydicom.dcmread(io.BytesIO(data)).SOPInstanceUID
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raised == []


def test_other_warnings_are_still_errors() -> None:
    """Control: only the readers are silenced."""
    read_image(dicom(ramp(), 12))
    with pytest.raises(UserWarning, match="heard"):
        warnings.warn("heard", stacklevel=1)
