"""What a package says of a folder's images: predicted once, kept as it comes, the same when it is taken from what was kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import Refusal
from models.imaging import read_image
from models.predictor import Predictor
from models.seen import Seen, folder_of, look_at_all, patient_of, predictions
from tests.models.dicom_files import DEFLATED, dataset, dicom, ramp, written


@pytest.fixture
def predictor(package: Path) -> Predictor:
    return Predictor.load(package)


@pytest.fixture
def scans(tmp_path: Path, draw: Callable[..., bytes]) -> Path:
    """Pictures and DICOM files: two of one patient, one of another issuer's, one without a patient, one deflated, one broken."""
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "a.png").write_bytes(draw(1))
    pixels = ramp(64, 64)
    identities: list[dict[str, Any]] = [
        {"PatientID": "Müller^1", "SpecificCharacterSet": "ISO_IR 192"},
        {"PatientID": "Müller^1", "SpecificCharacterSet": "ISO_IR 192"},
        {"PatientID": "Müller^1", "SpecificCharacterSet": "ISO_IR 192", "IssuerOfPatientID": "elsewhere"},
        {"PatientID": None},
        {"PatientID": ""},
    ]
    for index, identity in enumerate(identities):
        (folder / f"{index}.dcm").write_bytes(dicom(np.roll(pixels, index, axis=0), bits=12, **identity))
    (folder / "5.dcm").write_bytes(written(dataset(pixels.T.copy(), bits=12, PatientID="Z"), DEFLATED))
    (folder / "broken.png").write_bytes(b"\x89PNG broken")
    return folder


def look(scans: Path, predictor: Predictor, store: Path) -> list[Seen]:
    with predictions(store, predictor) as kept:
        return look_at_all(sorted(scans.iterdir()), scans, predictor, 2, "test", kept)


def without_arrays(seen: Seen) -> tuple[Any, ...]:
    said = None if seen.prediction is None else astuple(replace(seen.prediction, features=None))  # type: ignore[arg-type]
    return (*astuple(replace(seen, prediction=None)), said)


def test_what_was_kept_says_the_same_to_the_last_bit(
    scans: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = look(scans, predictor, tmp_path / "kept.jsonl")
    assert [seen.error for seen in first] == [""] * 7 + ["not_decodable"]
    assert len({seen.patient for seen in first}) == 7  # two of one patient; the broken one has none
    assert first[0].patient == first[1].patient != first[2].patient

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("predicted twice")

    monkeypatch.setattr(Predictor, "predict", never)
    again = look(scans, predictor, tmp_path / "kept.jsonl")
    assert list(map(without_arrays, again)) == list(map(without_arrays, first))
    for ours, theirs in zip(again, first, strict=True):
        if ours.prediction is not None and theirs.prediction is not None:
            assert ours.prediction.features.dtype == np.float32
            assert ours.prediction.features.tobytes() == theirs.prediction.features.tobytes()
    with pytest.raises(AssertionError, match="predicted twice"):  # control: nothing was kept there
        look(scans, predictor, tmp_path / "other.jsonl")


def test_another_package_says_its_own(
    scans: Path, predictor: Predictor, make_package: Callable[..., Path], tmp_path: Path
) -> None:
    other = Predictor.load(make_package(poison=0.5))
    ours = look(scans, predictor, tmp_path / "kept.jsonl")
    theirs = look(scans, other, tmp_path / "kept.jsonl")
    assert ours[0].prediction is not None
    assert theirs[0].prediction is not None
    assert theirs[0].prediction.loss_score == pytest.approx(ours[0].prediction.loss_score / 2)
    assert list(map(without_arrays, look(scans, predictor, tmp_path / "kept.jsonl"))) == list(map(without_arrays, ours))


def test_a_file_with_other_bytes_is_predicted_again(
    scans: Path, predictor: Predictor, tmp_path: Path, draw: Callable[..., bytes]
) -> None:
    before = look(scans, predictor, tmp_path / "kept.jsonl")
    (scans / "a.png").write_bytes(draw(2))
    after = look(scans, predictor, tmp_path / "kept.jsonl")
    changed = [old.file.name for old, new in zip(before, after, strict=True) if without_arrays(old) != without_arrays(new)]
    assert changed == ["a.png"]


def test_nothing_of_a_patient_and_no_name_is_kept(scans: Path, predictor: Predictor, tmp_path: Path) -> None:
    found = look(scans, predictor, tmp_path / "kept.jsonl")
    text = (tmp_path / "kept.jsonl").read_text()
    patients = {seen.patient for seen in found if seen.patient != seen.digest}
    assert len(patients) == 3
    assert not [word for word in (*patients, ".dcm", "a.png", "ller", "elsewhere", "Doe") if word in text]
    assert found[0].digest in text  # control


def test_a_folder_that_goes_away_leaves_what_was_predicted(
    scans: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = Predictor.predict, []

    def vanish(self: Predictor, images: Any, **options: Any) -> Any:
        seen.append(1)
        if len(seen) == 4:
            shutil.move(scans, tmp_path / "away")
        return real(self, images, **options)

    monkeypatch.setattr(Predictor, "predict", vanish)
    paths = sorted(scans.iterdir())
    with predictions(tmp_path / "kept.jsonl", predictor) as kept:
        with pytest.raises(Refusal) as refusal:
            look_at_all(paths, scans, predictor, 1, "test", kept)
        assert len(kept) == 4
    assert refusal.value.code == "folder_unavailable"
    assert "scans" not in str(refusal.value)
    shutil.move(tmp_path / "away", scans)
    seen.clear()
    monkeypatch.setattr(Predictor, "predict", lambda *given, **more: (seen.append(1), real(*given, **more))[1])
    assert len(look(scans, predictor, tmp_path / "kept.jsonl")) == 8
    assert len(seen) == 7 - 4


def test_a_patient_is_told_by_the_header_and_the_folder_by_what_is_named(scans: Path) -> None:
    image = read_image((scans / "a.png").read_bytes())
    assert patient_of(image) == image.sha256
    assert folder_of(scans) == folder_of(scans / "a.png") == scans
