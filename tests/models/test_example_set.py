"""The drawn set: what the manifest says is what is drawn, and nothing of a reader is written over."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from models.card import InputSpec, IntendedUse, Source
from models.errors import Refusal
from models.example import chest_attenuation, main
from models.example_set import CLASSES, HOSPITALS, LUNGS, PATIENTS, SIDE, draw_patient, write_set
from models.imaging import read_image
from models.preprocess import check_accepted


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    assert main(["--out", str(out), "--set", str(out / "drawn")]) == 0
    return out / "drawn"


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "manifest.csv").read_text().splitlines()))


def test_the_manifest_names_every_image_once(drawn: Path) -> None:
    found = rows(drawn)
    assert {row["image"] for row in found} == {path.name for path in drawn.glob("*.png")}
    assert len({row["patient"] for row in found}) == len(found)
    counts = Counter((row["domain"], row["label"]) for row in found)
    assert counts == {(hospital, label): PATIENTS for hospital in HOSPITALS for label in CLASSES}


def test_the_images_are_such_as_its_specification_and_the_shipped_model_take(drawn: Path) -> None:
    spec = InputSpec.model_validate_json((drawn / "input.json").read_bytes())
    shipped = InputSpec.model_validate_json((Path(__file__).parents[2] / "training" / "specs" / "chest_xray.json").read_bytes())
    image = read_image((drawn / rows(drawn)[0]["image"]).read_bytes())
    assert image.pixels.shape[:2] == (SIDE, SIDE)
    for each in (spec, shipped):
        assert check_accepted(image, each) == []


def test_what_a_card_needs_is_said(drawn: Path) -> None:
    about = json.loads((drawn / "about.json").read_text())
    assert "drawings" in IntendedUse.model_validate(about["intended_use"]).statement
    assert set(about["sources"]) == set(HOSPITALS)
    for domain, credit in about["sources"].items():
        Source.model_validate({"domain": domain, "images": 1, "patients": 1} | credit)


def lungs(drawn: Path, label: str, hospital: str) -> float:
    """Return the mean grey value of the lungs, the rest of the chest subtracted."""
    mask = np.zeros((SIDE, SIDE), bool)
    for column, row in LUNGS:
        mask[row - 25 : row + 40, column - 18 : column + 18] = True
    names = [row["image"] for row in rows(drawn) if (row["label"], row["domain"]) == (label, hospital)]
    values = [np.asarray(read_image((drawn / name).read_bytes()).pixels, float).reshape(SIDE, SIDE) for name in names]
    return float(np.mean([value[mask].mean() - value[~mask].mean() for value in values]))


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_an_opacity_is_in_a_lung_and_nowhere_else(hospital: str, drawn: Path) -> None:
    assert lungs(drawn, "pneumonia", hospital) > lungs(drawn, "normal", hospital) + 5
    blank = np.full((SIDE, SIDE), 0.5)
    normal, ill = (draw_patient(blank, "east", label, np.random.default_rng(1)).astype(float) for label in CLASSES)
    assert np.ptp(ndimage.gaussian_filter(normal, 4)) < 6
    spot = np.unravel_index(np.argmax(ndimage.gaussian_filter(ill, 4)), ill.shape)
    assert min(abs(spot[1] - column) for column, _ in LUNGS) <= 15


def test_it_is_the_same_each_time_and_nothing_is_written_over(drawn: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "again", chest_attenuation())
    for path in drawn.iterdir():
        if path.suffix != ".png":
            assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
        else:
            pair = [read_image(file.read_bytes()).pixels for file in (path, tmp_path / "again" / path.name)]
            assert np.array_equal(*pair)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.csv").write_text("mine")
    with pytest.raises(Refusal, match="not empty"):
        write_set(tmp_path / "mine", chest_attenuation())
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["manifest.csv"]
