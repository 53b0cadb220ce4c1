"""C-STORE and C-ECHO by dcmtk to a running ``overread receive``; row 15, 16 and 17 of docs/reliability.md for what is sent.

Orthanc stands behind it in the tests that look for results.
"""

from __future__ import annotations

import io
import math
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest

from models.example import chest_phantom
from tests.certificates import Authority
from tests.conftest import require
from tests.e2e.orthancs import PASSWORD, SECONDS, USER, Door, Orthanc, once, reports, until
from tests.e2e.receivers import Receiver, ended, fragment, request, resident_mib
from tests.models.dicom_files import written
from tests.service.archives import chest

STATES = "SELECT state, code FROM pacs_instances"


@pytest.fixture
def receive(package: Path, tmp_path: Path) -> Iterator[Callable[..., Receiver]]:
    """Return a function that starts a receiver: ``receive(**settings)``."""
    for tool in ("storescu", "echoscu"):
        require(tool)
    started: list[Receiver] = []

    def start(**settings: str) -> Receiver:
        started.append(Receiver(package, tmp_path, **settings))
        return started[-1]

    yield start
    for receiver in started:
        receiver.kill()


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes an instance to a file."""

    def write(data: bytes) -> Path:
        folder = tmp_path / "sent"
        folder.mkdir(exist_ok=True)
        path = folder / f"{len(list(folder.iterdir()))}.dcm"
        path.write_bytes(data)
        return path

    return write


def before(url: str, folder: Path) -> dict[str, str]:
    """Return the settings of a receiver that stands before an Orthanc."""
    (folder / "password").write_text(PASSWORD)
    return {"PACS_URL": f"{url}/dicom-web", "PACS_USER": USER, "PACS_PASSWORD_FILE": str(folder / "password")}


def test_what_is_sent_is_committed_and_its_results_are_in_the_archive_once(
    receive: Any, file: Any, empty: Orthanc, ask: Any, tmp_path: Path
) -> None:
    # More than are used at a time: one that was released counts for a moment
    receiver = receive(**before(empty.url, tmp_path), PACS_RESULTS="sr,sc", DIMSE_ASSOCIATIONS="4")
    assert receiver.call("echoscu")[0] == 0
    first, second = file(chest(1)), file(chest(2))
    assert receiver.send(first) == ["0000"]
    assert ask(receiver.state, "SELECT count(*) FROM results") == [(1,)], "committed before it was answered"
    assert reports(empty) == once(range(1, 2))
    command = ["storescu", "-d", "-aec", "OVERREAD", "-aet", "CT-1", "127.0.0.1", str(receiver.port)]
    senders = [subprocess.Popen([*command, *[str(first)] * 10], stdout=-1, stderr=-2) for _ in range(2)]
    for sender in senders:
        shown, _ = sender.communicate(timeout=SECONDS)
        assert shown.count(b"DIMSE Status                  : 0x0000") == 10, shown[-500:]
    assert receiver.send(second) == ["0000"]
    assert reports(empty) == once(range(1, 3))
    assert len(empty.ours()) == 4
    assert ask(receiver.state, "SELECT count(*), sum(state = 'done') FROM pacs_instances") == [(2, 2)]
    assert ask(receiver.state, "SELECT count(*) FROM pacs_objects") == [(4,)]
    check_identity(receiver)


def check_identity(receiver: Receiver) -> None:
    log = receiver.log.read_text()
    assert "received_instance" in log, "the control: there is something to look at"
    assert [mark for mark in ("2.25.", "CT-1", "127.0.0.1", "Traceback") if mark in log] == []
    others = [path for path in receiver.state.rglob("*") if path.is_file() and not path.name.startswith("overread.sqlite3")]
    assert [path for path in others if b"2.25." in path.read_bytes() or "2.25" in path.name] == []


def test_without_an_archive_the_result_is_committed(receive: Any, file: Any, ask: Any) -> None:
    receiver = receive()
    assert receiver.send(file(chest_phantom())) == ["0000"]
    assert ask(receiver.state, "SELECT count(*) FROM verdicts") == [(1,)]
    assert ask(receiver.state, "SELECT count(*) FROM pacs_objects") == [(0,)]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_between_receiving_and_answering(
    receive: Any, file: Any, empty: Orthanc, door: Door, ask: Any, tmp_path: Path, moment: str
) -> None:
    def kill(method: str, _: str) -> None:
        if method == "POST" and receiver.process.poll() is None:
            receiver.kill()
            if moment == "before":
                raise ConnectionAbortedError

    receiver = receive(**before(door.url, tmp_path))
    setattr(door, moment, kill)
    sent = file(chest(1))
    status, _ = receiver.call("storescu", sent)
    # The kernel closes a killed process's connections before it can be waited for, so the sender may know of it earlier.
    assert receiver.process.wait(SECONDS) == -signal.SIGKILL
    assert status != 0, "the sender knows that it was not answered"
    setattr(door, moment, lambda method, path: None)
    receiver.start()
    assert ask(receiver.state, STATES) == [("failed", "internal_error")]
    assert receiver.send(sent) == ["0000"]
    assert ask(receiver.state, STATES) == [("done", "")]
    assert reports(empty) == once(range(1, 2))


def test_what_is_refused_is_answered_so_and_listed(receive: Any, file: Any) -> None:
    receiver = receive(MAX_BODY_BYTES="100000")
    odd = {
        "C000": file(chest(1, PixelData=b"12")),
        "C001": file(chest(2, Modality="CT")),
    }
    for status, path in odd.items():
        assert receiver.send(path) == [status]
    large = pydicom.dcmread(io.BytesIO(chest(3)))
    large.Rows, large.Columns = 400, 400
    large.PixelData = bytes(2 * 400 * 400)
    assert receiver.send(file(written(large)), file(chest(4))) == ["C000", "0000"], "and the association goes on"
    assert [(row[1], row[-1]) for row in receiver.failures()] == [
        ("inconsistent_image", "received: send it again"),
        ("too_large", "received: send it again"),
    ]
    check_identity(receiver)


def test_what_cannot_be_stored_now_is_the_senders_to_send_again(
    receive: Any, file: Any, empty: Orthanc, door: Door, ask: Any, tmp_path: Path
) -> None:
    """An archive that is away; a disk that is full is the same to the sender."""
    receiver = receive(**before(door.url, tmp_path), PACS_TIMEOUT_SECONDS="60")
    door.open = False
    sent = file(chest(1))
    assert receiver.send(sent) == ["A700"]
    assert ask(receiver.state, STATES) == [("failed", "archive_unavailable")]
    door.open = True
    assert receiver.send(sent) == ["0000"]
    assert ask(receiver.state, STATES) == [("done", "")]
    assert reports(empty) == once(range(1, 2))


def test_strangers_are_refused(receive: Any, file: Any) -> None:
    receiver = receive()
    sent = file(chest(1))
    for titles in ({"called": "OTHER"}, {"calling": "CT-2"}):
        status, shown = receiver.call("storescu", sent, **titles)
        assert status != 0
        assert "Not Recognized" in shown
        assert receiver.call("echoscu", **titles)[0] != 0
    report = pydicom.dcmread(io.BytesIO(chest(1)))
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = pydicom.uid.EncapsulatedPDFStorage
    status, shown = receiver.call("storescu", file(written(report)))
    assert status != 0
    assert "No valid Presentation Context" in shown
    assert receiver.call("storescu", sent)[0] == 0, "the control"


def test_a_stop_answers_what_is_under_way(receive: Any, file: Any, empty: Orthanc, door: Door, tmp_path: Path) -> None:
    receiver = receive(**before(door.url, tmp_path))

    def stop(method: str, _: str) -> None:
        if method == "POST":
            receiver.process.send_signal(signal.SIGTERM)
            time.sleep(1)

    door.before = stop
    assert receiver.send(file(chest(1))) == ["0000"]
    assert receiver.process.wait(SECONDS) == 0
    assert reports(empty) == once(range(1, 2))


def test_nobody_can_fill_the_memory(receive: Any) -> None:
    """A data set without end, commands without end, PDUs of 2 GB, a hundred silent callers."""
    receiver = receive(MAX_BODY_BYTES="1000000", DIMSE_TIMEOUT_SECONDS="2")
    until(lambda: receiver.call("echoscu")[0] == 0)
    before_them = resident_mib(receiver.process.pid)
    peak = 0.0

    def connect(greet: bool) -> socket.socket:
        """Connect, and be accepted; where the machine stands still in between, the receiver has given up, and is called again."""
        end = time.monotonic() + 60
        while True:
            connection = socket.create_connection(("127.0.0.1", receiver.port), timeout=60)
            if not greet:
                return connection
            try:
                connection.sendall(request())
                if connection.recv(4096)[:1] == b"\2":
                    return connection
            except OSError:
                pass
            connection.close()
            assert time.monotonic() < end, "accepted"

    def taken(content: bytes, first: bytes = b"", greet: bool = True) -> float:
        """Send without end; return how many bytes went until the receiver ended it."""
        nonlocal peak
        end, sent = time.monotonic() + 60, 0
        with connect(greet) as connection:
            try:
                connection.sendall(first)
                while time.monotonic() < end:
                    connection.sendall(content)
                    sent += len(content)
                    peak = max(peak, resident_mib(receiver.process.pid))
            except OSError:
                return sent
        return math.inf

    assert taken(fragment(0, bytes(60_000))) < math.inf, "a data set"
    assert taken(fragment(1, bytes(60_000))) < math.inf, "commands"
    buffers = 16e6  # what the system takes before anybody reads it
    assert taken(bytes(60_000), struct.pack(">BBL", 4, 0, 2**31 - 1)) < buffers, "a PDU"
    assert taken(bytes(60_000), struct.pack(">BBL", 1, 0, 2**31 - 1), greet=False) < buffers, "the first PDU"
    silent = [socket.create_connection(("127.0.0.1", receiver.port), timeout=60) for _ in range(100)]
    assert sum(ended(connection) for connection in silent) == 100, "at once where there is no room, after the time-out otherwise"
    until(lambda: receiver.call("echoscu")[0] == 0)
    assert peak - before_them < 40
    assert receiver.process.poll() is None


def test_tls_with_certificates_on_both_sides(receive: Any, file: Any, tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    receiver = receive(DIMSE_CERTIFICATE_FILE=str(ours.issue("127.0.0.1")), DIMSE_CA_FILE=str(theirs.certificate))
    sent = file(chest(1))
    assert receiver.call("storescu", sent)[0] != 0, "nothing without TLS"
    key, certificate = theirs.issue_pair("scanner")
    tls = ("+tls", key, certificate, "+cf", ours.certificate)
    assert receiver.call("storescu", *tls, sent)[0] == 0
    strange_key, strange = ours.issue_pair("scanner")
    assert receiver.call("storescu", "+tls", strange_key, strange, "+cf", ours.certificate, sent)[0] != 0
    with socket.create_connection(("127.0.0.1", receiver.port)):  # one who says nothing holds up nobody
        assert receiver.call("echoscu", *tls)[0] == 0
