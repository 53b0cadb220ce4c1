"""What every DICOM object that we write has in common: its UIDs, whose it is, who made it, and how it is recognised.

``service.dicom_report`` writes the structured report, ``service.dicom_pictures`` the segmentation and the secondary capture,
``service.dicom_annotations`` the annotations of slides. They import highdicom, which takes most of a second; this module does
not. ``docs/dicom-results.md`` says what is in the objects.
"""

from __future__ import annotations

import copy
import hashlib
import io
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any

from pydicom.charset import convert_encodings, decode_bytes, encode_string
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    MicroscopyBulkSimpleAnnotationsStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    VLWholeSlideMicroscopyImageStorage,
)
from pydicom.valuerep import TEXT_VR_DELIMS

import models
from models.errors import Refusal
from models.quiet import silence_readers
from service.dicom_codes import SCHEME, SCHEME_NAME
from service.dicom_encoding import encoded
from service.schemas import Answer, SegmentationAnswer

MANUFACTURER = "Overread"
MODEL_NAME = "Overread results"
"""ManufacturerModelName of what we write. The drawn example is by the same manufacturer, and an image to be analysed."""
NOT_FOR_DIAGNOSIS = "NOT FOR DIAGNOSIS"
LAYOUT = 3
"""Raised whenever the objects of one and the same result get another content: a UID names one content only."""
_MARK = b"OVRD"
_PRIMARY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_UID_FORM = re.compile(r"[0-9.]{1,64}")
_REQUIRED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
)
"""Of type 2 in every object: present, and empty where the source does not have them."""
_OPTIONAL = (
    *("IssuerOfPatientID", "TypeOfPatientID", "PatientBirthTime", "OtherPatientNames", "EthnicGroup", "PatientComments"),
    *("QualityControlSubject", "PatientSpeciesDescription", "PatientBreedDescription", "BreedRegistrationNumber"),
    *("ResponsiblePerson", "ResponsiblePersonRole", "ResponsibleOrganization", "PatientIdentityRemoved"),
    *("DeidentificationMethod", "StudyInstanceUID", "StudyDescription", "PatientAge", "PatientSize", "PatientWeight"),
    *("PatientSexNeutered", "AdmissionID", "ClinicalTrialSponsorName", "ClinicalTrialProtocolID"),
    *("ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID", "TimezoneOffsetFromUTC"),
)
"""Copied where the source has them: what tells patient and study apart, or what the standard then asks for."""
_OF_A_TRIAL = ("ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName")
"""Of type 2 in the objects of a subject of a clinical trial (PS3.3, C.7.1.3)."""


@dataclass(frozen=True)
class Kind:
    """A kind of object: its SOP class, modality, series number, and series description."""

    sop_class: UID
    modality: str
    series_number: int
    description: str


REPORT = Kind(Comprehensive3DSRStorage, "SR", 9501, "Overread report")
MASK = Kind(SegmentationStorage, "SEG", 9502, "Overread segmentation")
CAPTURE = Kind(SecondaryCaptureImageStorage, "OT", 9503, "Overread picture - not for diagnosis")
ANNOTATIONS = Kind(MicroscopyBulkSimpleAnnotationsStorage, "ANN", 9504, "Overread annotations")


@dataclass(frozen=True)
class Commit:
    """When a verdict was stored, and under which limits: the rest of its key, beside result and instance.

    Attributes
    ----------
    triage_sha256 : str
        Digest of the limits in force.
    at : datetime
        With a time zone. The same each time for the same verdict, so that the objects' bytes are too.
    """

    triage_sha256: str
    at: datetime


@dataclass(frozen=True)
class Written:
    """An object of ours: where a later one finds what it replaces."""

    series_instance_uid: str
    sop_instance_uid: str

    @classmethod
    def of(cls, dataset: Dataset) -> Written:
        """Return the UIDs of an object."""
        return cls(str(dataset.SeriesInstanceUID), str(dataset.SOPInstanceUID))


def make_uid(*parts: str) -> UID:
    """Derive a UID from text: the same text gives the same UID, and each of ours begins alike, so that it is recognised.

    It is an integer-coded UUID (PS3.5, B.2) of version 8 (RFC 9562, section 5.8): 32 bits of mark, 90 bits of SHA-256.
    """
    number = int.from_bytes(_MARK + hashlib.sha256("\n".join(parts).encode()).digest()[:12])
    number = number & ~(0xF << 76) | 8 << 76  # version
    number = number & ~(0x3 << 62) | 2 << 62  # variant
    return UID(f"2.25.{number}")


def is_ours(header: Dataset) -> bool:
    """Tell whether an object is one of our results, by its UID (all that a list of instances has) or its equipment.

    The equipment is looked at too because archives and anonymisers give objects new UIDs.
    """
    uid = str(header.get("SOPInstanceUID") or "")
    root, _, number = uid.rpartition(".")
    if root == "2.25" and number.isdecimal() and len(uid) <= 64:
        value = int(number)
        if value >> 96 == int.from_bytes(_MARK) and value >> 76 & 0xF == 8:
            return True
    made_by = [str(header.get(keyword) or "").strip() for keyword in ("Manufacturer", "ManufacturerModelName")]
    return made_by == [MANUFACTURER, MODEL_NAME]


def uids_of(kind: Kind, answer: Answer | SegmentationAnswer, commit: Commit) -> Written:
    """Return the UIDs of an object before it is made: the same verdict gives the same, so that an archive holds it once."""
    key = (kind.modality, str(LAYOUT), answer.result_id, answer.sop_instance_uid or "", commit.triage_sha256)
    return Written(make_uid("series", *key), make_uid("instance", *key))


def check_source(header: Dataset, answer: Answer | SegmentationAnswer) -> None:
    """Check that a source has what an object of its study must repeat, and that the answer is about it.

    Raises
    ------
    Refusal
        ``inconsistent_image`` if a UID of the study, series, instance or class is missing or is none.
    ValueError
        If the answer is about another image: one patient's result must not get into another's study.
    """
    silence_readers()
    for keyword in _PRIMARY:
        if not _UID_FORM.fullmatch(str(header.get(keyword) or "").strip()):
            raise Refusal("inconsistent_image", f"{keyword} is missing or malformed, so no result can refer to the image.")
    if str(header.SOPInstanceUID).strip() != answer.sop_instance_uid:
        raise ValueError("the answer is about another image")


def is_slide(header: Dataset) -> bool:
    """Tell whether an image is a whole slide, whose positions are those of its total pixel matrix."""
    return str(header.get("SOPClassUID") or "").strip() == VLWholeSlideMicroscopyImageStorage


def number_of(header: Dataset, keyword: str) -> int:
    """Return a size of the header.

    Raises
    ------
    Refusal
        ``no_pixel_data`` if it is not there.
    """
    value = header.get(keyword)
    if not isinstance(value, int) or value < 1:
        raise Refusal("no_pixel_data", f"{keyword} is missing, so no result can refer to the image.")
    return value


def stand_in(header: Dataset) -> Dataset:
    """Return a source that highdicom takes, whatever the real one lacks; :func:`dress` puts in what the real one has.

    highdicom refuses (or logs) odd names, dates and sexes, and classes that its tables lack or that ask for a frame of reference.
    """
    source = Dataset()
    for keyword in _REQUIRED:
        setattr(source, keyword, None if keyword == "PatientSex" else "")
    for keyword in _PRIMARY:
        setattr(source, keyword, str(header[keyword].value).strip())
    source.SOPClassUID, of = SecondaryCaptureImageStorage, ""
    if is_slide(header):
        source.SOPClassUID, of = VLWholeSlideMicroscopyImageStorage, "TotalPixelMatrix"
    source.Modality = "OT"
    source.Rows, source.Columns = number_of(header, of + "Rows"), number_of(header, of + "Columns")
    return source


def own_scheme() -> list[Dataset]:
    """Return what declares our own codes: the value of CodingSchemeIdentificationSequence."""
    scheme = Dataset()
    scheme.CodingSchemeDesignator, scheme.CodingSchemeName = SCHEME, SCHEME_NAME
    scheme.CodingSchemeResponsibleOrganization = MANUFACTURER
    return [scheme]


def placeholders() -> dict[str, Any]:
    """Return what highdicom asks of every object beside its content; :func:`dress` then puts in what is so."""
    anything = {"manufacturer_model_name": "any", "software_versions": "any", "device_serial_number": "any"}
    uids = {"series_instance_uid": make_uid("any"), "sop_instance_uid": make_uid("any")}
    return anything | uids | {"series_number": 1, "instance_number": 1, "manufacturer": MANUFACTURER}


def dress(dataset: Dataset, kind: Kind, header: Dataset, answer: Answer | SegmentationAnswer, commit: Commit) -> None:
    """Put into an object, in place, all that is not its content: patient, study, series, equipment, times, character set."""
    required = _REQUIRED + (_OF_A_TRIAL if "ClinicalTrialSponsorName" in header else ())
    for keyword in (*required, *_OPTIONAL):
        if keyword in header:
            dataset[keyword] = copy.deepcopy(header[keyword])
        elif keyword in required:
            setattr(dataset, keyword, None)
    if dataset.get("PatientIdentityRemoved") == "YES" and "DeidentificationMethod" not in dataset:
        dataset.DeidentificationMethod = "See the source image"  # required then; its coded form is a sequence, which is not kept
    _reclass(dataset, str(header.SOPInstanceUID).strip(), UID(str(header.SOPClassUID).strip()))
    uids = uids_of(kind, answer, commit)
    dataset.SOPClassUID, dataset.SOPInstanceUID = kind.sop_class, UID(uids.sop_instance_uid)
    dataset.SeriesInstanceUID, dataset.Modality = UID(uids.series_instance_uid), kind.modality
    dataset.SeriesNumber, dataset.InstanceNumber, dataset.SeriesDescription = kind.series_number, 1, kind.description
    at = commit.at.astimezone(_zone(header))
    date, time = f"{at:%Y%m%d}", f"{at:%H%M%S}"
    dataset.InstanceCreationDate = dataset.SeriesDate = dataset.ContentDate = date
    dataset.InstanceCreationTime = dataset.SeriesTime = dataset.ContentTime = time
    dataset.Manufacturer, dataset.ManufacturerModelName = MANUFACTURER, MODEL_NAME
    dataset.DeviceSerialNumber, dataset.DeviceUID = answer.model.sha256, make_uid("device", answer.model.sha256)
    dataset.SoftwareVersions = [f"Overread {models.__version__}", f"{answer.model.name} {answer.model.version}"[:64]]
    if "ContributingEquipmentSequence" in dataset:
        del dataset.ContributingEquipmentSequence  # the library, which is no equipment of the site
    _set_character_set(dataset, header)
    dataset.preamble = b"\0" * 128
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID, dataset.file_meta.MediaStorageSOPInstanceUID = (
        kind.sop_class,
        dataset.SOPInstanceUID,
    )
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = make_uid("implementation")
    dataset.file_meta.ImplementationVersionName = "OVERREAD"


def dicom_bytes(dataset: Dataset) -> bytes:
    """Return the bytes of the file: the same for the same result."""
    stream = io.BytesIO()
    (encoded(dataset) if dataset.get("Modality") == REPORT.modality else dataset).save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _reclass(dataset: Dataset, instance: str, sop_class: UID) -> None:
    """Give each reference to the source the source's class in the place of the stand-in's."""
    if dataset.get("ReferencedSOPInstanceUID") == instance:
        dataset.ReferencedSOPClassUID = sop_class
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                _reclass(item, instance, sop_class)


def _zone(header: Dataset) -> tzinfo | None:
    """Return the zone of the source's times, where it states one: one object has times of one zone. Else the server's."""
    stated = re.fullmatch(r"([+-])(\d\d)([0-5]\d)", str(header.get("TimezoneOffsetFromUTC") or "").strip())
    if stated is None or int(stated[2]) > 14:
        return None
    offset = timedelta(hours=int(stated[2]), minutes=int(stated[3]))
    return timezone(-offset if stated[1] == "-" else offset)


def _set_character_set(dataset: Dataset, header: Dataset) -> None:
    """Keep the source's character set, so that its names keep their bytes; UTF-8 where our own text does not fit into it."""
    if "SpecificCharacterSet" in header:
        dataset["SpecificCharacterSet"] = copy.deepcopy(header["SpecificCharacterSet"])
    stated = header.get("SpecificCharacterSet")
    encodings = convert_encodings(stated)
    own = [text for text in _texts(dataset, {*_REQUIRED, *_OPTIONAL, *_OF_A_TRIAL}) if not text.isascii()]
    # Without a stated set the standard allows ASCII only, and what cannot be written does not come back
    if own and (
        not stated or any(decode_bytes(encode_string(text, encodings), encodings, TEXT_VR_DELIMS) != text for text in own)
    ):
        dataset.SpecificCharacterSet = "ISO_IR 192"


def _texts(dataset: Dataset, passed_over: set[str]) -> list[str]:
    texts: list[str] = []
    for element in dataset:
        if element.VR == "SQ":
            texts += [text for item in element.value for text in _texts(item, set())]
        elif element.keyword not in passed_over and isinstance(element.value, str):
            texts.append(element.value)
    return texts
