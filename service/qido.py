"""QIDO-RS (PS3.18, 10.6): what an archive holds, page by page: its studies, the series of one, the instances of one; or all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from models.errors import Refusal
from service.places import Header, Place, place_of, reference_of

PAGE = 200
"""Matches asked for at once; an archive may give fewer."""
Query = Callable[[str, Mapping[str, str]], list[Header]]
"""Asks a search resource with parameters for one page, as :meth:`service.dicomweb.Archive.query` does."""


@dataclass(frozen=True)
class Held:
    """A study or a series, as the archive lists it.

    Attributes
    ----------
    uid : str
        What the archive calls its UID.
    modality : str
        Of a series; empty where it is not stated, and of a study.
    series : int or None
        Number of a study's series; None where it is not stated, and of a series.
    instances : int or None
        Number of its instances; None where it is not stated.
    """

    uid: str
    modality: str
    series: int | None
    instances: int | None


def studies(query: Query, since: str, modality: str = "") -> Iterator[list[Held]]:
    """List the studies of a date (YYYYMMDD) or later that have a series of a modality, or all of them.

    Yields
    ------
    list of Held
        A page.

    Raises
    ------
    Refusal
        What ``query`` raises; ``archive_refused`` for an archive that does not heed ``offset``, which would give its first page
        for ever.
    """
    match = {"StudyDate": f"{since}-"} | ({"ModalitiesInStudy": modality} if modality else {})
    for page in _pages(query, "/studies", "StudyInstanceUID", match):
        yield [_held(header, "StudyInstanceUID", "NumberOfStudyRelatedInstances") for header in page]


def series(query: Query, study: Held) -> Iterator[list[Held]]:
    """List the series of a study, as :func:`studies` does."""
    for page in _pages(query, f"/studies/{study.uid}/series", "SeriesInstanceUID", {}, study.series):
        yield [_held(header, "SeriesInstanceUID", "NumberOfSeriesRelatedInstances") for header in page]


def instances(query: Query, study_uid: str, listed: Held) -> Iterator[list[Place]]:
    """List the instances of a series, as :func:`studies` does."""
    above = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": listed.uid}  # an answer below both need not repeat them
    resource = f"/studies/{study_uid}/series/{listed.uid}/instances"
    for page in _pages(query, resource, "SOPInstanceUID", {}, listed.instances):
        yield [_place(header | above) for header in page]


def everything(query: Query, modality: str = "") -> Iterator[list[Place]]:
    """List all instances of a modality, or all of them, as :func:`studies` does."""
    for page in _pages(query, "/instances", "SOPInstanceUID", {"Modality": modality} if modality else {}):
        yield [_place(header) for header in page]


def _pages(
    query: Query, resource: str, unique: str, match: Mapping[str, str], expected: int | None = None
) -> Iterator[list[Header]]:
    """Ask for one page after the other, each match with its unique key.

    The end is an empty page: a short one is none, since an archive may have a limit of its own below ours (PS3.18, 8.3.4.4).
    Where the number of matches is known, a short page that reaches it is the last, which saves the empty one.
    """
    offset = found = repeated = 0
    before: set[str] = set()
    while page := query(resource, {**match, "limit": str(PAGE), "offset": str(offset)}):
        keys = {header.get(unique, "") for header in page}
        # Once it may be that something came meanwhile and moved the last match on to this page
        repeated = repeated + 1 if keys <= before else 0
        if repeated > 1:
            raise Refusal("archive_refused", "The archive's list repeats itself: it does not heed 'offset'.")
        yield [header for header in page if header.get(unique)]
        offset += len(page)
        found += 0 if repeated else len(keys)
        before = keys
        if expected is not None and len(page) < PAGE and found >= expected:
            return


def _held(header: Header, unique: str, number: str) -> Held:
    related = (header.get("NumberOfStudyRelatedSeries", ""), header.get(number, ""))
    counts = (int(text) if text.isascii() and text.isdecimal() else None for text in related)
    return Held(header[unique], header.get("Modality", ""), *counts)


def _place(header: Header) -> Place:
    return place_of(reference_of(header["SOPInstanceUID"]), header)
