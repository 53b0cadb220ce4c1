"""The client: what it asks, what it believes, what it never follows; against real sockets on loopback."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from models.errors import Refusal
from service.dicomweb import Archive
from service.places import Place
from service.settings import PROXIES, Settings
from tests.ports import free_port
from tests.service.peers import Answer, Peer

PLACE = Place("one", "1.2", "1.3", "1.4")
WADO = "/dicom-web/studies/1.2/series/1.3/instances/1.4"


@pytest.fixture
def peers() -> Iterator[Callable[[], Peer]]:
    started: list[Peer] = []

    def start() -> Peer:
        started.append(Peer())
        return started[-1]

    yield start
    for peer in started:
        peer.close()


@pytest.fixture
def peer(peers: Callable[[], Peer]) -> Peer:
    return peers()


@pytest.fixture
def connect(peer: Peer) -> Iterator[Callable[..., Archive]]:
    archives: list[Archive] = []

    def connect(orthanc: bool = True, **settings: Any) -> Archive:
        given = {"pacs_url": f"{peer.url}/dicom-web", "pacs_timeout_seconds": 20.0}
        given |= {"pacs_orthanc_url": peer.url} if orthanc else {}
        archives.append(Archive(Settings.model_validate(given | settings)))
        return archives[-1]

    yield connect
    for archive in archives:
        archive.close()


def code(call: Callable[[], Any]) -> str:
    with pytest.raises(Refusal) as caught:
        call()
    assert "CANARY" not in str(caught.value)
    assert "1.4" not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)
    return caught.value.code


def related(*contents: bytes, end: bytes = b"--edge--\r\n") -> Answer:
    head = b"--edge\r\nContent-Type: application/dicom\r\nContent-Length: 3\r\n\r\n"
    body = b"".join(head + content + b"\r\n" for content in contents) + end
    return 200, 'multipart/related; type="application/dicom"; boundary=edge', body


def change(number: int, kind: str = "NewInstance") -> dict[str, Any]:
    return {"ChangeType": kind, "ID": f"id{number}", "Seq": number, "ResourceType": "Instance"}


def test_changes(peer: Peer, connect: Any) -> None:
    peer.json(
        "/changes?since=4&limit=200", {"Changes": [change(5), change(6, "StableStudy"), change(9)], "Done": False, "Last": 9}
    )
    peer.json("/changes?since=9&limit=200", {"Changes": [], "Done": True, "Last": 9})
    peer.json("/changes?last", {"Changes": [change(7, "NewStudy")], "Done": True, "Last": 7})
    archive = connect()
    page = archive.changes(4)
    assert (page.arrived, page.last, page.anchor, page.done) == (((5, "id5"), (9, "id9")), 9, "id9", False)
    assert archive.changes(9).anchor == ""
    assert (archive.last_change().last, archive.last_change().anchor) == (7, "id7")


@pytest.mark.parametrize(
    "document",
    [
        *([], {}, {"Changes": 5}, {"Changes": [{}], "Last": 1, "Done": True}, "x", None),
        *({"Changes": [change(1) | wrong], "Last": 1, "Done": True} for wrong in ({"ID": "x" * 65}, {"ID": "a\0"}, {"ID": ""})),
        *({"Changes": [change(number)], "Last": 1, "Done": True} for number in (2**63, -1)),
        *({"Changes": [], "Last": last, "Done": True} for last in (2**63, float("inf"))),
    ],
)
def test_a_malformed_log(peer: Peer, connect: Any, document: Any) -> None:
    peer.json("/changes?since=0&limit=200", document)
    assert code(lambda: connect().changes(0)) == "archive_refused"


def test_headers_from_orthanc_and_from_dicomweb(peer: Peer, connect: Any) -> None:
    peer.json("/instances/one/simplified-tags", {"Modality": "DX ", "Rows": "10", "Sequence": [{"a": "b"}]})
    assert connect().header(PLACE) == {"Modality": "DX", "Rows": "10"}
    item = {
        "00080060": {"vr": "CS", "Value": ["DX"]},
        "00280010": {"vr": "US", "Value": [10]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "CANARY"}]},
        "00091001": {"vr": "LO", "Value": ["private"]},
        "00080016": {"vr": "UI"},
        "nonsense": 5,
    }
    peer.json(f"{WADO}/metadata", [item])
    assert connect(orthanc=False).header(PLACE) == {"Modality": "DX", "Rows": "10"}
    peer.json(f"{WADO}/metadata", [])
    assert code(lambda: connect(orthanc=False).header(PLACE)) == "archive_refused"


def test_no_url_is_logged(peer: Peer, connect: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    peer.answers[WADO] = related(b"abc")
    assert connect().retrieve(PLACE) == b"abc"
    assert "1.4" not in caplog.text
    caplog.set_level(logging.DEBUG, "httpx")
    httpx.get(peer.url + WADO, timeout=60)
    assert "1.4" in caplog.text, "the control: the library would have logged it"


def test_query(peer: Peer, connect: Any) -> None:
    peer.json("/dicom-web/instances?Modality=DX%26x&limit=200", [{"00080018": {"vr": "UI", "Value": ["1.4"]}}, {}, 5])
    archive = connect(orthanc=False)
    assert archive.query("/instances", {"Modality": "DX&x", "limit": "200"}) == [{"SOPInstanceUID": "1.4"}, {}, {}]
    peer.answers["/dicom-web/studies?limit=1"] = (204, "", b"")
    assert archive.query("/studies", {"limit": "1"}) == []
    peer.json("/dicom-web/studies?limit=1", {})
    assert code(lambda: archive.query("/studies", {"limit": "1"})) == "archive_refused"


WEB, LOG = "/dicom-web/studies?limit=1", "/changes?last"


@pytest.mark.parametrize("status", [200, 204, 400, 404])
def test_an_archive_that_answers_anything_is_there(peer: Peer, connect: Any, status: int) -> None:
    peer.answers = {WEB: (status, "text/plain", b"CANARY"), LOG: (status, "text/plain", b"")}
    connect().probe()
    assert [path for _, path, *_ in peer.asked] == [WEB, LOG]
    peer.asked.clear()
    connect(orthanc=False).probe()
    assert [path for _, path, *_ in peer.asked] == [WEB]


@pytest.mark.parametrize("status", [302, 401, 403, 429, 500, 503])
@pytest.mark.parametrize("path", [WEB, LOG])
def test_an_archive_that_lets_nobody_in_is_away(peer: Peer, connect: Any, status: int, path: str) -> None:
    peer.answers = {WEB: (200, "text/plain", b""), LOG: (200, "text/plain", b"")} | {path: (status, "text/plain", b"CANARY")}
    assert code(connect().probe) == "archive_unavailable"


def test_an_archive_that_is_not_there_is_away(peer: Peer, connect: Any) -> None:
    assert code(connect(pacs_url=f"http://127.0.0.1:{free_port()}").probe) == "archive_unavailable"
    peer.delay = 3
    assert code(connect(pacs_timeout_seconds=0.2).probe) == "archive_unavailable"


def test_retrieve(peer: Peer, connect: Any) -> None:
    peer.answers[WADO] = related(b"abc")
    assert connect().retrieve(PLACE) == b"abc"
    assert peer.asked[0][2]["accept"] == 'multipart/related; type="application/dicom"; transfer-syntax=*'
    assert peer.asked[0][2]["accept-encoding"] == "identity"
    peer.answers[WADO] = (200, "application/dicom", b"abc")
    assert connect().retrieve(PLACE) == b"abc"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((404, "text/plain", b"CANARY"), "not_found"),
        ((410, "text/plain", b"CANARY"), "not_found"),
        ((400, "text/plain", b"CANARY"), "archive_refused"),
        ((500, "text/plain", b"CANARY"), "archive_refused"),
        ((503, "text/plain", b"CANARY"), "archive_unavailable"),
        ((401, "text/plain", b"CANARY"), "archive_unavailable"),
        ((429, "text/plain", b"CANARY"), "archive_unavailable"),
        ((200, "text/html", b"CANARY"), "archive_refused"),
        ((200, "multipart/related", b"CANARY"), "archive_refused"),
        (related(), "archive_refused"),
        (related(b"a", b"b"), "archive_refused"),
        (related(b"CANARY", end=b""), "archive_refused"),
        (related(b"x" * 2000), "too_large"),
        (related(b"x" * 100_000), "too_large"),
    ],
)
def test_answers_that_are_no_instance(peer: Peer, connect: Any, answer: Answer, expected: str) -> None:
    peer.answers[WADO] = answer
    assert code(lambda: connect(max_body_bytes=1024).retrieve(PLACE)) == expected


@pytest.mark.parametrize("uid", ["", "1.2/../../changes", "1.2?x", "CANARY", "1" * 65])
def test_no_path_is_built_from_what_is_no_uid(peer: Peer, connect: Any, uid: str) -> None:
    assert code(lambda: connect().retrieve(Place("one", uid, "1.3", "1.9"))) == "inconsistent_image"
    assert peer.asked == []


def stored(*uids: str, failed: tuple[tuple[str, int], ...] = ()) -> dict[str, Any]:
    def item(uid: str, reason: int | None = None) -> dict[str, Any]:
        named: dict[str, Any] = {"00081155": {"vr": "UI", "Value": [uid]}}
        return named | ({} if reason is None else {"00081197": {"vr": "US", "Value": [reason]}})

    return {
        "00081199": {"vr": "SQ", "Value": [item(uid) for uid in uids]},
        "00081198": {"vr": "SQ", "Value": [item(*entry) for entry in failed]} if failed else {"vr": "SQ"},
    }


@pytest.mark.parametrize(
    ("status", "document", "fine"),
    [
        (200, stored("1.1", "1.2"), True),
        (200, {}, False),
        (202, stored("1.1", "1.2"), True),
        (200, stored("1.1", failed=(("1.2", 0xA700),)), False),
        (200, stored(failed=(("1.1", 0x0111), ("1.2", 0x0111))), True),
        (409, stored(failed=(("1.1", 0x0111), ("1.2", 0x0111))), True),
        (202, stored("1.1", failed=(("1.2", 0x0111),)), True),
        (200, stored("1.1"), False),
        (202, {}, False),
        (409, stored(failed=(("1.1", 0xC000), ("1.2", 0xC000))), False),
        (400, stored(), False),
        (200, {"00081199": 5}, False),
        (200, [], False),
    ],
)
def test_store_believes_nothing_but_each_instance(peer: Peer, connect: Any, status: int, document: Any, fine: bool) -> None:
    peer.json("/dicom-web/studies", document, status)
    archive = connect()
    if fine:
        archive.store({"1.1": b"first", "1.2": b"second"})
    else:
        assert code(lambda: archive.store({"1.1": b"first", "1.2": b"second"})) == "archive_refused"
    method, _, headers, body = peer.asked[0]
    assert method == "POST"
    assert headers["content-type"].startswith('multipart/related; type="application/dicom"; boundary=')
    assert body.count(b"Content-Type: application/dicom\r\n\r\n") == 2


@pytest.mark.parametrize(
    ("status", "content", "held", "fine"),
    [
        (200, b"", ["1.1", "1.2"], True),
        (200, b"", ["1.1"], False),
        (200, b"{}", [], False),
        (200, b"{}", ["1.1", "1.2"], True),
        (200, b"<html>stored</html>", ["1.1", "1.2"], True),
        (200, json.dumps(stored("1.1")).encode(), ["1.2"], True),
        (409, b"", ["1.1", "1.2"], True),
        (200, json.dumps(stored("1.1", failed=(("1.2", 0xA700),))).encode(), ["1.1", "1.2"], False),
        (500, b"", ["1.1", "1.2"], False),
    ],
)
def test_what_no_answer_names_is_looked_up(
    peer: Peer, connect: Any, status: int, content: bytes, held: list[str], fine: bool
) -> None:
    """A proxy may strip the answer's body; 200 alone says nothing about what the archive holds."""
    peer.answers["/dicom-web/studies"] = (status, "text/plain", content)
    for uid in ("1.1", "1.2"):  # an archive that does not heed the key gives another instance
        found = uid if uid in held else "1.9"
        peer.json(f"/dicom-web/instances?SOPInstanceUID={uid}&limit=1", [{"00080018": {"vr": "UI", "Value": [found]}}])
    archive = connect()
    if fine:
        archive.store({"1.1": b"first", "1.2": b"second"})
        named = {"1.1"} if b"1.1" in content else set()
        asked = {path for _, path, *_ in peer.asked[1:]}
        assert asked == {f"/dicom-web/instances?SOPInstanceUID={uid}&limit=1" for uid in {"1.1", "1.2"} - named}
    else:
        assert code(lambda: archive.store({"1.1": b"first", "1.2": b"second"})) == "archive_refused"


def test_what_is_named_as_stored_is_not_looked_up(peer: Peer, connect: Any) -> None:
    peer.json("/dicom-web/studies", stored("1.1"))
    connect().store({"1.1": b"first"})
    assert len(peer.asked) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(peer: Peer, peers: Callable[[], Peer], connect: Any, status: int) -> None:
    other = peers()
    peer.location = f"{other.url}/elsewhere"
    peer.answers = dict.fromkeys((WADO, "/changes?last", "/dicom-web/studies"), (status, "text/plain", b""))
    archive = connect()
    for call in (lambda: archive.retrieve(PLACE), archive.last_change, lambda: archive.store({"1.1": b"x"})):
        assert code(call) == "archive_unavailable"
    assert other.asked == []
    assert len(peer.asked) == 3, "the control: the archive itself was asked"


def test_no_proxy_is_used(peer: Peer, peers: Callable[[], Peer], connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = peers()
    for name in PROXIES:
        monkeypatch.setenv(name, other.url)
    peer.json("/changes?last", {"Changes": [], "Done": True, "Last": 0})
    assert connect().last_change().last == 0
    assert other.asked == []


def test_an_archive_that_is_not_there_or_silent(peer: Peer, connect: Any) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    assert code(lambda: connect(pacs_orthanc_url=gone).last_change()) == "archive_unavailable"
    peer.delay = 3
    assert code(lambda: connect(pacs_timeout_seconds=0.2).last_change()) == "archive_unavailable"
