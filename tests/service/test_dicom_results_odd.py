"""Sources that lack what they should have, or have it in odd forms, get results without an error of our own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from models.imaging import read_image
from service.dicom_results import dicom_bytes
from tests.conftest import require
from tests.service.dicom_sources import all_objects, errors, problems, read_back, source, source_bytes


def _private(dataset: Dataset) -> None:
    block = dataset.private_block(0x0011, "ACME 1.1", create=True)
    block.add_new(0x01, "LO", "SECRET")


def _without_type_2(dataset: Dataset) -> None:
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"):
        del dataset[keyword]
    del dataset.AccessionNumber
    del dataset.ReferringPhysicianName
    del dataset.PatientOrientation


def _placed(dataset: Dataset) -> None:
    dataset.FrameOfReferenceUID = "1.2.3.4"
    dataset.ImageOrientationPatient, dataset.ImagePositionPatient, dataset.SliceThickness = [1, 0, 0, 0, 1, 0], [0, 0, 0], 2


def _badly_placed(dataset: Dataset) -> None:
    _placed(dataset)
    dataset.ImageOrientationPatient = [1, 0, 0, 1, 0, 0]


def _of_a_trial(dataset: Dataset) -> None:
    dataset.ClinicalTrialSponsorName, dataset.ClinicalTrialProtocolID, dataset.ClinicalTrialSubjectID = "Sponsor", "P", "1"
    dataset.ClinicalTrialProtocolName = dataset.ClinicalTrialSiteID = ""
    dataset.ClinicalTrialSiteName = "Site 3"


def _colour_of_16_bits(dataset: Dataset) -> None:
    grey = dataset.pixel_array.astype("<u2")
    for keyword in ("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "RescaleType"):
        dataset.pop(keyword, None)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelData = np.stack([grey] * 3, -1).tobytes()


def _inverse(dataset: Dataset) -> None:
    dataset.PhotometricInterpretation, dataset.PresentationLUTShape = "MONOCHROME1", "INVERSE"


ODD: dict[str, Any] = {
    "no type 2": _without_type_2,
    "private": _private,
    "placed": _placed,
    "badly placed": _badly_placed,
    "spacing 0": lambda dataset: dataset.update({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0, 0]}),
    "no spacing": lambda dataset: [dataset.pop(keyword) for keyword in ("PixelSpacing", "ImagerPixelSpacing")],
    "old date": lambda dataset: dataset.update({"StudyDate": "2024.01.02", "StudyTime": "12:00:00"}),
    "odd sex": lambda dataset: dataset.update({"PatientSex": "MALE"}),
    "one name": lambda dataset: dataset.update({"PatientName": "Müller", "SpecificCharacterSet": "ISO_IR 100"}),
    "retired class": lambda dataset: dataset.update({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6"}),
    "of a clinical trial": _of_a_trial,
    "colour of 16 bits": _colour_of_16_bits,
    "monochrome 1": _inverse,
    "spacing of one axis": lambda dataset: dataset.update({"PixelSpacing": [-0.1, 0.5]}),
    "one frame of several": lambda dataset: dataset.update({"NumberOfFrames": 1}),
    "private class": lambda dataset: dataset.update({"SOPClassUID": "1.3.46.670589.11.0.0.12.1"}),
    "class that needs a frame of reference": lambda dataset: dataset.update({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}),
    "identity removed": lambda dataset: dataset.update({"PatientIdentityRemoved": "YES"}),
    "lossy": lambda dataset: dataset.update({"LossyImageCompression": "01", "LossyImageCompressionRatio": 12}),
    "odd zone": lambda dataset: dataset.update({"TimezoneOffsetFromUTC": "+9999"}),
}


@pytest.mark.filterwarnings("ignore:Invalid value for VR")  # which the odd source is given on purpose
@pytest.mark.parametrize("odd", ODD)
def test_odd_sources_have_results_without_an_error_of_our_own(odd: str, tmp_path: Any) -> None:
    require("dciodvfy")
    data = source_bytes(ODD[odd])
    of_source = problems(data, tmp_path)
    for what, written in all_objects(read_image(data)).items():
        content = dicom_bytes(written)
        assert errors(problems(content, tmp_path)) <= of_source, what
        assert b"SECRET" not in content, what
    del written.SeriesInstanceUID
    assert not errors(problems(dicom_bytes(written), tmp_path)) <= of_source, "the validator sees what is missing"


def test_a_subject_of_a_trial_stays_one() -> None:
    for written in all_objects(source(_of_a_trial)).values():
        back = read_back(written)
        assert (back.ClinicalTrialSponsorName, back.ClinicalTrialSiteName) == ("Sponsor", "Site 3")
        assert back["ClinicalTrialProtocolName"].is_empty
    for written in all_objects(source()).values():
        assert not any(element.tag.group == 0x0012 and element.keyword.startswith("ClinicalTrial") for element in written)


def test_missing_type_2_attributes_are_there_and_empty() -> None:
    for written in all_objects(source(_without_type_2)).values():
        back = read_back(written)
        assert back["PatientID"].is_empty
        assert back["PatientName"].is_empty
        assert back["StudyDate"].is_empty
