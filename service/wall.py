"""What a request must be before anything looks at its content: type, size, time. Bodies stay in memory, never on disk."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from models.errors import Refusal
from service.access import is_loopback
from service.bodies import Held
from service.related import silent_parser

IMAGE_TYPES = ("application/dicom", "image/png", "image/jpeg")
FORM = "multipart/form-data"
PART = "image"
REGIONS_PART = "regions"
REGIONS_TYPES = ("application/geo+json", "application/json")
MAX_REGIONS_BYTES = 1024 * 1024
MAX_PARTS = 8
_UNDECLARED = {"", "application/octet-stream"}
_HANDED_ON = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
"""What proxies add. Who asks through one on this machine may name any Host, but cannot take these away."""


@dataclass(frozen=True)
class Upload:
    """An image as it was sent: its bytes, its media type where the caller declared one, and the regions sent beside it."""

    body: bytes
    media_type: str | None
    regions: bytes | None = None


def check_host(request: Request) -> None:
    """Keep an open service to this machine, also against web pages that a browser here has open.

    Raises
    ------
    Refusal
        ``forbidden`` if the request came in over a network or through a proxy, names another host, or was sent by a page of
        another site.
    """
    server = request.scope.get("server")
    host = request.headers.get("host", "")
    name = host if host.endswith("]") or ":" not in host else host.rpartition(":")[0]
    origin = request.headers.get("origin")
    if (
        (server is not None and not is_loopback(str(server[0])))
        or not is_loopback(name)
        or any(header in request.headers for header in _HANDED_ON)
        or (origin is not None and origin != f"{request.url.scheme}://{host}")
    ):
        raise Refusal("forbidden", "Without tokens, only requests from this machine are answered.")


def media_type_of(header: str | None) -> tuple[str, dict[bytes, bytes]]:
    """Return the media type that a Content-Type names, in lower case, and its parameters."""
    value, options = parse_options_header(header or "")
    return value.decode("latin-1").lower(), options


def declared_length(request: Request) -> int | None:
    """Return the length of the body in bytes, as the request's head declares it; None where it does not."""
    declared = request.headers.get("content-length", "")
    # Eighteen digits are beyond any limit; Python refuses to convert thousands
    return int(declared[:18]) if declared.isascii() and declared.isdigit() else None


async def read_body(request: Request, limit: int, seconds: float, held: Held) -> bytes:
    """Read a whole body.

    Parameters
    ----------
    request : Request
    limit : int, bytes
    seconds : float
        For the whole body.
    held : Held
        What it takes of the memory; it holds the body from now on, as long as it says.

    Raises
    ------
    Refusal
        ``too_large``, ``request_timeout`` or ``overloaded``.
    """
    declared = declared_length(request) or 0  # what it does not say is counted below
    if declared > limit:
        raise Refusal("too_large", f"The body may have {limit} bytes at most.")
    chunks: list[bytes] = []  # joined once: a body that grows is copied again and again
    size = 0
    full: Refusal | None = None
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise Refusal("too_large", f"The body may have {limit} bytes at most.")
                if full is None:
                    try:
                        held.hold(max(size, declared))
                        chunks.append(chunk)
                    except Refusal as refusal:
                        # The rest is read and dropped, or who still sends it sees a broken connection instead of the refusal
                        full = refusal
                        chunks.clear()
                        held.hold(0)
    except TimeoutError as error:
        raise Refusal("request_timeout", f"The body took longer than {seconds:g} seconds.") from error
    if full is not None:
        raise full
    return b"".join(chunks)


class _Parts:
    """Collects the parts of a multipart body: (headers, content) each."""

    def __init__(self) -> None:
        self.parts: list[tuple[dict[str, str], bytearray]] = []
        self.ended = False
        self._field = self._value = b""

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_part_data": self._data,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) >= MAX_PARTS:
            raise Refusal("bad_request", f"A form may have {MAX_PARTS} parts at most.")
        self.parts.append(({}, bytearray()))

    def _data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1][1].extend(data[start:end])

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self.parts[-1][0][self._field.decode("latin-1").lower()] = self._value.decode("latin-1")
        self._field = self._value = b""

    def _end(self) -> None:
        self.ended = True


def parse_form(body: bytes, boundary: bytes) -> Upload:
    """Find the one image in a multipart form, and the regions where there are any.

    Parameters
    ----------
    body : bytes
    boundary : bytes
        From the Content-Type header.

    Raises
    ------
    Refusal
        ``bad_request`` for a broken form, one without exactly one part ``image``, or one with another part than that and
        one ``regions``; ``unsupported_media_type`` for a part that is declared to be something else, ``empty_body`` for an
        empty image, ``too_large`` for regions of more than :data:`MAX_REGIONS_BYTES`.
    """
    collected = _Parts()
    try:
        parser = silent_parser(boundary, collected.callbacks())
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise Refusal("bad_request", "The multipart body is broken.") from error
    if not collected.ended:
        raise Refusal("bad_request", "The multipart body ends early.")
    named: dict[str, tuple[str | None, bytes]] = {}
    for headers, content in collected.parts:
        _, options = parse_options_header(headers.get("content-disposition", ""))
        name = options.get(b"name", b"").decode("latin-1")
        if name in named or name not in {PART, REGIONS_PART}:
            raise Refusal("bad_request", f"The form may have one part {PART!r} and one part {REGIONS_PART!r}.")
        named[name] = _declared(name, headers), bytes(content)
    if PART not in named:
        raise Refusal("bad_request", f"The form must have a part named {PART!r}.")
    media_type, image = named[PART]
    _, regions = named.get(REGIONS_PART, (None, None))
    if not image:
        raise Refusal("empty_body")
    if regions is not None and len(regions) > MAX_REGIONS_BYTES:
        raise Refusal("too_large", f"The part {REGIONS_PART!r} may have {MAX_REGIONS_BYTES} bytes at most.")
    return Upload(image, media_type, regions)


def _declared(name: str, headers: dict[str, str]) -> str | None:
    media_type, _ = media_type_of(headers.get("content-type"))
    allowed = IMAGE_TYPES if name == PART else REGIONS_TYPES
    if media_type in _UNDECLARED:
        return None
    if media_type not in allowed:
        raise Refusal("unsupported_media_type", f"The part {name!r} must be one of {', '.join(allowed)}.")
    return media_type


async def read_upload(request: Request, limit: int, seconds: float, held: Held) -> Upload:
    """Read the image of a request, raw or as a form.

    Parameters
    ----------
    request, limit, seconds, held
        As :func:`read_body` takes them.

    Raises
    ------
    Refusal
        ``unsupported_media_type``, ``empty_body``, and as :func:`read_body` and :func:`parse_form` say.
    """
    media_type, options = media_type_of(request.headers.get("content-type"))
    if media_type not in {*IMAGE_TYPES, FORM}:
        raise Refusal("unsupported_media_type", f"Content-Type must be one of {', '.join((*IMAGE_TYPES, FORM))}.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal("unsupported_media_type", "A Content-Encoding is not taken.")
    body = await read_body(request, limit, seconds, held)
    if not body:
        raise Refusal("empty_body")
    if media_type == FORM:
        boundary = options.get(b"boundary")
        if not boundary:
            raise Refusal("bad_request", "The Content-Type lacks its boundary.")
        return parse_form(body, boundary)
    return Upload(body, media_type)
