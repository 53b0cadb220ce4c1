"""Lists by QIDO-RS: how many requests they take, and where they end."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest

from models.errors import Refusal
from service import qido
from service.places import Header, Place
from service.qido import PAGE, Held

STUDY = Held("1.2", "", 1, None)


class Lists:
    """An archive with one list; ``most`` are its matches a page, ``deaf`` whether it ignores ``offset``."""

    def __init__(self, number: int, key: str, most: int = 10**9, *, deaf: bool = False) -> None:
        self.matches: list[Header] = [{key: f"1.{at}", "NumberOfStudyRelatedInstances": "7"} for at in range(number)]
        self.most, self.deaf = most, deaf
        self.asked: list[tuple[str, dict[str, str]]] = []

    def __call__(self, resource: str, parameters: Mapping[str, str]) -> list[Header]:
        assert len(self.asked) < 100, "asked without end"
        self.asked.append((resource, dict(parameters)))
        offset = 0 if self.deaf else int(parameters["offset"])
        return self.matches[offset : offset + min(self.most, int(parameters["limit"]))]


def uids(pages: Any) -> list[str]:
    return [held.uid for page in pages for held in page]


@pytest.mark.parametrize(
    ("number", "most", "requests"), [(0, PAGE, 1), (3, PAGE, 2), (PAGE, PAGE, 2), (1000, PAGE, 6), (1000, 120, 10)]
)
def test_all_pages_are_asked_for_until_one_is_empty(number: int, most: int, requests: int) -> None:
    """An archive may give fewer matches a page than were asked for."""
    archive = Lists(number, "StudyInstanceUID", most)
    assert uids(qido.studies(archive, "20260101")) == [f"1.{at}" for at in range(number)]
    assert len(archive.asked) == requests
    offsets = [int(parameters["offset"]) for _, parameters in archive.asked]
    assert all(later - earlier == min(most, PAGE) or later == number for earlier, later in pairwise(offsets))


@pytest.mark.parametrize("number", [1, 3, PAGE, 1000])
@pytest.mark.parametrize("most", [1, PAGE, 10**9])
def test_an_archive_that_ignores_offset_is_refused(number: int, most: int) -> None:
    """Its first page would come for ever; that it is all of the list cannot be known."""
    archive = Lists(number, "StudyInstanceUID", most, deaf=True)
    with pytest.raises(Refusal, match="offset") as caught:
        uids(qido.studies(archive, "20260101"))
    assert caught.value.code == "archive_refused"
    assert len(archive.asked) == 3


def test_a_study_that_comes_while_it_is_listed_is_no_repetition() -> None:
    archive = Lists(PAGE, "StudyInstanceUID")
    pages = qido.studies(archive, "20260101")
    assert len(next(pages)) == PAGE
    archive.matches.insert(0, {"StudyInstanceUID": "1.999"})  # the last match is the first of the next page now
    assert [held.uid for page in pages for held in page] == [f"1.{PAGE - 1}"]


@pytest.mark.parametrize(
    ("stated", "number", "requests"), [(None, 3, 2), (3, 3, 1), (1, 3, 1), (5, 3, 2), (PAGE, PAGE, 2), (1, 300, 2), (300, 300, 2)]
)
def test_where_the_number_is_known_the_empty_page_is_saved(stated: int | None, number: int, requests: int) -> None:
    """A number that is too large costs a request."""
    archive = Lists(number, "SOPInstanceUID")
    found = [place for page in qido.instances(archive, "1.2", Held("1.3", "", None, stated)) for place in page]
    assert found == [Place(f"1.{at}", "1.2", "1.3", f"1.{at}") for at in range(number)]
    assert len(archive.asked) == requests
    assert {resource for resource, _ in archive.asked} == {"/studies/1.2/series/1.3/instances"}


def test_what_is_asked_and_what_is_read_of_the_answer() -> None:
    archive = Lists(1, "StudyInstanceUID")
    (page,) = qido.studies(archive, "20260101", "DX")
    assert page == [Held("1.0", "", None, 7)]
    asked = {"StudyDate": "20260101-", "ModalitiesInStudy": "DX", "limit": "200", "offset": "0"}
    assert archive.asked[0] == ("/studies", asked)

    archive = Lists(1, "SeriesInstanceUID")
    archive.matches[0] |= {"Modality": "CT", "NumberOfSeriesRelatedInstances": "12"}
    assert list(qido.series(archive, STUDY)) == [[Held("1.0", "CT", None, 12)]]
    assert [resource for resource, _ in archive.asked] == ["/studies/1.2/series"]

    for text in ("", "-1", "x", "²", "1.5"):
        archive.matches[0]["NumberOfSeriesRelatedInstances"] = text
        assert list(qido.series(archive, STUDY)) == [[Held("1.0", "CT", None, None)]]

    archive = Lists(1, "SOPInstanceUID")
    archive.matches += [{}, {"StudyInstanceUID": "1.2"}]
    assert list(qido.everything(archive, "DX")) == [[Place("1.0", "", "", "1.0")]]
    assert archive.asked[0] == ("/instances", {"Modality": "DX", "limit": "200", "offset": "0"})


@pytest.mark.parametrize("uid", ["1." * 33, "1.2\0", "1.é", "..", "."])
def test_what_is_no_uid_is_known_by_a_digest(uid: str) -> None:
    """So that it becomes a failure with a row, and no path is built from it."""
    archive = Lists(0, "")
    archive.matches = [{"SOPInstanceUID": uid}]
    (page,) = qido.instances(archive, "1.2", Held("1.3", "", None, 1))
    assert page == [Place(hashlib.sha256(uid.encode()).hexdigest(), "1.2", "1.3", "")]
