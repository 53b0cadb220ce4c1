"""The drawn chest and the drawn tissue."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from scipy import ndimage

from models.card import InputSpec
from models.example import (
    FILE_NAME,
    NUCLEI,
    TISSUE_COLUMNS,
    TISSUE_NAME,
    TISSUE_ROWS,
    chest_phantom,
    draw_tissue,
    main,
    tissue_phantom,
)
from models.imaging import read_image
from models.preprocess import check_accepted

SHA256 = "4584ee4b3caf58d33f1d94c8aebee65e10f90e2041c57d5d4bac60ebaa8742a8"
TISSUE_SHA256 = "ffd1c565dc62ff332cce583ba9f4a20a19618b7363f440675b2f7dad5348a793"


def test_it_is_a_valid_frontal_chest_x_ray() -> None:
    dataset = pydicom.dcmread(io.BytesIO(chest_phantom()))
    assert (dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition) == ("DX", "CHEST", "PA")
    assert (dataset.BitsAllocated, dataset.BitsStored, dataset.PhotometricInterpretation) == (16, 12, "MONOCHROME2")
    assert all(uid.startswith("2.25.") for uid in (dataset.SOPInstanceUID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID))
    assert dataset.pixel_array.max() <= 4095
    image = read_image(chest_phantom())
    assert image.spacing_mm == (0.35, 0.35)
    spec = InputSpec(
        channels=1,
        height=64,
        width=64,
        intensity="percentile",
        low=1,
        high=99,
        mean=0,
        std=1,
        modalities=("CR", "DX"),
        body_parts=("CHEST",),
        views=("PA", "AP"),
        age_years=(18, 90),
        min_side=256,
    )
    assert [code for code, _ in check_accepted(image, spec)] == ["phantom"]


def test_lungs_are_dark_and_the_spine_is_bright() -> None:
    shown = read_image(chest_phantom()).rendered()
    lung, spine, air = shown[450:550, 300:360], shown[450:550, 500:524], shown[:40, :40]
    assert air.mean() < lung.mean() < 0.6 * spine.mean()


def test_its_bytes_are_always_the_same() -> None:
    assert hashlib.sha256(chest_phantom()).hexdigest() == SHA256


def test_tissue_has_dark_nuclei_on_pink() -> None:
    image = read_image(tissue_phantom())
    assert (image.rows, image.columns) == (TISSUE_ROWS, TISSUE_COLUMNS)
    assert image.is_colour
    red, green, blue = np.moveaxis(image.pixels.astype(int), 2, 0)
    nuclei = ndimage.binary_opening(red < 150, iterations=2)
    assert (blue > green)[nuclei].mean() > 0.99  # haematoxylin is blue
    assert (red > green)[~nuclei].mean() > 0.9  # eosin is pink
    assert 0.05 < nuclei.mean() < 0.3
    _, separate = ndimage.label(nuclei)
    assert NUCLEI / 3 < separate < NUCLEI  # some touch


def test_tissue_has_always_the_same_pixels() -> None:
    assert hashlib.sha256(draw_tissue().tobytes()).hexdigest() == TISSUE_SHA256
    assert np.array_equal(read_image(tissue_phantom()).pixels, draw_tissue())


def test_the_command_writes_both_and_prints_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "new")]) == 0
    chest, tissue = tmp_path / "new" / FILE_NAME, tmp_path / "new" / TISSUE_NAME
    assert capsys.readouterr().out == f"{chest}\n{tissue}\n"
    assert np.array_equal(read_image(chest.read_bytes()).pixels, read_image(chest_phantom()).pixels)
    assert np.array_equal(read_image(tissue.read_bytes()).pixels, draw_tissue())
