"""Clients that are slow, vanish, send too much, or are too many."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest

from service.heads import HEAD_SECONDS, MAX_HEAD_BYTES, MAX_UNREAD_BYTES
from service.serve import GRACE_SECONDS
from tests.clocks import still_clock
from tests.e2e.test_overload import costly

HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"


@pytest.fixture(scope="module")
def small(start_server: Any, package: Any) -> Any:
    """A server that can be filled: one thread, two places to wait."""
    return start_server(package, OVERREAD_THREADS="1", OVERREAD_QUEUE="2", OVERREAD_MAX_BODY_BYTES="20000000")


def connect(server: Any) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=HEAD_SECONDS + 45)


def received(connection: socket.socket) -> bytes:
    """Return the next answer, in however many pieces it comes."""
    answer, length = b"", 1
    while len(answer) < length:
        piece = connection.recv(65536)
        assert piece, f"half an answer: {answer[:200]!r}"
        answer += piece
        head, blank, _ = answer.partition(b"\r\n\r\n")
        declared = re.search(rb"\r\ncontent-length: (\d+)", head.lower())
        length = len(head) + len(blank) + int(declared[1]) if blank and declared else len(answer) + 1
    return answer


def growth(server: Any, act: Callable[[], None]) -> int:
    """Return by how many bytes the worker's memory grows while ``act`` runs."""
    (pid,) = server.workers()
    before = psutil.Process(pid).memory_info().rss
    act()
    return int(psutil.Process(pid).memory_info().rss - before)


def test_a_head_without_end_is_cut(small: Any) -> None:
    """uvicorn alone took two minutes, in which it answered nobody, and 600 MB for this."""
    for start in (b"GET /", b"GET / HTTP/1.1\r\nX-A: ", b"GET / HTTP/1.1\r\n"):
        sent = 0
        with connect(small) as connection:
            connection.sendall(start)
            try:
                while sent < 300_000_000:
                    sent += connection.send(b"X-A: aaa\r\n" * 5000 if start.endswith(b"\r\n") else b"a" * 50_000)
            except (ConnectionResetError, BrokenPipeError):
                pass
        assert sent < 20 * MAX_HEAD_BYTES + 10_000_000  # what the kernel buffers is not ours
        assert httpx.get(f"{small.url}/healthz", timeout=60).status_code == 200


def test_a_body_that_nobody_reads_is_cut(small: Any) -> None:
    sent = 0
    with connect(small) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while sent < 300_000_000:
                sent += connection.send(b"c350\r\n" + bytes(50_000) + b"\r\n")
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert sent < MAX_UNREAD_BYTES + 20_000_000


def test_who_sends_first_and_reads_then_sees_the_refusal(small: Any) -> None:
    with connect(small) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 500000\r\n\r\n")
        for _ in range(10):
            connection.sendall(bytes(50_000))
            time.sleep(0.01)
        assert received(connection).startswith(b"HTTP/1.1 404 ")
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert received(connection).startswith(b"HTTP/1.1 200 "), "the connection is still good"


def test_so_does_who_asks_for_the_connection_to_be_closed(small: Any) -> None:
    """Closing it under a body that is still under way breaks it, and the answer is lost."""
    with connect(small) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: 500000\r\n\r\n")
        for _ in range(10):
            time.sleep(0.01)
            connection.sendall(bytes(50_000))
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"\r\nconnection: close\r\n" in answer
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("declared", [{"content-length": "300000000"}, {}])
def test_a_body_of_300_mb_is_refused_early(small: Any, declared: dict[str, str]) -> None:
    sent: list[int] = []

    def chunks() -> Iterator[bytes]:
        for _ in range(300):
            sent.append(1)
            yield bytes(1_000_000)

    def send() -> None:
        headers = {"content-type": "image/png"} | declared
        try:
            response = httpx.post(f"{small.url}/v1/predict", content=chunks(), headers=headers, timeout=60)
            assert (response.status_code, response.json()["code"]) == (413, "too_large")
        except (httpx.WriteError, httpx.ReadError):
            pass  # cut while still sending

    assert growth(small, send) < 64e6
    assert len(sent) < 60
    assert httpx.get(f"{small.url}/readyz", timeout=60).status_code == 200


def test_a_chunked_body_without_end_is_cut_at_the_limit(small: Any, metrics: Any) -> None:
    before = metrics(small).get('overread_requests_total{code="too_large",route="/v1/predict",status="413"}', 0)
    sent = 0
    with connect(small) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        try:
            while sent < 300_000_000:
                sent += connection.send(b"c350\r\n" + bytes(50_000) + b"\r\n")
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert sent < 60_000_000
    assert metrics(small)['overread_requests_total{code="too_large",route="/v1/predict",status="413"}'] == before + 1


def test_slow_bodies_are_told_so(start_server: Any, package: Any) -> None:
    hasty = start_server(package, OVERREAD_THREADS="1", OVERREAD_BODY_TIMEOUT_SECONDS="2")
    with connect(hasty) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\nx")
        started = time.monotonic()
        answer = b"".join(iter(lambda: connection.recv(65536), b""))  # head and body may come apart; then it is closed
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code": "request_timeout"' in answer
        assert time.monotonic() - started < 25  # and not only after the thirty seconds that are usual
    assert hasty.stop() == 0


def test_slow_heads_are_cut(small: Any) -> None:
    with connect(small) as silent, connect(small) as slow:
        started = time.monotonic()
        slow.sendall(b"GET / HT")
        assert slow.recv(100) == b""
        assert silent.recv(100) == b""
        assert time.monotonic() - started < HEAD_SECONDS + 30


def test_clients_that_vanish_leave_no_slot_taken(small: Any, draw: Any, metrics: Any, predict: Any) -> None:
    image = draw(1, 1200)
    for _ in range(12):
        with connect(small) as connection:  # gone in the middle of the body
            connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n" + image[:5000])
        with connect(small) as connection:  # gone while it is worked on
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(image) + image)
            time.sleep(0.01)
        with connect(small) as connection:  # gone in the middle of a form
            connection.sendall(
                HEAD.replace(b"image/png", b"multipart/form-data; boundary=b") + b"Content-Length: 999\r\n\r\n--b\r\n"
            )
    end = time.monotonic() + 60
    while metrics(small)["overread_queue_depth"] and time.monotonic() < end:
        time.sleep(0.1)
    for seed in range(3):
        assert predict(small, draw(100 + seed)).status_code == 200
    assert metrics(small)["overread_queue_depth"] == 0
    assert "Traceback" not in small.log.read_text()


def test_too_many_callers_are_told_at_once(small: Any, predict: Any) -> None:
    image = costly(200)  # to the server, and not to who sends it: a hundred are sent while it works on a few
    bodies = [image + bytes([number]) for number in range(100)]

    async def one(client: httpx.AsyncClient, body: bytes, clock: Callable[[], float]) -> tuple[httpx.Response, float]:
        started = clock()
        answer = await client.post("/v1/predict", content=body, headers={"content-type": "image/png"})
        return answer, clock() - started

    async def together() -> list[tuple[httpx.Response, float]]:
        with still_clock() as clock:
            async with httpx.AsyncClient(base_url=small.url, timeout=60) as client:
                return await asyncio.gather(*(one(client, body, clock) for body in bodies))

    answers = asyncio.run(together())
    statuses = [response.status_code for response, _ in answers]
    assert set(statuses) == {200, 503}
    assert statuses.count(503) > 20
    for response, _ in answers:
        if response.status_code == 503:
            assert response.json()["code"] == "overloaded"
            assert int(response.headers["retry-after"]) >= 1
    # Half of the deadline, at which a queue without bound would refuse; test_overload has what the table promises.
    refusals = sorted(seconds for response, seconds in answers if response.status_code == 503)
    assert refusals[len(refusals) // 2] < 15
    assert predict(small, bodies[0]).status_code == 200


def test_a_connection_goes_on_after_a_refusal(small: Any, draw: Any) -> None:
    with httpx.Client(base_url=small.url, limits=httpx.Limits(max_connections=1), timeout=60) as client:
        for code in ("not_decodable", "not_found", "method_not_allowed", "unknown_model"):
            response = {
                "not_decodable": lambda: client.post("/v1/predict", content=b"x", headers={"content-type": "image/png"}),
                "not_found": lambda: client.post("/nowhere", content=draw(1)),
                "method_not_allowed": lambda: client.put("/v1/predict", content=draw(1)),
                "unknown_model": lambda: client.post(
                    "/v1/predict?model=x", content=draw(1), headers={"content-type": "image/png"}
                ),
            }[code]()
            assert response.json()["code"] == code
            assert client.get("/v1/models").status_code == 200


def test_http_1_0_and_pipelining(small: Any, send_raw: Any) -> None:
    old = send_raw(small.url, b"GET /v1/models HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n", half_close=False)
    assert old.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in old
    many = (
        b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 50
        + b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    )
    assert len(re.findall(rb"HTTP/1\.1 200 OK", send_raw(small.url, many, half_close=False))) == 51


def test_expect_100_is_refused_without_a_body(small: Any) -> None:
    with connect(small) as connection:
        connection.sendall(HEAD + b"Content-Length: 99000000\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_after_all_that_it_stops_at_once(small: Any) -> None:
    """A request that hangs somewhere would keep it for the whole time of grace."""
    started = time.monotonic()
    assert small.stop() == 0
    assert time.monotonic() - started < GRACE_SECONDS
