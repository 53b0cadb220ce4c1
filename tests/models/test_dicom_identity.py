"""The digest of a DICOM image: what changes it, and what must not."""

from __future__ import annotations

from typing import Any

from models.imaging import read_image
from tests.models.dicom_files import DEFLATED, EXPLICIT, dataset, dicom, written
from tests.models.test_dicom import PIXELS, read, table


def test_the_same_image_has_the_same_digest_whatever_else_the_header_holds() -> None:
    reference = read().sha256
    for same in (
        {"PatientName": "Other^Name", "PatientID": "ID-2", "SOPInstanceUID": "2.25.77", "StudyInstanceUID": "2.25.5"},
        {"StudyDate": "20240101", "StationName": "X", "Manufacturer": "Y"},
        {"WindowCenter": "", "WindowWidth": ""},
        {"PatientAge": "", "PatientBirthDate": "19700101", "StudyDate": "20200202"},
    ):
        assert read(**same).sha256 == reference, same
    private = dataset(PIXELS, 12)
    private.add_new(0x00090010, "LO", "Someone")
    private.add_new(0x00091001, "LO", "secret")
    assert read_image(written(private)).sha256 == reference
    assert read(RescaleSlope="1", RescaleIntercept="0").sha256 == read(RescaleSlope="1.00", RescaleIntercept="0.0").sha256
    assert read_image(dicom(PIXELS, 12), target=(4, 4)).sha256 == reference


def test_whatever_changes_the_image_or_its_judgement_changes_the_digest() -> None:
    changed: list[dict[str, Any]] = [
        {},
        {"Modality": "CR"},
        {"BodyPartExamined": "KNEE"},
        {"ViewPosition": "AP"},
        {"PatientAge": "051Y"},
        {"PixelSpacing": ["0.2", "0.2"]},
        {"ImagerPixelSpacing": ["0.2", "0.2"]},
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PresentationLUTShape": "IDENTITY"},
        {"RescaleSlope": "2", "RescaleIntercept": "0"},
        {"RescaleSlope": "2", "RescaleIntercept": "1"},
        {"WindowCenter": "2000", "WindowWidth": "1500"},
        {"WindowCenter": "2000", "WindowWidth": "1501"},
        {"WindowCenter": "2000", "WindowWidth": "1500", "VOILUTFunction": "SIGMOID"},
        {"VOILUTSequence": [table([1, 2, 3])]},
        {"VOILUTSequence": [table([1, 2, 4])]},
        {"VOILUTSequence": [table([1, 2, 4], 1)]},
        {"ModalityLUTSequence": [table([1, 2, 3])]},
        {"PixelPaddingValue": 0},
        {"BitsStored": 13, "HighBit": 12},
        {"Rows": 32, "Columns": 24},
    ]
    digests = [read(**attributes).sha256 for attributes in changed]
    other = PIXELS.copy()
    other[3, 4] ^= 1
    digests.append(read_image(dicom(other, 12)).sha256)
    digests.append(read_image(written(dataset(PIXELS, 12), DEFLATED)).sha256)
    digests.append(read_image(written(dataset(PIXELS, 12), "1.2.840.10008.1.2")).sha256)
    assert len(set(digests)) == len(digests)
    assert read_image(written(dataset(PIXELS, 12), EXPLICIT)).sha256 == digests[0]
