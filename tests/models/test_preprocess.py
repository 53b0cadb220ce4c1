"""From image to tensor: acceptance, resizing, intensities, and the way back to original pixels."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image as Pillow

from models.card import InputSpec
from models.example import chest_phantom, draw_chest
from models.imaging import read_image
from models.preprocess import preprocess, resize
from tests.models.dicom_files import compressed, dicom, ramp

BEFORE_AFTER = {"mean": 0.005, "p99": 0.05}
"""Windowing before or after resizing: largest mean and 99th percentile of the tensor's difference, of a range of 1."""
REDUCED = {"mean": 0.005, "p99": 0.02}
"""The same for decoding at a reduced resolution, of grey images of the kind that the models take."""


def spec(**changes: Any) -> InputSpec:
    fields: dict[str, Any] = {
        "channels": 1,
        "height": 64,
        "width": 64,
        "intensity": "percentile",
        "low": 1.0,
        "high": 99.0,
        "mean": 0.0,
        "std": 1.0,
        "modalities": ("CR", "DX"),
        "body_parts": ("CHEST",),
        "views": ("PA", "AP"),
        "age_years": (18.0, 90.0),
        "min_side": 8,
    }
    return InputSpec(**{**fields, **changes})


def picture(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, kind)
    return file.getvalue()


def differences(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    difference = np.abs(a - b)
    return {"mean": float(difference.mean()), "p99": float(np.quantile(difference, 0.99))}


def test_shapes_types_and_range() -> None:
    for channels in (1, 3):
        tensor = preprocess(read_image(dicom(ramp(100, 80), 12)), spec(channels=channels, height=32, width=48))
        assert tensor.shape == (1, channels, 32, 48)
        assert tensor.dtype == np.float32
        assert tensor.flags.c_contiguous
        assert (tensor.min(), tensor.max()) == (0, 1)


def test_percentiles_become_zero_and_one_then_mean_and_std() -> None:
    pixels = ramp(64, 64, 8)
    tensor = preprocess(read_image(picture(pixels)), spec(low=10, high=90, mean=0.5, std=0.25))
    low, high = np.percentile(pixels.astype(float), [10, 90])
    assert np.allclose(tensor[0, 0], (np.clip((pixels - low) / (high - low), 0, 1) - 0.5) / 0.25, atol=1e-5)


def test_percentiles_cancel_brightness_and_contrast() -> None:
    pixels = ramp(64, 64, 12)
    one = preprocess(read_image(dicom(pixels, 12)), spec())
    other = preprocess(read_image(dicom((pixels // 2 + 500).astype(np.uint16), 12)), spec())
    assert np.abs(one - other).max() < 0.002


def test_full_range_divides_by_255() -> None:
    grey = ramp(64, 64, 8)
    colour = np.stack([grey, grey[::-1], grey.T], axis=2)
    tensor = preprocess(read_image(picture(colour)), spec(channels=3, intensity="full_range"))
    assert np.allclose(tensor[0].transpose(1, 2, 0), colour / 255, atol=1e-6)


def test_colour_becomes_grey_by_luminance() -> None:
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 200
    tensor = preprocess(read_image(picture(red)), spec(intensity="full_range"))
    assert np.allclose(tensor, 0.299 * 200 / 255, atol=1e-5)


def test_a_constant_image_is_zero() -> None:
    tensor = preprocess(read_image(picture(np.full((64, 64), 7, np.uint8))), spec())
    assert np.isfinite(tensor).all()
    assert np.abs(tensor).max() == 0


def test_monochrome1_is_inverted() -> None:
    pixels = ramp(64, 64, 12)
    straight = preprocess(read_image(dicom(pixels, 12)), spec())
    inverted = preprocess(read_image(dicom(4095 - pixels, 12, "MONOCHROME1")), spec())
    assert np.abs(straight - inverted).max() < 1e-3


def test_resizing_is_antialiased() -> None:
    """Stripes finer than the new pixels become their mean; nearest neighbours would keep some of them."""
    stripes = np.tile(np.array([0, 1000], np.uint16), (512, 256))
    assert np.abs(resize(stripes, 64, 64) - 500).max() < 20
    assert np.abs(stripes[4::8, 4::8] - 500.0).max() == 500


def test_resizing_takes_an_extent() -> None:
    values = np.arange(100, dtype=np.float32).reshape(10, 10)
    assert np.allclose(resize(values, 4, 4, (2, 2, 6, 6)), values[2:6, 2:6])


def test_windowing_before_and_after_resizing_agree() -> None:
    image = read_image(chest_phantom())
    narrow = read_image(dicom(draw_chest(), 12, WindowCenter=2200, WindowWidth=2400, RescaleSlope=1, RescaleIntercept=0))
    for each in (image, narrow):
        assert each.rendering.after_resizing
        wanted = spec(intensity="full_range", height=224, width=224)
        after = preprocess(each, wanted)
        shown = resize(each.rendered(), 224, 224)
        before = (shown - each.rendering.low) / (each.rendering.high - each.rendering.low)
        found = differences(after[0, 0], before)
        assert all(found[name] <= bound for name, bound in BEFORE_AFTER.items()), found
    nearest = narrow.rendered()[2::5, 2::5][:204, :204]
    assert differences(resize(nearest, 224, 224) / 4095, before)["p99"] > BEFORE_AFTER["p99"]  # control: aliasing exceeds it


def test_real_x_rays_are_the_same_before_and_after(data_root: Path) -> None:
    for name in ("RG1_J2KI.dcm", "RG3_J2KI.dcm"):
        image = read_image((data_root / "dicom" / name).read_bytes())
        after = preprocess(image, spec(intensity="full_range", height=224, width=224))
        before = (resize(image.rendered(), 224, 224) - image.rendering.low) / (image.rendering.high - image.rendering.low)
        found = differences(after[0, 0], before)
        assert all(found[key] <= bound for key, bound in BEFORE_AFTER.items()), (name, found)


def test_tables_are_applied_before_resizing() -> None:
    """A look-up table that is not monotone: interpolating its input would give values it never shows."""
    pixels = np.tile(np.array([0, 200], np.uint8), (64, 64))
    lut = np.zeros(256, int)
    lut[100] = 255
    image = read_image(dicom(pixels, VOILUTSequence=[voi_lut(lut)]))
    assert not image.rendering.after_resizing
    tensor = preprocess(image, spec(intensity="full_range", height=32, width=32))
    assert tensor.max() == 0


def voi_lut(values: np.ndarray) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.LUTDescriptor = [len(values), 0, 8]
    item.LUTData = [int(value) for value in values]
    item["LUTData"].VR = "US"
    return item


# Reduced resolution


def large(kind: str) -> bytes:
    pixels = np.kron(draw_chest(), np.ones((2, 2), np.uint16))[:2041, :1999]
    if kind == "png":
        return picture((pixels >> 4).astype(np.uint8))
    if kind == "jpeg":
        return picture((pixels >> 4).astype(np.uint8), "JPEG")
    lossy = {"level": 60, "reversible": False} if kind == "j2k lossy" else {"level": 0, "reversible": True}
    if kind == "htj2k":
        stream = imagecodecs.htj2k_encode(pixels, reversible=True)
        return compressed(stream, "1.2.840.10008.1.2.4.201", pixels, 16)
    stream = imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", bitspersample=12, **lossy)
    return compressed(stream, f"1.2.840.10008.1.2.4.{91 if lossy['level'] else 90}", pixels, 12)


@pytest.mark.parametrize("kind", ["jpeg", "j2k", "j2k lossy", "htj2k"])
@pytest.mark.parametrize("size", [64, 224])
def test_a_reduced_resolution_gives_the_same_tensor(kind: str, size: int) -> None:
    data = large(kind)
    wanted = spec(height=size, width=size)
    whole, reduced = read_image(data), read_image(data, target=(size, size))
    assert reduced.pixels.shape[0] < 0.6 * whole.pixels.shape[0]
    assert (reduced.rows, reduced.columns) == (2041, 1999)
    found = differences(preprocess(whole, wanted), preprocess(reduced, wanted))
    assert all(found[name] <= bound for name, bound in REDUCED.items()), found


def test_a_reduced_resolution_that_is_not_aligned_is_noticed() -> None:
    """Control: without the extent, the lower resolution lies (2^n - 1) / 2 pixels off, and the tolerance sees it."""
    from dataclasses import replace

    data, wanted = large("j2k"), spec()
    one = preprocess(read_image(data), wanted)
    off = preprocess(replace(read_image(data, target=(64, 64)), extent=None), wanted)
    found = differences(one, off)
    assert found["mean"] > 0.006 or found["p99"] > REDUCED["p99"], found


def test_real_jpeg_2000_x_rays_at_a_reduced_resolution(data_root: Path) -> None:
    """15 bits and 10 bits: Pillow scales such values, which must be undone."""
    for name in ("RG1_J2KI.dcm", "RG3_J2KI.dcm", "RG3_J2KR.dcm"):
        data = (data_root / "dicom" / name).read_bytes()
        whole, reduced = read_image(data), read_image(data, target=(224, 224))
        assert reduced.pixels.size < whole.pixels.size / 3
        assert abs(float(reduced.pixels.mean()) - float(whole.pixels.mean())) < 0.002 * whole.rendering.high
        found = differences(preprocess(whole, spec(height=224, width=224)), preprocess(reduced, spec(height=224, width=224)))
        assert all(found[key] <= bound for key, bound in REDUCED.items()), (name, found)


# Where it lies


@pytest.mark.parametrize("kind", ["png", "jpeg", "j2k"])
def test_a_mark_is_found_where_it_was_drawn(kind: str) -> None:
    """A bright disc around a known position: its centroid in the tensor, scaled back, is that position within a pixel."""
    rows, columns, x, y = 1201, 801, 600.5, 300.5
    grid_y, grid_x = np.mgrid[0:rows, 0:columns] + 0.5
    disc = (np.hypot(grid_x - x, grid_y - y) < 40) * np.uint8(200)
    if kind == "j2k":
        deep = disc.astype(np.uint16) * 16
        stream = imagecodecs.jpeg2k_encode(deep, level=0, codecformat="j2k", reversible=True, bitspersample=12)
        data = compressed(stream, "1.2.840.10008.1.2.4.90", deep, 12)
    else:
        data = picture(disc, kind.upper())
    tensor = preprocess(read_image(data, target=(96, 128)), spec(height=96, width=128, intensity="full_range"))
    weights = np.clip(tensor[0, 0] - 0.02, 0, None)
    tensor_y, tensor_x = np.mgrid[0:96, 0:128] + 0.5
    centroid = np.array([(weights * tensor_x).sum(), (weights * tensor_y).sum()]) / weights.sum()
    assert (centroid * (columns / 128, rows / 96)).tolist() == pytest.approx([x, y], abs=1)


def test_training_images_are_quick() -> None:
    """3 ms for a 256 x 256 JPEG; ten times looser here, and of processor time, which a noisy machine does not stretch."""
    data = picture((draw_chest()[::4, ::4] >> 4).astype(np.uint8), "JPEG")
    wanted = spec(height=224, width=224)
    preprocess(read_image(data, target=(224, 224)), wanted)
    times = []
    for _ in range(5):
        start = time.process_time()
        preprocess(read_image(data, target=(224, 224)), wanted)
        times.append(time.process_time() - start)
    assert min(times) < 0.03
