"""The watch: nothing missed, nothing twice; against an archive in memory that fails on command."""

from __future__ import annotations

from typing import Any

import pytest

from models.errors import Refusal
from service.dicom_results import is_ours
from tests.service.archives import Killed, MemoryArchive, chest, rows, settle


@pytest.mark.dialects
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


@pytest.mark.dialects
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


@pytest.mark.dialects
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
    def leave() -> None:
        archive.away = 5
        raise Refusal("archive_unavailable")

    watch = start(pacs_attempts=2)
    for number in (1, 2, 3):
        archive.arrive(chest(number))
    archive.faults[method] = [leave]
    pauses = 0
    while True:
        try:
            if not watch.step():
                break
        except Refusal:
            pauses += 1
    assert 1 <= pauses <= 6
    assert rows(watch).counts()["done"] == 3
    assert [len(archive.results_for(number)) for number in (1, 2, 3)] == [1, 1, 1]


@pytest.mark.dialects
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
