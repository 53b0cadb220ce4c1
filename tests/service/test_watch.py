"""The watch: nothing missed, nothing twice, every failure a row; against an archive in memory that fails on command."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from models.errors import CODES, Refusal
from service.arrivals import OUTSIDE, Arrivals, Position
from service.dicom_results import is_ours
from service.settings import Settings
from service.watch import AWAY, Watch, asked_for, main
from tests.service.archives import MemoryArchive, chest


@pytest.fixture
def archive() -> MemoryArchive:
    return MemoryArchive()


@pytest.fixture
def start(make_site: Any, archive: MemoryArchive) -> Iterator[Callable[..., Watch]]:
    """Return a function that starts a watch anew, as after a crash, on the same database."""
    watches: list[Watch] = []

    def start(**settings: Any) -> Watch:
        site = make_site(**({"pacs_history": True, "pacs_poll_seconds": 0.01} | settings))
        watches.append(Watch(site, archive))  # type: ignore[arg-type]
        return watches[-1]

    yield start
    for watch in watches:
        watch.close()


def settle(watch: Watch) -> dict[str, int]:
    """Let a watch work until nothing is left."""
    while watch.step():
        pass
    return rows(watch).counts()


def rows(watch: Watch) -> Arrivals:
    return watch._arrivals


def dues(watch: Watch) -> list[Any]:
    """Return what waits, its time come or not."""
    with watch._site.store.writing() as connection:
        connection.exec_driver_sql("UPDATE pacs_instances SET due_at = 0")
    return rows(watch).due(100)


def test_an_instance_gets_one_report_and_ours_are_left_alone(start: Any, archive: MemoryArchive) -> None:
    archive.arrive(chest(1))
    watch = start()
    assert settle(watch) == {"waiting": 0, "done": 1, "skipped": 1, "failed": 0}
    (report,) = archive.results_for(1)
    assert report.Modality == "SR"
    assert is_ours(report)
    assert archive.calls.count("retrieve") == 1, "our own report is known by its header alone"


def test_the_settings_say_what_is_stored(start: Any, archive: MemoryArchive) -> None:
    archive.arrive(chest(1))
    settle(start(pacs_results=("sc", "sr", "seg")))
    assert {item.Modality for item in archive.results_for(1)} == {"SR", "OT"}
    assert len({item.SeriesInstanceUID for item in archive.results_for(1)}) == 2
    assert archive.calls.count("retrieve") == 1, "our own picture is known by its header alone"


def test_twenty_times_is_once(start: Any, archive: MemoryArchive) -> None:
    watch = start()
    for _ in range(20):
        archive.arrive(chest(1))
        settle(watch)
    for _ in range(20):  # an archive that overwrites says each time that it has come
        archive.change("id-2.25.1", chest(1))
        settle(watch)
    assert len(archive.stored) == 1
    assert settle(watch)["done"] == 1


def test_other_pixels_under_the_same_uid_are_another_result(start: Any, archive: MemoryArchive) -> None:
    watch = start()
    archive.arrive(chest(1))
    settle(watch)
    archive.change("id-2.25.1", chest(1, WindowCenter=900))
    settle(watch)
    first, second = archive.results_for(1)
    assert first.SOPInstanceUID != second.SOPInstanceUID
    replaced = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert replaced.ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert "PredecessorDocumentsSequence" not in first


def test_what_the_archive_lost_is_stored_again(start: Any, archive: MemoryArchive) -> None:
    watch = start()
    identifier = archive.arrive(chest(1))
    settle(watch)
    for lost in (identifier, *archive.stored):
        del archive.files[lost]
    archive.arrive(chest(1))
    settle(watch)
    assert len(archive.results_for(1)) == 1


@pytest.mark.parametrize("history", [False, True])
def test_what_was_there_before_the_first_start(start: Any, archive: MemoryArchive, history: bool) -> None:
    archive.arrive(chest(1))
    watch = start(pacs_history=history)
    settle(watch)
    archive.arrive(chest(2))
    settle(watch)
    assert (len(archive.results_for(1)), len(archive.results_for(2))) == (int(history), 1)


def test_what_came_while_the_watch_was_away(start: Any, archive: MemoryArchive) -> None:
    settle(start(pacs_history=False))
    for number in range(1, 8):
        archive.arrive(chest(number))
    settle(start(pacs_history=False))
    assert [len(archive.results_for(number)) for number in range(1, 8)] == [1] * 7


@pytest.mark.parametrize("last", [4, 12])
def test_an_archive_whose_log_began_anew(start: Any, archive: MemoryArchive, last: int) -> None:
    """The new log may end before the place that was read, or go on beyond it."""
    for number in range(1, 4):
        archive.arrive(chest(number))
    settle(start())
    archive.files.clear()
    archive.log.clear()
    archive.stored.clear()
    archive.sequence = 0
    for number in range(2, last + 1):
        archive.arrive(chest(number))
    settle(start())
    assert [len(archive.results_for(number)) for number in range(2, last + 1)] == [1] * (last - 1)


def test_the_same_log_is_not_read_again(start: Any, archive: MemoryArchive) -> None:
    archive.arrive(chest(1))
    settle(start())
    archive.calls.clear()
    settle(start())
    assert "header" not in archive.calls


@pytest.mark.parametrize("method", ["changes", "header", "retrieve", "store", "stored"])
def test_an_archive_that_is_away_costs_no_attempt(start: Any, archive: MemoryArchive, method: str) -> None:
    watch = start(pacs_attempts=2)
    for number in (1, 2, 3):
        archive.arrive(chest(number))
    archive.fail(method, 5)
    pauses = 0
    while True:
        try:
            if not watch.step():
                break
        except Refusal:
            pauses += 1
    assert 1 <= pauses <= 5
    assert rows(watch).counts()["done"] == 3
    assert [len(archive.results_for(number)) for number in (1, 2, 3)] == [1, 1, 1]


class Killed(BaseException):
    """Ends the process, as far as the code can tell: nothing after it runs."""


@pytest.mark.parametrize("moment", ["header", "retrieve", "store", "stored"])
def test_killed_at_any_moment_and_started_again(start: Any, archive: MemoryArchive, moment: str) -> None:
    def kill() -> None:
        raise Killed

    archive.arrive(chest(1))
    archive.faults[moment] = [kill]
    with pytest.raises(Killed):
        start().step()
    watch = start()
    assert settle(watch)["done"] == 1
    assert len(archive.results_for(1)) == 1
    assert len(archive.stored) == 1


def test_the_position_is_committed_with_what_was_seen(
    start: Any, archive: MemoryArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.arrive(chest(1))
    watch = start()
    settle(watch)
    before = rows(watch).position()
    archive.arrive(chest(2))
    with watch._site.store.writing() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER full BEFORE UPDATE ON pacs_positions BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
    with pytest.raises(Refusal):
        watch.step()
    assert rows(watch).position() == before
    assert rows(watch).due(10) == [], "neither without the other"
    with watch._site.store.writing() as connection:
        connection.exec_driver_sql("DROP TRIGGER full")
    assert settle(watch)["done"] == 2


def test_an_instance_that_the_archive_refuses_becomes_a_row_that_can_be_replayed(start: Any, archive: MemoryArchive) -> None:
    watch = start(pacs_attempts=3)
    archive.arrive(chest(1))
    archive.fail("store", 3, "archive_refused")
    watch.step()
    assert rows(watch).due(10) == [], "the next attempt has to wait"
    for _ in range(2):
        assert len(dues(watch)) == 1
        watch.step()
    (failure,) = rows(watch).failures()
    assert (failure.code, failure.attempts) == ("archive_refused", 3)
    assert rows(watch).replay([failure.id + 1]) == 0
    assert rows(watch).replay([failure.id]) == 1
    assert settle(watch)["failed"] == 0
    assert len(archive.results_for(1)) == 1


def test_an_image_that_kills_the_process_does_so_a_few_times_only(start: Any, archive: MemoryArchive) -> None:
    def kill() -> None:
        raise Killed

    archive.arrive(chest(1))
    archive.faults["retrieve"] = [kill] * 3
    for _ in range(3):
        with pytest.raises(Killed):
            start(pacs_attempts=3).step()
    watch = start(pacs_attempts=3)
    assert settle(watch)["failed"] == 1
    assert rows(watch).failures()[0].code == "internal_error"


def test_an_unexpected_fault_is_a_row_and_ends_nothing(start: Any, archive: MemoryArchive, capsys: Any) -> None:
    def break_() -> None:
        raise RuntimeError("CANARY^NAME")

    watch = start(pacs_attempts=1)
    archive.faults["retrieve"] = [break_]
    archive.arrive(chest(1))
    archive.arrive(chest(2))
    assert settle(watch) == {"waiting": 0, "done": 1, "skipped": 1, "failed": 1}
    assert "CANARY" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "state", "code"),
    [
        (chest(1, Modality="CT"), "skipped", "modality_not_accepted"),
        (chest(1, PixelData=None, Rows=None), "skipped", "no_pixel_data"),
        (chest(1, PixelData=None), "skipped", "no_pixel_data"),
        (chest(1, NumberOfFrames=3), "skipped", "multi_frame"),
        (chest(1, PixelData=b"12"), "failed", "inconsistent_image"),
        (chest(1, StudyInstanceUID=""), "failed", "inconsistent_image"),
    ],
)
def test_odd_instances_are_settled_with_a_reason(start: Any, archive: MemoryArchive, data: bytes, state: str, code: str) -> None:
    watch = start()
    archive.arrive(data)
    archive.arrive(chest(2))
    counts = settle(watch)
    assert counts[state] == (2 if state == "skipped" else 1)
    with watch._site.store.reading() as connection:
        stored = connection.exec_driver_sql("SELECT state, code FROM pacs_instances ORDER BY id").all()
    assert tuple(stored[0]) == (state, code)
    assert len(archive.results_for(2)) == 1


def test_an_instance_that_was_deleted_meanwhile(start: Any, archive: MemoryArchive) -> None:
    identifier = archive.arrive(chest(1))
    del archive.files[identifier]
    assert settle(start())["skipped"] == 1


def test_polling_sees_each_instance_once(start: Any, archive: MemoryArchive) -> None:
    archive.has_log = False
    for number in range(1, 6):
        archive.arrive(chest(number))
    watch = start()
    for _ in range(4):
        settle(watch)
    assert [len(archive.results_for(number)) for number in range(1, 6)] == [1] * 5
    assert archive.calls.count("retrieve") == 5
    archive.arrive(chest(6))
    settle(start(pacs_modalities=("DX", "CR")))
    assert len(archive.results_for(6)) == 1
    assert archive.calls.count("retrieve") == 6


RULES = Settings(
    pacs_modalities=("DX", "cr"), pacs_body_parts=("CHEST",), pacs_stations=("ROOM-*",), pacs_descriptions=("*thorax*", "Chest*")
)
FITS = {"Modality": "DX", "BodyPartExamined": "chest", "StationName": "room-3", "StudyDescription": "chest PA"}


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({}, True),
        ({"Modality": "CR"}, True),
        ({"Modality": "CT"}, False),
        ({"Modality": ""}, False),
        ({"BodyPartExamined": "HAND"}, False),
        ({"StationName": "WARD-1"}, False),
        ({"StudyDescription": "hand"}, False),
        ({"StudyDescription": "hand", "SeriesDescription": "Rx Thorax"}, True),
    ],
)
def test_rules(change: dict[str, str], asked: bool) -> None:
    assert asked_for(RULES, FITS | change) is asked
    assert asked_for(Settings(), FITS | change)


def test_what_no_rule_asks_for_is_never_fetched(start: Any, archive: MemoryArchive) -> None:
    archive.arrive(chest(1, StationName="WARD-1"))
    assert settle(start(pacs_stations=("ROOM-*",)))["skipped"] == 1
    assert "retrieve" not in archive.calls


def test_run_pauses_while_the_archive_is_away_and_then_completes(
    start: Any, archive: MemoryArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0)
            return False

    archive.arrive(chest(1))
    archive.fail("changes", 9)
    start().run(Stop(), once=True)
    assert len(archive.results_for(1)) == 1
    assert len(waits) == 9
    for wait, longest in zip(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60], strict=True):
        assert 0.7 * longest <= wait <= longest


def test_codes_are_known() -> None:
    assert set(CODES) >= (OUTSIDE | AWAY)
    assert not OUTSIDE & AWAY


def test_failures_are_listed_without_identity(
    start: Any, archive: MemoryArchive, monkeypatch: pytest.MonkeyPatch, capsys: Any, package: Any
) -> None:
    watch = start()
    archive.arrive(chest(1, PixelData=b"12"))
    settle(watch)
    monkeypatch.setenv("OVERREAD_STATE", str(watch._settings.state))
    assert main(["--failures"]) == 1
    shown = capsys.readouterr()
    assert "inconsistent_image" in shown.out
    assert "2.25" not in shown.out + shown.err
    assert main(["--replay"]) == 0
    assert "1 will be tried again" in capsys.readouterr().out
    assert main(["--failures"]) == 0
    assert rows(watch).position() == Position(1, "id-2.25.1")


def test_one_watch_at_a_time(start: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    import fcntl

    (tmp_path / "state").mkdir()
    monkeypatch.setenv("OVERREAD_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("OVERREAD_PACS_URL", "http://127.0.0.1:9/dicom-web")
    monkeypatch.setattr("service.watch.signal.signal", lambda *_: None)
    with (tmp_path / "state" / "watch.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Refusal) as caught:
            main(["--once"])
    assert caught.value.code == "config_invalid"
