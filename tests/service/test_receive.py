"""What becomes of an instance that a sender brings: the status is honest, and whatever is refused is a row."""

from __future__ import annotations

import io
import re
import threading
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.dimse import DIMSEServiceProvider

from models.dicom_syntaxes import SYNTAXES
from models.errors import CODES, Refusal
from service.arrivals import DONE, FAILED, OUTSIDE, WAITING, Arrivals
from service.dimse import SOP_CLASSES, Server
from service.receive import (
    AGAIN,
    CANNOT_UNDERSTAND,
    NO_MATCH,
    NOT_FOR_THE_MODEL,
    OUT_OF_RESOURCES,
    SUCCESS,
    Receiver,
    check_settings,
    main,
)
from service.settings import Settings, read_settings
from tests.conftest import ROOT
from tests.models.dicom_files import DEFLATED, element, raw_file
from tests.ports import free_port
from tests.service.archives import MemoryArchive, chest, settle


@pytest.fixture
def make(make_site: Any, archive: MemoryArchive) -> Any:
    """Return a function that makes a receiver anew, as after a crash, on the same database."""
    return lambda before: Receiver(make_site(), archive if before else None)  # type: ignore[arg-type]


def states(receiver: Receiver) -> list[tuple[str, str, int]]:
    with receiver._site.store.reading() as connection:
        found = connection.exec_driver_sql("SELECT state, code, attempts FROM pacs_instances ORDER BY id").all()
    return [tuple(row) for row in found]


def class_of(data: bytes) -> str:
    return str(pydicom.dcmread(io.BytesIO(data)).SOPClassUID)


def send(receiver: Receiver, data: bytes, number: int = 1) -> tuple[int, str]:
    return receiver(data, class_of(data), f"2.25.{number}")


@pytest.mark.parametrize("before", [True, False])
def test_success_is_answered_when_everything_is_committed(make: Any, archive: MemoryArchive, before: bool) -> None:
    receiver = make(before)
    for _ in range(20):
        assert send(receiver, chest(1)) == (SUCCESS, "")
    assert states(receiver) == [(DONE, "", 1)]
    assert len(archive.stored) == int(before)
    assert [item.Modality for item in archive.results_for(1)] == ["SR"] * int(before)


@pytest.mark.dialects
def test_what_is_received_is_of_the_archive_s_site_and_of_its_stations(make_site: Any) -> None:
    site = make_site(sites=("east",), pacs_site="east", stations=("east=CT1",))
    receiver = Receiver(site, None)
    assert send(receiver, chest(1, StationName="CT1")) == (SUCCESS, "")
    assert send(receiver, chest(2, StationName="CT2"), 2) == (SUCCESS, "")
    with site.store.reading() as connection:
        found = connection.exec_driver_sql("SELECT site, station FROM verdicts ORDER BY id").all()
    assert [tuple(row) for row in found] == [("east", "CT1"), ("east", "")]


def test_other_pixels_replace_the_report(make: Any, archive: MemoryArchive) -> None:
    receiver = make(True)
    send(receiver, chest(1))
    send(receiver, chest(1, WindowCenter=900))
    first, second = archive.results_for(1)
    replaced = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert replaced.ReferencedSOPInstanceUID == first.SOPInstanceUID


@pytest.mark.parametrize(
    ("fault", "status", "row"),
    [
        ("archive_unavailable", OUT_OF_RESOURCES, (FAILED, "archive_unavailable", 1)),
        ("archive_refused", CANNOT_UNDERSTAND, (FAILED, "archive_refused", 1)),
    ],
)
def test_an_archive_that_has_no_result_is_no_success(
    make: Any, archive: MemoryArchive, fault: str, status: int, row: tuple[str, str, int]
) -> None:
    receiver = make(True)
    archive.fail("store", 1, fault)
    assert send(receiver, chest(1)) == (status, fault)
    assert states(receiver) == [row]
    assert send(receiver, chest(1)) == (SUCCESS, "")
    assert states(receiver) == [(DONE, "", 2)]


def test_a_full_disk(make: Any) -> None:
    receiver = make(False)
    with receiver._site.store.writing() as connection:
        connection.exec_driver_sql("CREATE TRIGGER full BEFORE INSERT ON results BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    status, code = send(receiver, chest(1))
    assert (status, code) == (OUT_OF_RESOURCES, "storage_unavailable")
    with receiver._site.store.writing() as connection:
        connection.exec_driver_sql("DROP TRIGGER full")
    assert send(receiver, chest(1)) == (SUCCESS, "")


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (chest(1, PixelData=b"12"), CANNOT_UNDERSTAND, "inconsistent_image"),
        (chest(1, Modality="CT"), NOT_FOR_THE_MODEL, "modality_not_accepted"),
        (chest(1, NumberOfFrames=3), NOT_FOR_THE_MODEL, "multi_frame"),
        (chest(1, StudyInstanceUID=""), CANNOT_UNDERSTAND, "inconsistent_image"),
        (chest(2), NO_MATCH, "inconsistent_image"),
        (b"\0" * 128 + b"DICM" + b"rubbish", CANNOT_UNDERSTAND, "not_decodable"),
        (b"", CANNOT_UNDERSTAND, "not_decodable"),
        (None, CANNOT_UNDERSTAND, "too_large"),
        # What unfolds to more than a header may hold is not read, not even for its UIDs
        (raw_file(element(9, 0x10, "OB", bytes(9 << 20)), DEFLATED), CANNOT_UNDERSTAND, "image_too_large"),
        (raw_file(element(8, 0x1030, "LO", b"") * 20_000), CANNOT_UNDERSTAND, "image_too_large"),
    ],
)
def test_what_is_refused_is_a_row(make: Any, archive: MemoryArchive, data: bytes | None, status: int, code: str) -> None:
    receiver = make(True)
    sop_class = class_of(chest(1))
    assert receiver(data, sop_class, "2.25.1") == (status, code)
    ((state, stored, attempts),) = states(receiver)
    assert (state, stored, attempts) == ("skipped" if code in OUTSIDE else FAILED, code, 1)
    assert archive.stored == []


def test_another_class_than_announced(make: Any) -> None:
    assert make(False)(chest(1), "1.2.3", "2.25.1") == (NO_MATCH, "inconsistent_image")


def test_an_unexpected_fault_is_answered_and_a_row(make: Any, archive: MemoryArchive, capsys: Any) -> None:
    def break_() -> None:
        raise RuntimeError("CANARY^NAME")

    receiver = make(True)
    archive.faults["store"] = [break_]
    assert send(receiver, chest(1)) == (CANNOT_UNDERSTAND, "internal_error")
    assert states(receiver) == [(FAILED, "internal_error", 1)]
    assert "CANARY" not in capsys.readouterr().err


@pytest.mark.dialects
def test_what_a_crash_left_unanswered_is_listed_and_neither_due_nor_replayed(
    make: Any, start: Any, archive: MemoryArchive
) -> None:
    receiver = make(True)
    arrivals = Arrivals(receiver._site.store)
    arrivals.receive("2.25.1")
    assert states(receiver) == [(WAITING, "", 1)]
    assert settle(start())["waiting"] == 1, "a watch beside it leaves it alone"
    again = make(True)
    (failure,) = arrivals.failures()
    assert (failure.code, failure.received) == ("internal_error", True)
    assert arrivals.replay() == arrivals.replay([failure.id]) == 0
    assert send(again, chest(1)) == (SUCCESS, "")
    assert arrivals.failures() == []


def test_one_that_stops_takes_nothing_more(make: Any) -> None:
    receiver = make(False)
    assert receiver.stop(0)
    assert send(receiver, chest(1)) == (OUT_OF_RESOURCES, "not_ready")
    assert states(receiver) == []


def test_a_stop_waits_for_what_is_under_way(make: Any, archive: MemoryArchive) -> None:
    receiver = make(True)
    inside, go = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        go.wait(60)

    archive.faults["store"] = [wait]
    sender = threading.Thread(target=send, args=(receiver, chest(1)))
    sender.start()
    inside.wait(60)
    assert not receiver.stop(0.1)
    go.set()
    assert receiver.stop(60)
    sender.join()
    assert states(receiver) == [(DONE, "", 1)]


@pytest.mark.parametrize("waits", [True, False])
def test_the_last_answer_is_sent_before_the_end(monkeypatch: pytest.MonkeyPatch, waits: bool) -> None:
    """An answer is decided a moment before it is on its way; the control ends in between."""
    decided, go, answers = threading.Event(), threading.Event(), []
    send_msg = DIMSEServiceProvider.send_msg

    def dawdle(self: Any, primitive: Any, context_id: int) -> None:
        if getattr(primitive, "Status", None) is not None:
            decided.set()
            go.wait(60)
        send_msg(self, primitive, context_id)

    monkeypatch.setattr(DIMSEServiceProvider, "send_msg", dawdle)
    server = Server(Settings(dimse_port=0), lambda *_: (SUCCESS, ""))
    data = pydicom.dcmread(io.BytesIO(chest(1)))
    caller = AE("CALLER")
    caller.add_requested_context(data.SOPClassUID, data.file_meta.TransferSyntaxUID)
    association = caller.associate("127.0.0.1", server.port, ae_title="OVERREAD")
    assert association.is_established
    sender = threading.Thread(target=lambda: answers.append(association.send_c_store(data)))
    sender.start()
    assert decided.wait(60)
    if waits:
        assert not server.answered(0)
        go.set()
        assert server.answered(60)
    server.close()
    go.set()
    sender.join()
    assert [answer.get("Status") for answer in answers] == ([SUCCESS] if waits else [None])


def test_codes_are_known() -> None:
    assert set(CODES) >= AGAIN
    assert not OUTSIDE & AGAIN


def test_who_may_send_must_be_said_unless_only_this_machine_can() -> None:
    check_settings(Settings())
    check_settings(Settings(dimse_host="0.0.0.0", dimse_callers=("CT-1",)))
    with pytest.raises(Refusal, match="OVERREAD_DIMSE_CALLERS"):
        check_settings(Settings(dimse_host="0.0.0.0"))


@pytest.mark.parametrize("title", ["", "SEVENTEENLETTERS+", "A\\B", "Ä"])
def test_a_title_that_is_none(title: str) -> None:
    assert read_settings({"OVERREAD_DIMSE_CALLERS": "CT-1, PACS"}).dimse_callers == ("CT-1", "PACS")
    with pytest.raises(ValueError):
        Settings(dimse_title=title)


def test_an_address_or_certificates_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "rubbish.pem").write_text("no certificate")
    free = free_port()
    first = Server(Settings(dimse_port=free), lambda *_: (SUCCESS, ""))
    try:
        for wrong in (
            Settings(dimse_port=free),
            Settings(dimse_port=free_port(), dimse_certificate_file=tmp_path / "rubbish.pem"),
            Settings(dimse_port=free_port(), dimse_ca_file=tmp_path / "rubbish.pem"),
        ):
            with pytest.raises(Refusal) as caught:
                Server(wrong, lambda *_: (SUCCESS, ""))
            assert caught.value.code == "config_invalid"
    finally:
        first.close()


def test_one_receiver_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import fcntl

    monkeypatch.setenv("OVERREAD_STATE", str(tmp_path))
    monkeypatch.setattr("service.receive.signal.signal", lambda *_: None)
    with (tmp_path / "receive.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Refusal) as caught:
            main([])
    assert caught.value.code == "config_invalid"


def test_the_conformance_statement_names_what_is_taken() -> None:
    text = (ROOT / "docs" / "pacs.md").read_text().partition("## Conformance statement")[2]
    listed = set(re.findall(r"`(1\.2\.840\.10008\.5\.1\.4\.1\.1\.[0-9.]+)`", text))
    assert listed == {str(UID(item)) for item in SOP_CLASSES}
    assert set(re.findall(r"`(1\.2\.840\.10008\.1\.2[0-9.]*)`", (ROOT / "docs" / "dicom.md").read_text())) >= set(SYNTAXES)
