"""The drawn chest phantom."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pydicom
import pytest

from models.card import InputSpec
from models.example import FILE_NAME, chest_phantom, main
from models.imaging import read_image
from models.preprocess import check_accepted

SHA256 = "4584ee4b3caf58d33f1d94c8aebee65e10f90e2041c57d5d4bac60ebaa8742a8"


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


def test_the_command_writes_it_and_prints_where(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "new")]) == 0
    path = tmp_path / "new" / FILE_NAME
    assert capsys.readouterr().out == f"{path}\n"
    assert np.array_equal(read_image(path.read_bytes()).pixels, read_image(chest_phantom()).pixels)
