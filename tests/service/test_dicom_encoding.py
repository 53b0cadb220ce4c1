"""The sequences of a report are, byte for byte, those that pydicom writes."""

from __future__ import annotations

import copy
import io

import pytest
from pydicom.dataset import Dataset

from service.dicom_results import dicom_bytes
from tests.service.dicom_sources import all_objects, source

OBJECTS = all_objects(source())


def by_pydicom(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_is_what_pydicom_writes(name: str) -> None:
    written = OBJECTS[name]
    assert dicom_bytes(written) == by_pydicom(written)
    assert dicom_bytes(written) == by_pydicom(written), "again, from what was remembered"


@pytest.mark.parametrize("sets", ["ISO_IR 100", "ISO_IR 192", ["", "ISO 2022 IR 149"], None])
def test_a_text_is_encoded_in_the_character_set_of_its_object(sets: str | list[str] | None) -> None:
    """The same text in the same place has other bytes in each, so what is remembered must not be shared."""
    written = copy.deepcopy(OBJECTS["report"])
    item = Dataset()
    item.CodeMeaning, item.PersonName = "홍길동" if isinstance(sets, list) else "Lésion", "Jérôme^Anne"
    item.FloatingPointValue, item.NumericValue, item.ImageType = 0.1 + 0.2, "1.50", ["DERIVED", "SECONDARY"]
    outer = Dataset()
    outer.ConceptNameCodeSequence, outer.ReferencedSOPSequence = [item], []
    written.ContentSequence = [outer]
    written.SpecificCharacterSet = sets
    if sets is None:
        del written.SpecificCharacterSet, item.CodeMeaning, item.PersonName
        item.CodeMeaning = "Lesion"
    assert dicom_bytes(written) == by_pydicom(written)


def test_the_comparison_can_fail() -> None:
    changed = copy.deepcopy(OBJECTS["report"])
    changed.ContentSequence[0].ConceptNameCodeSequence[0].CodeMeaning += "x"
    assert dicom_bytes(changed) != by_pydicom(OBJECTS["report"])


def test_the_object_itself_stays_as_it_was() -> None:
    report = OBJECTS["report"]
    dicom_bytes(report)
    assert report.ContentSequence[0].ConceptNameCodeSequence[0].CodeMeaning
    assert "ReferencedPerformedProcedureStepSequence" in report
