"""What our DICOM objects have in common: whose they are, in which characters, what their UIDs are, how they are recognised."""

from __future__ import annotations

import copy
import logging
import re
import subprocess
import sys
import uuid
from typing import Any

import pydicom
import pytest
from pydicom.data import get_charset_files
from pydicom.dataset import Dataset
from pydicom.uid import UID

from models.errors import Refusal
from models.imaging import read_image
from service.dicom_pictures import secondary_capture, segmentation_object
from service.dicom_report import structured_report
from service.dicom_results import Commit, dicom_bytes, is_ours, make_uid
from tests.conftest import ROOT
from tests.service.dicom_sources import (
    COMMIT,
    all_objects,
    classified,
    header_of,
    labels_of,
    read_back,
    segmented,
    source,
    source_bytes,
)

NAMES = {
    "chrArab": "قباني^لنزار", "chrFren": "Buc^Jérôme", "chrGerm": "Äneas^Rüdiger", "chrGreek": "Διονυσιος",
    "chrH31": "Yamada^Tarou=山田^太郎=やまだ^たろう", "chrH32": "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう", "chrHbrw": "שרון^דבורה",
    "chrI2": "Hong^Gildong=洪^吉洞=홍^길동", "chrRuss": "Люкceмбypг", "chrX1": "Wang^XiaoDong=王^小東",
    "chrX2": "Wang^XiaoDong=王^小东",
}  # fmt: skip
"""Files that pydicom installs, in the character sets of PS3.5's annexes, and the names in them."""


@pytest.mark.parametrize("name", NAMES)
def test_names_survive_in_the_character_set_of_the_source(name: str) -> None:
    (file,) = get_charset_files(name + ".dcm")
    encoded = pydicom.dcmread(file)

    def change(dataset: Dataset) -> None:
        dataset.SpecificCharacterSet = encoded.SpecificCharacterSet
        dataset["PatientName"] = encoded["PatientName"]
        dataset.StudyDescription = str(encoded.PatientName).partition("=")[2][:3] or str(encoded.PatientName)

    image = source(change)
    header = header_of(image)
    assert str(header.PatientName) == NAMES[name]
    for what, written in all_objects(image).items():
        back = read_back(written)
        assert str(back.PatientName) == NAMES[name], what
        assert back.PatientName.original_string.strip() == encoded.PatientName.original_string.strip(), what
        assert back.SpecificCharacterSet == encoded.SpecificCharacterSet, what
        assert back.StudyDescription == header.StudyDescription != "", what


@pytest.mark.parametrize(
    ("stated", "label", "expected"),
    [
        ("ISO_IR 100", "épanchement", "ISO_IR 100"),
        ("ISO_IR 100", "폐렴", "ISO_IR 192"),
        (["", "ISO 2022 IR 149"], "폐렴", ["", "ISO 2022 IR 149"]),
        ("ISO_IR 192", "폐렴", "ISO_IR 192"),
        (None, "épanchement", "ISO_IR 192"),
        (None, "effusion", None),
    ],
)
def test_our_own_text_fits_into_the_character_set_or_utf_8_is_taken(stated: Any, label: str, expected: Any) -> None:
    name = "Buc^Jérôme" if stated == "ISO_IR 100" else "Phantom^Drawn"

    def change(dataset: Dataset) -> None:
        if stated is not None:
            dataset.SpecificCharacterSet = stated
        dataset.PatientName = name

    image = source(change)
    answer = segmented(image, object_label=label)
    for written in (
        structured_report(header_of(image), answer, COMMIT),
        segmentation_object(header_of(image), answer, COMMIT, labels_of(image)),
    ):
        back = read_back(written)
        assert back.get("SpecificCharacterSet") == expected
        assert str(back.PatientName) == name
        found = [str(element.value) for element in back.iterall() if element.keyword == "CodeMeaning"]
        assert label in found


def test_bytes_that_the_stated_character_set_does_not_have_are_kept() -> None:
    raw = "Hong^길동".encode("euc_kr")  # and no character set stated, as older modalities do
    data = source_bytes(PatientName="Hong^XXXX").replace(b"Hong^XXXX", raw)
    image = read_image(data)
    for what, written in all_objects(image).items():
        assert raw in dicom_bytes(written), what


def test_patient_and_study_are_those_of_the_source() -> None:
    image = source(AccessionNumber="A-17", StudyID="S1", IssuerOfPatientID="Hospital", PatientID="P 1")
    header = header_of(image)
    for what, written in all_objects(image).items():
        back = read_back(written)
        for keyword in ("StudyInstanceUID", "StudyDate", "StudyTime", "AccessionNumber", "StudyID", "PatientID", "PatientSex"):
            assert back[keyword].value == header[keyword].value, (what, keyword)
        assert back.IssuerOfPatientID == "Hospital"
        assert back.SeriesInstanceUID != header.SeriesInstanceUID
        assert back.SOPInstanceUID != header.SOPInstanceUID == referred(back), what


def referred(dataset: Dataset) -> str:
    """Return the one instance that an object refers to; each reference has the source's class."""
    items = [item for item in walk(dataset) if "ReferencedSOPInstanceUID" in item]
    assert {item.ReferencedSOPClassUID for item in items} == {"1.2.840.10008.5.1.4.1.1.1.1"}
    (uid,) = {str(item.ReferencedSOPInstanceUID) for item in items}
    return uid


def walk(dataset: Dataset) -> list[Dataset]:
    items = [dataset]
    for element in dataset:
        if element.VR == "SQ":
            items += [inner for item in element.value for inner in walk(item)]
    return items


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"])
@pytest.mark.parametrize("value", [None, "", "1.2.x", "1." + "2" * 64])
def test_without_a_primary_uid_there_is_no_result(keyword: str, value: str | None) -> None:
    image = source()
    header, answer, objects = header_of(image), classified(image), segmented(image)
    if value is None:
        del header[keyword]
    else:
        header[keyword].value = UID(value, validation_mode=0)
    for write in (
        lambda: structured_report(header, answer, COMMIT),
        lambda: segmentation_object(header, objects, COMMIT, labels_of(image)),
        lambda: secondary_capture(image, answer, COMMIT),
    ):
        with pytest.raises(Refusal) as caught:
            write()
        assert caught.value.code == "inconsistent_image"
        assert keyword in caught.value.detail


def test_an_answer_about_another_image_gets_into_no_study() -> None:
    image = source()
    for write in (
        lambda: structured_report(header_of(image), classified(image, sop_instance_uid="1.2.3"), COMMIT),
        lambda: segmentation_object(header_of(image), segmented(image, sop_instance_uid="1.2.3"), COMMIT, labels_of(image)),
        lambda: secondary_capture(image, classified(image, sop_instance_uid=None), COMMIT),
    ):
        with pytest.raises(ValueError, match="another image"):
            write()


def test_the_same_result_gives_the_same_bytes_and_another_gets_other_uids() -> None:
    image = source()
    first, again = all_objects(image), all_objects(source())
    assert {name: dicom_bytes(item) for name, item in first.items()} == {name: dicom_bytes(item) for name, item in again.items()}
    # A report and a picture of two answers to one key are not two objects
    distinct = [first["report"], first["segmentation"], first["picture"]]
    assert len({item.SOPInstanceUID for item in distinct} | {item.SeriesInstanceUID for item in distinct}) == 6
    header = header_of(image)
    other = [
        structured_report(header, classified(image, result_id="00" * 32), COMMIT),
        structured_report(header, classified(image), Commit("00" * 32, COMMIT.at)),
    ]
    moved = copy.deepcopy(header)
    moved.SOPInstanceUID = UID("1.2.3")
    other.append(structured_report(moved, classified(image, sop_instance_uid="1.2.3"), COMMIT))
    assert len({item.SOPInstanceUID for item in [first["report"], *other]}) == 4
    assert len({item.SeriesInstanceUID for item in [first["report"], *other]}) == 4


def test_our_uids_are_uuids() -> None:
    for text in ("a", "b", "c"):
        uid = make_uid(text)
        assert uid.is_valid
        value = uuid.UUID(int=int(uid.removeprefix("2.25.")))
        assert (value.variant, value.version) == (uuid.RFC_4122, 8)


def test_our_own_output_is_recognised_by_either_mark() -> None:
    image = source()
    assert not is_ours(header_of(image)), "the drawn example has our name as its manufacturer"
    for written in all_objects(image).values():
        back = read_back(written)
        assert is_ours(back)
        listed = Dataset()  # what a list of instances says
        listed.SOPInstanceUID = back.SOPInstanceUID
        assert is_ours(listed)
        back.SOPInstanceUID = "1.2.3"  # given by an anonymiser
        assert is_ours(back)
        del back.ManufacturerModelName
        assert not is_ours(back)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "uid", ["", "1.2.3", "2.25.", "2.25.1", f"2.25.{uuid.UUID(int=7).int}", "2.25." + "9" * 80, "1." + make_uid("a")]
)
def test_other_uids_are_not_ours(uid: str) -> None:
    dataset = Dataset()
    dataset.SOPInstanceUID = uid
    assert not is_ours(dataset)


@pytest.mark.parametrize(("zone", "time"), [("+0900", "120405"), ("-0330", "233405")])
def test_times_are_in_the_zone_of_the_source(zone: str, time: str) -> None:
    back = read_back(structured_report(header_of(image := source(TimezoneOffsetFromUTC=zone)), classified(image), COMMIT))
    assert (back.ContentTime, back.SeriesTime, back.TimezoneOffsetFromUTC) == (time, time, zone)
    assert back.ContentDate == ("20260102" if zone[0] == "+" else "20260101")


def test_device_and_software_are_named() -> None:
    for written in all_objects(source()).values():
        back = read_back(written)
        assert back.DeviceSerialNumber == "ab" * 32
        assert back.SoftwareVersions[1] == "tiny 1.0.0"
        assert "ContributingEquipmentSequence" not in back


def test_nothing_that_identifies_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    image = source(PatientName="Geheim")
    all_objects(image)
    identifying = re.compile("|".join(["Geheim", "PHANTOM-1", *map(re.escape, (header_of(image).SOPInstanceUID,))]))
    assert not identifying.search(caplog.text)


def test_highdicom_is_not_imported_with_the_service() -> None:
    code = "import sys, service.dicom_results, service.analysis; assert 'highdicom' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    control = subprocess.run(
        [sys.executable, "-c", code.replace("service.analysis", "service.dicom_report")], cwd=ROOT, check=False
    )
    assert control.returncode != 0
