"""A closed-loop HTTP client that costs the measured cores next to nothing.

One thread, non-blocking sockets and a selector: requests are built beforehand, sent from where they lie without a copy,
and answers are only searched for their length; what is in them is looked at after the clock has stopped.
"""

from __future__ import annotations

import re
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class Exchange:
    """What came back.

    Attributes
    ----------
    seconds : float
        From the first byte sent to the last byte received.
    latencies : list of float, seconds
        One a request, from its first byte sent to the last byte of its answer.
    cpu_seconds : float
        Processor time that the client used.
    answers : list of (int, bytes)
        HTTP status and content, in order of the requests.
    """

    seconds: float
    latencies: list[float]
    cpu_seconds: float
    answers: list[tuple[int, bytes]]


def request(path: str, media_type: str, token: str, body: bytes) -> tuple[bytes, bytes]:
    """Return a POST request: its head, and its body as it is."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode(), body


class _Connection:
    """A keep-alive connection with one request under way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.number = 0
        self.started = 0.0
        self._outgoing: list[memoryview] = []
        self._incoming = bytearray()
        self._complete = -1

    def begin(self, number: int, parts: tuple[bytes, bytes]) -> None:
        self.number, self.started = number, time.perf_counter()
        self._outgoing = [memoryview(part) for part in parts]
        self._incoming.clear()
        self._complete = -1

    def send(self) -> bool:
        """Send what the socket takes; tell whether all of the request is sent."""
        try:
            sent = self.socket.sendmsg(self._outgoing)
        except BlockingIOError:
            return False
        while self._outgoing and sent >= len(self._outgoing[0]):
            sent -= len(self._outgoing.pop(0))
        if self._outgoing:
            self._outgoing[0] = self._outgoing[0][sent:]
        return not self._outgoing

    def receive(self) -> tuple[int, bytes] | None:
        """Receive what there is; return status and content once the answer is complete."""
        chunk = self.socket.recv(65536)
        if not chunk:
            raise ConnectionError("the server closed the connection before its answer was complete")
        self._incoming += chunk
        if self._complete < 0:
            end = self._incoming.find(b"\r\n\r\n")
            if end < 0:
                return None
            found = _LENGTH.search(self._incoming, 0, end)
            if found is None:
                raise ConnectionError("an answer without Content-Length")
            self._complete = end + 4 + int(found[1])
        if len(self._incoming) < self._complete:
            return None
        content = bytes(self._incoming[self._incoming.find(b"\r\n\r\n") + 4 : self._complete])
        return int(self._incoming[9:12]), content


def exchange(port: int, requests: Sequence[tuple[bytes, bytes]], concurrency: int) -> Exchange:
    """Send requests over ``concurrency`` connections, each with one request under way, until all are answered.

    Parameters
    ----------
    port : int
        On this machine.
    requests : sequence of (bytes, bytes)
        From :func:`request`.
    concurrency : int

    Raises
    ------
    ConnectionError, TimeoutError
        If a connection breaks, or nothing happens for ``TIMEOUT_SECONDS``.
    """
    answers: list[tuple[int, bytes]] = [(0, b"")] * len(requests)
    latencies = [0.0] * len(requests)
    connections = [_Connection(port) for _ in range(min(concurrency, len(requests)))]
    following = iter(range(len(requests)))
    left = len(requests)
    with selectors.DefaultSelector() as selector:
        cpu, started = time.thread_time(), time.perf_counter()
        for connection, number in zip(connections, following, strict=False):
            connection.begin(number, requests[number])
            selector.register(connection.socket, selectors.EVENT_WRITE, connection)
        while left:
            ready = selector.select(TIMEOUT_SECONDS)
            if not ready:
                raise TimeoutError("the server does not answer")
            for key, events in ready:
                connection = key.data
                if events & selectors.EVENT_WRITE:
                    if connection.send():
                        selector.modify(connection.socket, selectors.EVENT_READ, connection)
                    continue
                answer = connection.receive()
                if answer is None:
                    continue
                latencies[connection.number] = time.perf_counter() - connection.started
                answers[connection.number] = answer
                left -= 1
                number = next(following, -1)
                if number < 0:
                    selector.unregister(connection.socket)
                else:
                    connection.begin(number, requests[number])
                    if not connection.send():
                        selector.modify(connection.socket, selectors.EVENT_WRITE, connection)
        seconds, cpu = time.perf_counter() - started, time.thread_time() - cpu
    for connection in connections:
        connection.socket.close()
    return Exchange(seconds, latencies, cpu, answers)
