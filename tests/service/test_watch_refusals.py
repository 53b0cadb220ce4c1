"""One instance that the archive never gives, or never takes a result of, beside an archive that is away: row 16."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from models.errors import Refusal
from service import polling
from service import watch as module
from service.places import Place
from service.polling import backoff
from service.settings import Settings
from service.watch import Watch
from tests.service.archives import MemoryArchive, chest, dues, rows, settle

BAD = 2


class Clock:
    """Time that passes only where somebody waits for it."""

    def __init__(self) -> None:
        self.now = 1e9

    def time(self) -> float:
        return self.now

    monotonic = time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for name in ("service.arrivals.time", "service.watch.time", "service.polling.time"):
        monkeypatch.setattr(name, clock)
    return clock


def spoil(archive: MemoryArchive, method: str, code: str = "archive_unavailable") -> None:
    """Let the archive fail for one instance, each time, in the way of 403, 503 or a time-out; it has others, and answers."""
    real: Callable[[Any], Any] = getattr(archive, method)

    def fail(asked: Any) -> Any:
        if isinstance(asked, Place):
            bad = f"2.25.{BAD}" in {asked.reference.removeprefix("id-"), asked.sop_instance_uid}
        else:
            bad = any(f"2.25.1{BAD}".encode() in data for data in asked.values())
        if bad:
            archive.calls.append(f"bad {method}")
            raise Refusal(code)
        return real(asked)

    setattr(archive, method, fail)


def run(watch: Watch, clock: Clock, seconds: float) -> list[float]:
    """Let a watch run for so long; return its pauses."""
    end, pauses = clock.now + seconds, []

    class Stop(threading.Event):
        def is_set(self) -> bool:
            return clock.now >= end

        def wait(self, timeout: float | None = None) -> bool:
            clock.now += timeout or 0
            if timeout != watch._settings.pacs_poll_seconds:
                pauses.append(timeout or 0)
            return False

    watch.run(Stop())
    return pauses


@pytest.mark.parametrize(("log", "method"), [(True, "header"), (False, "retrieve"), (True, "store")])
def test_one_bad_instance_is_a_failure_and_stops_no_other(
    start: Any, archive: MemoryArchive, clock: Clock, log: bool, method: str
) -> None:
    archive.has_log = log
    watch = start(pacs_attempts=4, pacs_poll_seconds=5.0)
    for number in range(1, 5):
        archive.arrive(chest(number))
    spoil(archive, method)
    counts = settle(watch)  # no time has passed
    assert (counts["done"], counts["waiting"], counts["failed"]) == (3, 1, 0), "the others were not kept waiting"
    assert archive.calls.count(f"bad {method}") == 1, "and it waits for its time"
    assert run(watch, clock, 120) == [], "nothing pauses"
    (failure,) = rows(watch).failures()
    assert (failure.code, failure.attempts) == ("archive_refused", 4)
    assert archive.calls.count(f"bad {method}") == 4
    assert [len(archive.results_for(number)) for number in range(1, 5)] == [1, 0, 1, 1]

    delattr(archive, method)  # somebody has mended it
    assert rows(watch).replay() == 1
    assert settle(watch)["failed"] == 0
    assert len(archive.results_for(BAD)) == 1


@pytest.mark.parametrize("log", [True, False])
def test_an_hour_without_the_archive_loses_nothing_and_gives_nothing_up(
    start: Any, archive: MemoryArchive, clock: Clock, log: bool
) -> None:
    archive.has_log = log
    watch = start(pacs_poll_seconds=90.0)
    for number in range(1, 4):
        archive.arrive(chest(number))

    def leave() -> None:
        archive.away = 10**9
        raise Refusal("archive_unavailable")

    archive.faults["retrieve"] = [leave]
    pauses = run(watch, clock, 3600)
    assert len(pauses) > 50
    assert max(pauses) <= 60
    assert rows(watch).failures() == []
    assert sum(arrival.attempts for arrival in dues(watch)) == 0
    archive.away = 0
    for number in range(4, 6):
        archive.arrive(chest(number))
    assert run(watch, clock, 300) == []
    assert [len(archive.results_for(number)) for number in range(1, 6)] == [1] * 5


@pytest.mark.parametrize("method", ["retrieve", "store"])
def test_an_hour_in_which_nothing_can_be_fetched_or_stored_gives_nothing_up(
    start: Any, archive: MemoryArchive, clock: Clock, method: str
) -> None:
    """The archive answers all the same: each instance is tried again for longer than that."""
    watch = start(pacs_attempts=Settings().pacs_attempts, pacs_poll_seconds=90.0)
    for number in range(1, 4):
        archive.arrive(chest(number))
    archive.fail(method, 10**4)
    assert run(watch, clock, 3600) == []
    assert rows(watch).counts()["waiting"] == 3
    archive.faults.clear()
    run(watch, clock, 3600)
    assert [len(archive.results_for(number)) for number in range(1, 4)] == [1] * 3
    assert sum(map(backoff, range(Settings().pacs_attempts - 1))) > 3600


def test_instances_at_which_the_archive_goes_down_do_not_keep_the_others_from_their_turn(
    start: Any, archive: MemoryArchive, clock: Clock
) -> None:
    """As many of them as are tried at once: they must not be the first again after each pause."""
    watch = start(threads=1, pacs_poll_seconds=5.0)
    for number in range(1, 9):
        archive.arrive(chest(number))
    real = archive.header

    def header(place: Place) -> Any:
        if place.reference in {f"id-2.25.{number}" for number in range(1, 5)}:
            archive.away = 1
            raise Refusal("archive_unavailable")
        return real(place)

    archive.header = header  # type: ignore[method-assign]
    run(watch, clock, 600)
    assert rows(watch).counts() == {"waiting": 4, "done": 4, "skipped": 4, "failed": 0}


def test_an_archive_that_lets_nobody_in_is_paused_for(start: Any, archive: MemoryArchive, clock: Clock) -> None:
    """401 and 403 to everything, in the middle of the work: no instance is to blame."""
    watch = start(pacs_attempts=1, pacs_poll_seconds=5.0)
    archive.arrive(chest(1))
    archive.fail("retrieve", 3)
    archive.fail("probe", 3)
    assert len(run(watch, clock, 60)) == 3
    assert rows(watch).counts()["done"] == 1


def test_times_are_those_of_the_documentation() -> None:
    assert [backoff(failures) for failures in range(7)] == [1, 4, 16, 64, 256, 1024, 2400]
    assert module.LONGEST_BACKOFF_SECONDS == polling.LONGEST_BACKOFF_SECONDS == 2400
