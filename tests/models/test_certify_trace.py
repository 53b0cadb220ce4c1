"""What a report of ``overread certify`` says of where it comes from: its command, and whose images it rests on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.certify import HTML, JSON, STORE, main
from tests.models.certifying import arguments, labelled, write
from tests.models.dicom_files import dataset, written


@pytest.fixture
def scans(tmp_path: Path, draw: Callable[..., bytes]) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for seed, row in enumerate(labelled()):
        (folder / row["file"]).write_bytes(draw(seed))
    return folder


def test_the_command_is_said_without_a_name_and_gives_the_report_again(scans: Path, package: Path) -> None:
    write(scans.parent / "l.csv", [row | {"p": "0.5"} for row in labelled()])
    more = ["--weights", "p", "--ppv", "0.8", "--npv", "0.85", "--accepted-error", "0.15"]
    assert main(arguments(scans, package, *more)) == 0
    out = scans.parent / "r"
    first = json.loads((out / JSON).read_text())
    assert first["command"] in (out / HTML).read_text()
    assert str(scans.parent) not in first["command"]
    places = {"IMAGES": scans, "LABELS": scans.parent / "l.csv", "PACKAGE": package, "REPORT": out}
    words = [str(places.get(word, word)) for word in first["command"].split()]
    assert words[:2] == ["overread", "certify"]
    assert main(words[2:]) == 0
    assert json.loads((out / JSON).read_text()) == first


@pytest.mark.parametrize("of_one", [2, 0])
def test_images_of_one_patient_are_said_to_make_intervals_too_narrow(of_one: int, scans: Path, package: Path) -> None:
    for number, row in enumerate(labelled()):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64)).astype(np.uint8)
        patient = "secret" if number < of_one else f"secret{number}"
        (scans / row["file"]).with_suffix(".dcm").write_bytes(written(dataset(pixels, PatientID=patient)))
    write(scans.parent / "l.csv", [row | {"file": row["file"].replace(".png", ".dcm")} for row in labelled()])
    assert main(arguments(scans, package)) == 0
    text = (scans.parent / "r" / JSON).read_text()
    said = [note for note in json.loads(text)["notes"] if "independent" in note]
    assert [note.split(".")[0] for note in said] == (["The 40 labelled images are of 39 patients"] if of_one else [])
    assert "secret" not in text + (scans.parent / "r" / STORE).read_text()
