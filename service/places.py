"""Where an instance is in an archive, and what the DICOM JSON model says of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydicom.datadict import keyword_for_tag

from models.errors import Refusal

_UID = re.compile(r"[0-9.]{1,64}")

Header = dict[str, str]
"""Keyword -> value as text, of the attributes with one value that is no sequence."""


@dataclass(frozen=True)
class Place:
    """Where an instance is: Orthanc's identifier, or its three UIDs where they are known."""

    reference: str
    study_uid: str = ""
    series_uid: str = ""
    sop_instance_uid: str = ""


def flat(item: Any) -> Header:
    """Turn an object of the DICOM JSON model into keywords and text."""
    header: Header = {}
    for tag, element in item.items() if isinstance(item, dict) else ():
        values = element.get("Value") if isinstance(element, dict) else None
        keyword = keyword_for_tag(tag) if re.fullmatch(r"[0-9A-Fa-f]{8}", tag) else ""
        if keyword and isinstance(values, list) and values and isinstance(values[0], str | int | float):
            header[keyword] = "\\".join(str(value).strip() for value in values)
    return header


def place_of(reference: str, header: Header) -> Place:
    """Return the place of an instance with the UIDs that its header states."""
    names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    return Place(reference, *(header.get(name, "") for name in names))


def path_of(place: Place) -> str:
    """Return the path of an instance below the archive's DICOMweb address.

    Raises
    ------
    Refusal
        ``inconsistent_image`` if a UID is missing or is none.
    """
    uids = (place.study_uid, place.series_uid, place.sop_instance_uid)
    if not all(_UID.fullmatch(uid) for uid in uids):
        raise Refusal("inconsistent_image", "A UID of the study, series or instance is missing or malformed.")
    return "/studies/{}/series/{}/instances/{}".format(*uids)


def references(answer: Any, tag: str) -> list[tuple[str, int]]:
    """Return (SOP Instance UID, Failure Reason or 0) of each item."""
    items = answer.get(tag, {}).get("Value") or []
    return [(str(item["00081155"]["Value"][0]), int((item.get("00081197", {}).get("Value") or [0])[0])) for item in items]
