"""Limits on what comes before a body: uvicorn has none, and takes minutes of the event loop for a URL of 300 MB.

The only file that knows uvicorn.
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn.protocols.http.auto
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from models.errors import Refusal
from service.callers import PEER
from service.schemas import problem

MAX_HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 10.0
MAX_UNREAD_BYTES = 1024 * 1024


class _Patient:
    """A connection as a request's cycle sees it: not closed under a client that still sends the body.

    A socket that is closed with bytes unread is reset, and the client may lose the answer that was sent before.
    """

    def __init__(self, transport: asyncio.Transport, cycle: RequestResponseCycle) -> None:
        self._transport = transport
        self._cycle = cycle

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        if not (self._cycle.response_complete and self._cycle.more_body):
            self._transport.close()


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with limits on the size and the time of a request's head.

    A request that was answered before its body was read (a wrong token, say) may go on sending for a while, so that a
    client which sends first and reads then sees its answer, whether or not it asked for the connection to be closed.
    """

    _clock: asyncio.TimerHandle | None = None
    _answering: RequestResponseCycle | None = None
    _in_head = True
    _counted = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock, and whoever still works on an answer."""
        self._stop()
        self._abandon()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Begin to count a head."""
        super().on_message_begin()
        self.scope[PEER] = self.client  # type: ignore[literal-required]
        self._in_head = True
        self._counted = 0
        self._wait()

    def on_headers_complete(self) -> None:
        """Leave the rest to the limits on bodies."""
        self._in_head = False
        self._counted = 0
        self._stop()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Begin to wait for the end of a body that nobody reads."""
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body:
            self._wait()

    def on_message_complete(self) -> None:
        """Note the end of a body, read or not."""
        self.cycle.more_body = False
        self._stop()
        super().on_message_complete()
        if self.cycle.response_complete and not self.cycle.keep_alive:
            self.transport.close()

    def _should_upgrade(self) -> bool:
        return False  # there is no websocket here; a request for one is answered like any other

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head, or to a body that nobody reads, and close the connection when it is too much."""
        in_head = self._in_head
        super().data_received(data)
        if self.transport.is_closing():
            return
        if in_head and self._in_head:
            self._counted += len(data)
            if self._counted > MAX_HEAD_BYTES:
                self.send_400_response(f"The head of a request may have {MAX_HEAD_BYTES} bytes at most.")
        elif self.cycle is not None and self.cycle.response_complete and self.cycle.more_body:
            self._counted += len(data)
            if self._counted > MAX_UNREAD_BYTES:
                self._close()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP as every other refusal is answered, and close the connection."""
        if self.transport.is_closing():
            return
        document = problem(Refusal("bad_request", msg))
        body = document.model_dump_json().encode()
        head = (
            f"HTTP/1.1 {document.status} Bad Request\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self._close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        cycle.transport = _Patient(self.transport, cycle)  # type: ignore[assignment]
        super()._start_asgi_task(cycle, app)

    def _abandon(self) -> None:
        # uvicorn tells only the last request of a connection that nobody waits for its answer any more; one with others
        # sent behind it would be written to the closed connection, which is a traceback in the log.
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()

    def _close(self) -> None:
        self._abandon()
        self.transport.close()

    def _wait(self) -> None:
        self._stop()
        self._clock = self.loop.call_later(HEAD_SECONDS, self._close)

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None


def bound_heads() -> None:
    """Make uvicorn choose our protocol."""
    automatic: Any = uvicorn.protocols.http.auto
    automatic.AutoHTTPProtocol = BoundedProtocol
