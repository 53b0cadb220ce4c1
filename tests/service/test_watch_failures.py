"""The watch: rules, odd instances, and every failure a row that is listed and replayed."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from pydicom.uid import ComprehensiveSRStorage, EncapsulatedPDFStorage

from models.errors import CODES, Refusal
from service.arrivals import OUTSIDE, Position
from service.places import place_of, reference_of
from service.settings import Settings
from service.watch import AWAY, asked_for, main
from tests.service.archives import Killed, MemoryArchive, chest, dues, rows, settle


@pytest.mark.dialects
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


@pytest.mark.dialects
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
        (chest(1, SOPClassUID=ComprehensiveSRStorage, Modality="SR", PixelData=None, Rows=None), "skipped", "no_pixel_data"),
        (chest(1, SOPClassUID=EncapsulatedPDFStorage, Modality="DOC", PixelData=None, Rows=None), "skipped", "no_pixel_data"),
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


@pytest.mark.dialects
@pytest.mark.dialects
def test_what_is_no_uid_is_a_failure_and_the_rest_goes_on(start: Any, archive: MemoryArchive) -> None:
    """PostgreSQL keeps 64 characters and no NUL: what it does not take must not be met again and again."""
    archive.has_log = False
    watch, odd = start(), ("1." * 33 + "1", "1.2\0.3", "1.2.é")
    named = [place_of(reference_of(uid), {"StudyInstanceUID": uid, "SOPInstanceUID": uid}) for uid in odd]
    assert rows(watch).note(named, Position(20260101, ""), again=False) == 3
    archive.arrive(chest(1))
    assert settle(watch) == {"waiting": 0, "done": 1, "skipped": 1, "failed": 3}
    assert len(archive.results_for(1)) == 1


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


@pytest.mark.dialects
def test_failures_are_listed_without_identity(
    start: Any, archive: MemoryArchive, environment: pytest.MonkeyPatch, capsys: Any
) -> None:
    watch = start()
    archive.arrive(chest(1, PixelData=b"12"))
    settle(watch)
    assert main(["--failures"]) == 1
    shown = capsys.readouterr()
    assert "inconsistent_image" in shown.out
    assert "2.25" not in shown.out + shown.err
    assert main(["--replay"]) == 0
    assert "1 will be tried again" in capsys.readouterr().out
    assert main(["--failures"]) == 0
    assert rows(watch).position() == Position(1, "id-2.25.1")


@pytest.mark.dialects
def test_the_metrics_say_what_became_of_instances(start: Any, archive: MemoryArchive, connect: Any) -> None:
    watch = start()
    archive.arrive(chest(1))
    archive.arrive(chest(2, PixelData=b"12"))
    settle(watch)
    text = connect(watch._site).get("/metrics").text
    for state, number in {"waiting": 0, "done": 1, "skipped": 1, "failed": 1}.items():
        assert f'overread_pacs_instances{{state="{state}"}} {number}.0' in text


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
