"""Where an instance is in an archive, and what the DICOM JSON model says of it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from pydicom.datadict import keyword_for_tag

from models.errors import Refusal

_UID = re.compile(r"[0-9][0-9.]{0,63}")
DUPLICATE = 0x0111
"""Failure Reason of an instance that the archive holds already (PS3.7, annex C): what we wanted."""

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
    """Return the place of an instance with the UIDs that its header states; what is none counts as not stated."""
    names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    return Place(reference, *(uid if _UID.fullmatch(uid) else "" for uid in (header.get(name, "") for name in names)))


def reference_of(uid: str) -> str:
    """Return what an instance is known by in an archive without a log: its UID, or the digest of what is no UID."""
    return uid if _UID.fullmatch(uid) else hashlib.sha256(uid.encode("utf-8", "surrogatepass")).hexdigest()


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


def answered(content: bytes) -> tuple[set[str], list[int]]:
    """Read an archive's answer to STOW-RS (PS3.18, annex I).

    Parameters
    ----------
    content : bytes
        The payload, which an archive or a proxy may leave out.

    Returns
    -------
    stored : set of str
        SOP Instance UIDs that are named as stored, or as held already; of what cannot be read, none.
    reasons : list of int
        Failure Reasons of the others that are named, each once.
    """
    try:
        answer = json.loads(content)
        failed = _references(answer, "00081198")
        stored = {uid for uid, _ in _references(answer, "00081199")}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError):
        return set(), []
    stored |= {uid for uid, reason in failed if reason == DUPLICATE}
    return stored, sorted({reason for _, reason in failed} - {DUPLICATE})


def _references(answer: Any, tag: str) -> list[tuple[str, int]]:
    """Return (SOP Instance UID, Failure Reason or 0) of each item."""
    items = answer.get(tag, {}).get("Value") or []
    return [(str(item["00081155"]["Value"][0]), int((item.get("00081197", {}).get("Value") or [0])[0])) for item in items]
