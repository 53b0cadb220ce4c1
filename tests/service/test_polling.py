"""An archive without a log: how many requests a look takes, and that nothing is missed for it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import pytest

from models.errors import Refusal
from service import polling
from service.arrivals import Arrivals, Position
from service.places import Header, Place
from service.polling import Polling
from service.settings import Settings
from service.store import Store

NOW = datetime.now(UTC)
TODAY = Position(int(f"{NOW:%Y%m%d}"), "")


class Qido:
    """An archive that answers searches alone: study -> series -> (modality, SOP Instance UIDs)."""

    def __init__(self) -> None:
        self.studies: dict[str, dict[str, tuple[str, list[str]]]] = {}
        self.asked: list[str] = []
        self.parameters: list[Mapping[str, str]] = []
        self.broken: dict[str, str] = {}  # resource -> code
        self.away = False
        self.counts = True
        self.deaf = False

    def fill(self, studies: int, instances: int, modality: str = "CT") -> None:
        for number in range(len(self.studies), len(self.studies) + studies):
            uids = [f"1.3.{number}.{at}" for at in range(instances)]
            self.studies[f"1.1.{number}"] = {f"1.2.{number}": (modality, uids)}

    def probe(self) -> None:
        if self.away:
            raise Refusal("archive_unavailable")

    def query(self, resource: str, parameters: Mapping[str, str]) -> list[Header]:
        self.asked.append(resource)
        self.parameters.append(parameters)
        self.probe()
        if resource in self.broken:
            raise Refusal(self.broken[resource])
        offset = 0 if self.deaf else int(parameters["offset"])
        matches = list(self._matches(resource, parameters))
        return matches[offset : offset + int(parameters["limit"])]

    def _matches(self, resource: str, parameters: Mapping[str, str]) -> Iterator[Header]:
        _, _, study, _, series, *_ = [*resource.split("/"), *[""] * 5]
        if not study:
            for uid, held in self.studies.items():
                if parameters.get("ModalitiesInStudy") in {None, *(modality for modality, _ in held.values())}:
                    number = str(sum(len(uids) for _, uids in held.values()))
                    numbers = {"NumberOfStudyRelatedSeries": str(len(held)), "NumberOfStudyRelatedInstances": number}
                    yield {"StudyInstanceUID": uid} | (numbers if self.counts else {})
        elif not series:
            for uid, (modality, uids) in self.studies[study].items():
                number = str(len(uids))
                yield {"SeriesInstanceUID": uid, "Modality": modality, "NumberOfSeriesRelatedInstances": number}
        else:
            for uid in self.studies[study][series][1]:
                yield {"SOPInstanceUID": uid}


class Day(datetime):
    """The time of day at which the tests began: midnight does not pass between a test's look at the calendar and the watch's."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Day:
        return cls.fromtimestamp(NOW.timestamp(), tz)


class Clock:
    now = 1e6

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(polling, "time", clock)
    monkeypatch.setattr(polling, "datetime", Day)
    return clock


@pytest.fixture
def qido() -> Qido:
    return Qido()


@pytest.fixture
def arrivals(store: Store) -> Arrivals:
    return Arrivals(store)


@pytest.fixture
def start(qido: Qido, arrivals: Arrivals, clock: Clock) -> Any:
    return lambda **settings: Polling(qido, arrivals, Settings(**settings))  # type: ignore[arg-type]


def look(watch: Polling, qido: Qido, clock: Clock, seconds: float = 5.0) -> list[str]:
    """Let a watch look once, after so long; return what it asked for."""
    clock.now += seconds
    qido.asked.clear()
    while watch.step():
        pass
    return list(qido.asked)


def seen(arrivals: Arrivals) -> set[str]:
    return {arrival.place.sop_instance_uid for arrival in arrivals.due(10**6)}


def test_a_look_that_finds_nothing_new_asks_for_the_studies_alone(
    start: Any, qido: Qido, arrivals: Arrivals, clock: Clock
) -> None:
    """1,000 studies of 300: 300,000 instances, which were 1,501 requests a look when all were listed."""
    qido.fill(1000, 300)
    qido.fill(3, 2, "DX")
    watch = start(pacs_modalities=("DX",))
    first = look(watch, qido, clock)
    assert len(first) == 2 + 3 + 3, "the studies with DX, with an empty page; and of each its series and its instances"
    assert seen(arrivals) == {f"1.3.{number}.{at}" for number in (1000, 1001, 1002) for at in range(2)}
    everything = start()
    everything._known = {f"1.1.{number}": polling._Known(clock.now, 300) for number in range(1000)}  # listed before
    look(everything, qido, clock)
    for _ in range(10):
        assert look(everything, qido, clock) == ["/studies"] * 7, "six pages and an empty one"
    qido.studies["1.1.7"]["1.2.7"][1].append("1.3.7.300")
    assert look(everything, qido, clock)[7:] == ["/studies/1.1.7/series"] + ["/studies/1.1.7/series/1.2.7/instances"] * 2


def test_of_a_study_that_grew_only_the_series_that_did_is_listed(
    start: Any, qido: Qido, arrivals: Arrivals, clock: Clock
) -> None:
    qido.fill(1, 3)
    qido.studies["1.1.0"] |= {"1.2.8": ("CT", ["1.8.1"]), "1.2.9": ("SR", ["1.9.1"])}
    watch = start()
    assert len(look(watch, qido, clock)) == 2 + 1 + 3
    qido.studies["1.1.0"]["1.2.8"][1].append("1.8.2")
    assert look(watch, qido, clock)[2:] == ["/studies/1.1.0/series", "/studies/1.1.0/series/1.2.8/instances"]
    assert seen(arrivals) == {"1.3.0.0", "1.3.0.1", "1.3.0.2", "1.8.1", "1.8.2", "1.9.1"}


@pytest.mark.parametrize("modalities", [("DX",), ("dx", "CR")])
def test_the_modality_is_asked_of_studies_and_looked_at_in_series(
    start: Any, qido: Qido, arrivals: Arrivals, clock: Clock, modalities: tuple[str, ...]
) -> None:
    qido.fill(1, 3, "CT")
    qido.fill(1, 2, "DX")
    qido.studies["1.1.1"]["1.2.9"] = ("SR", ["1.9.1"])
    qido.studies["1.1.1"]["1.2.8"] = ("", ["1.8.1"])  # not stated: its header will say
    asked = look(start(pacs_modalities=modalities), qido, clock)
    assert {parameters.get("ModalitiesInStudy") for parameters in qido.parameters[:2]} <= {"DX", "CR"}
    assert not [resource for resource in asked if "1.1.0" in resource or "1.2.9" in resource]
    assert seen(arrivals) == {"1.3.1.0", "1.3.1.1", "1.8.1"}


def test_what_took_another_s_place_is_seen_by_the_sweep(start: Any, qido: Qido, arrivals: Arrivals, clock: Clock) -> None:
    qido.fill(2, 2)
    watch = start()
    look(watch, qido, clock)
    qido.studies["1.1.1"]["1.2.1"][1][0] = "1.9.9"
    for _ in range(3):
        look(watch, qido, clock)
    assert "1.9.9" not in seen(arrivals), "the numbers are the same"
    look(watch, qido, clock, polling.SWEEP_SECONDS)
    assert "1.9.9" in seen(arrivals)
    assert look(watch, qido, clock) == ["/studies"] * 2
    qido.studies["1.1.1"]["1.2.1"][1][0] = "1.9.8"
    look(start(), qido, clock)
    assert "1.9.8" in seen(arrivals), "a restart remembers nothing"


def test_a_study_that_grows_all_the_time_is_swept_too(start: Any, qido: Qido, arrivals: Arrivals, clock: Clock) -> None:
    qido.fill(1, 2)
    qido.studies["1.1.0"]["1.2.9"] = ("CT", [])
    watch = start()
    look(watch, qido, clock)
    qido.studies["1.1.0"]["1.2.0"][1][0] = "1.9.9"
    for minute in range(70):
        qido.studies["1.1.0"]["1.2.9"][1].append(f"1.7.{minute}")
        look(watch, qido, clock, 60)
    assert "1.9.9" in seen(arrivals)


def test_what_came_just_now_does_not_wait_for_all_that_is_old(start: Any, qido: Qido, arrivals: Arrivals, clock: Clock) -> None:
    qido.fill(3 * polling.STUDIES, 1)
    watch = start()
    assert watch.step(), "a few studies at a time"
    assert len(seen(arrivals)) == polling.STUDIES
    assert arrivals.position() == TODAY
    look(watch, qido, clock)
    clock.now += polling.SWEEP_SECONDS
    qido.fill(1, 1)
    assert watch.step()
    assert f"1.3.{3 * polling.STUDIES}.0" in seen(arrivals), "the new one before the sweep"


def test_no_look_before_its_time(start: Any, qido: Qido, clock: Clock) -> None:
    qido.fill(1, 1)
    watch = start(pacs_poll_seconds=7.0)
    for _ in range(5):
        watch.step()
    assert qido.asked.count("/studies") == 2
    clock.now += 7
    watch.step()
    assert qido.asked.count("/studies") == 4


def test_an_archive_that_does_not_state_numbers_is_listed_each_time(
    start: Any, qido: Qido, arrivals: Arrivals, clock: Clock
) -> None:
    qido.counts = False
    qido.fill(2, 2)
    watch = start()
    look(watch, qido, clock)
    qido.studies["1.1.1"]["1.2.1"][1].append("1.9.9")
    look(watch, qido, clock)
    assert "1.9.9" in seen(arrivals)


def test_an_archive_that_ignores_offset_is_told_from_one_that_is_read(
    start: Any, qido: Qido, arrivals: Arrivals, clock: Clock
) -> None:
    qido.fill(3, 1)
    qido.deaf = True
    watch = start()
    with pytest.raises(Refusal, match="offset") as caught:
        watch.step()
    assert caught.value.code == "archive_refused"
    assert len(qido.asked) == 3
    assert arrivals.position() is None, "nothing is said to have been read"
    qido.deaf = False
    look(watch, qido, clock)
    assert len(seen(arrivals)) == 3


@pytest.mark.parametrize("code", ["archive_unavailable", "archive_refused", "too_large"])
def test_one_study_that_cannot_be_listed_stops_no_other(
    start: Any, qido: Qido, arrivals: Arrivals, clock: Clock, code: str
) -> None:
    yesterday = Position(int(f"{NOW - timedelta(days=1):%Y%m%d}"), "")
    arrivals.note([], yesterday)
    qido.fill(3, 1)
    bad = "/studies/1.1.1/series"
    qido.broken[bad] = code
    watch = start(pacs_poll_seconds=1.0)
    assert bad in look(watch, qido, clock)
    assert seen(arrivals) == {"1.3.0.0", "1.3.2.0"}
    tries = [at for at in range(100) if bad in look(watch, qido, clock, 1.0)]
    assert tries == [0, 4, 20, 84], "seldom, and more and more so"
    assert arrivals.position() == yesterday, "after a restart it is still within the days that are asked for"
    qido.broken.clear()
    look(watch, qido, clock, 300)
    assert "1.3.1.0" in seen(arrivals)
    assert arrivals.position() == TODAY


def test_an_archive_that_goes_away_while_it_is_listed(start: Any, qido: Qido, arrivals: Arrivals, clock: Clock) -> None:
    yesterday = Position(int(f"{NOW - timedelta(days=1):%Y%m%d}"), "")
    arrivals.note([], yesterday)
    qido.fill(5, 1)
    watch = start()
    real, left = qido.query, itertools.count()

    def query(resource: str, parameters: Mapping[str, str]) -> list[Header]:
        qido.away = next(left) == 5  # within the second study
        return real(resource, parameters)

    qido.query = query  # type: ignore[method-assign]
    with pytest.raises(Refusal):
        watch.step()
    assert len(seen(arrivals)) == 1
    assert arrivals.position() == yesterday, "not all was listed"
    qido.away = False
    look(watch, qido, clock)
    assert len(seen(arrivals)) == 5
    assert arrivals.position() == TODAY


def test_days_without_the_watch_are_asked_for(start: Any, qido: Qido, arrivals: Arrivals, clock: Clock) -> None:
    arrivals.note([], Position(20260105, ""))
    look(start(pacs_days=2), qido, clock)
    assert qido.parameters[0]["StudyDate"] == "20260103-"
    arrivals.note([], Position(17, "entry of a log that was followed before"))
    look(start(pacs_days=2), qido, clock)
    assert qido.parameters[-1]["StudyDate"] == f"{NOW - timedelta(days=2):%Y%m%d}-"


def test_a_study_or_series_without_a_uid_is_a_row(start: Any, qido: Qido, arrivals: Arrivals, clock: Clock) -> None:
    """Nothing can be asked for below it; the row becomes a failure that an operator sees."""
    qido.studies = {"../1": {"1.2.1": ("CT", ["1.3.1"])}, "1.1.2": {"CANARY": ("CT", ["1.3.2"]), "1.2.2": ("CT", ["1.3.3"])}}
    asked = look(start(), qido, clock)
    assert not [resource for resource in asked if ".." in resource or "CANARY" in resource]
    places = [arrival.place for arrival in arrivals.due(9)]
    assert sorted(place.sop_instance_uid for place in places) == ["", "", "1.3.3"]
    assert Place("1.3.3", "1.1.2", "1.2.2", "1.3.3") in places
