"""What a model's card accepts of an image, what it refuses, and what must be stated."""

from __future__ import annotations

import numpy as np
import pytest

from models.errors import Refusal
from models.imaging import read_image
from models.preprocess import check_accepted
from tests.models.dicom_files import dicom, ramp
from tests.models.test_preprocess import picture, spec


def test_what_the_card_names_is_accepted() -> None:
    assert check_accepted(read_image(dicom(ramp(), 12)), spec()) == []
    assert check_accepted(read_image(dicom(ramp(), 12, Modality="cr ")), spec()) == []
    assert check_accepted(read_image(picture(ramp(bits=8))), spec()) == []


@pytest.mark.parametrize(
    ("attribute", "value", "code"),
    [
        ("Modality", "CT", "modality_not_accepted"),
        ("BodyPartExamined", "KNEE", "body_part_not_accepted"),
        ("ViewPosition", "LL", "view_not_accepted"),
        ("PatientAge", "017Y", "age_not_accepted"),
        ("PatientAge", "011M", "age_not_accepted"),
        ("PatientAge", "091Y", "age_not_accepted"),
    ],
)
def test_what_the_card_excludes_is_refused_without_quoting_it(attribute: str, value: str, code: str) -> None:
    image = read_image(dicom(ramp(), 12, **{attribute: value}))
    with pytest.raises(Refusal) as refused:
        check_accepted(image, spec())
    assert refused.value.code == code
    assert value not in refused.value.detail


def test_what_is_not_stated_is_a_reason() -> None:
    absent = {"Modality": None, "BodyPartExamined": None, "ViewPosition": None, "PatientAge": None}
    reasons = check_accepted(read_image(dicom(ramp(), 12, **absent)), spec())
    assert [code for code, _ in reasons] == ["modality_not_stated", "body_part_not_stated", "view_not_stated", "age_not_stated"]
    anything = spec(modalities=(), body_parts=(), views=(), age_years=None)
    assert check_accepted(read_image(dicom(ramp(), 12, **absent)), anything) == []
    assert check_accepted(read_image(dicom(ramp(), 12, Modality="CT", PatientAge="001D")), anything) == []


@pytest.mark.parametrize(("value", "reasons"), [("YES", ["phantom"]), ("NO", [])])
def test_a_phantom_is_no_patient(value: str, reasons: list[str]) -> None:
    image = read_image(dicom(ramp(), 12, QualityControlSubject=value))
    assert [code for code, _ in check_accepted(image, spec())] == reasons


@pytest.mark.parametrize(("born", "accepted"), [("20060101", True), ("20060103", False), ("19340101", True), ("19330101", False)])
def test_the_age_may_come_from_dates(born: str, accepted: bool) -> None:
    image = read_image(dicom(ramp(), 12, PatientAge="", PatientBirthDate=born, StudyDate="20240102"))
    if accepted:
        assert check_accepted(image, spec()) == []
    else:
        with pytest.raises(Refusal, match="age_not_accepted"):
            check_accepted(image, spec())


def test_a_small_image_is_refused_by_its_source_size() -> None:
    with pytest.raises(Refusal, match="too_small"):
        check_accepted(read_image(dicom(ramp(24, 32), 12)), spec(min_side=25))
    reduced = read_image(picture(ramp(400, 400, 8), "JPEG"), target=(16, 16))
    assert reduced.pixels.shape[0] < 300
    assert check_accepted(reduced, spec(min_side=400)) == []


def test_colour_for_a_grey_model_is_a_reason() -> None:
    grey = ramp(bits=8)
    colour = read_image(picture(np.stack([grey, grey[::-1], grey], axis=2)))
    assert [code for code, _ in check_accepted(colour, spec())] == ["colour_image"]
    assert check_accepted(colour, spec(channels=3)) == []
