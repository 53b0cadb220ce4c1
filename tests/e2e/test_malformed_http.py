"""Malformed HTTP never breaks the server (row 1 of docs/reliability.md)."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from models.errors import CODES
from service.schemas import STATUS
from tests.routes import URLS

REQUESTS = int(os.environ.get("OVERREAD_REQUESTS", "2000"))
FAULTS = ("Traceback (most recent call last)", '"event": "fault"', "Exception in ASGI", '"level": "ERROR"')


def quick(requests: int) -> settings:
    """Return settings that draw the same requests each time and do not look for the smallest failing one."""
    return settings(
        max_examples=requests,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )


latin = st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=40)
known_paths = st.sampled_from(sorted(URLS.values()))
paths = st.one_of(
    known_paths,
    st.builds(
        "{}{}".format,
        known_paths,
        st.sampled_from(["/", "?", "?model=", "?heatmap=true", "#x", "%00", "%2f", "/..", ";a", "?%ff"]),
    ),
    st.text(st.sampled_from("/.%20fFaA?&=;:@*~\\^{}|[]"), max_size=40).map("/".__add__),
    st.integers(1, 120_000).map(lambda n: "/" + "a" * n),
    st.sampled_from(["*", "http://127.0.0.1/v1/models", "//", "", "/%", "/%zz", "/v1/predict?" + "a=1&" * 5000, "127.0.0.1:1"]),
)
methods = st.one_of(
    st.sampled_from(
        ["GET", "POST", "POST", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH", "PRI", "QUERY"]
    ),
    st.text(st.sampled_from("GETPOS gt\t\x00"), max_size=9),
)
deep = st.sampled_from([1, 100, 100_000]).map(lambda n: b"[" * n + b"]" * n)
not_numbers = st.sampled_from([b'{"a": NaN}', b"[Infinity, -Infinity]", b'{"a": 1e999}', b"nan", b"{" * 5000, b'"\\ud800"'])
huge = st.integers(0, 300_000).map(lambda n: b'{"image": "' + b"A" * n + b'"}')
images = st.sampled_from(
    [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\x00\x10JFIF", bytes(128) + b"DICM\x02\x00\x00\x00UL\x04\x00", b"GIF89a"]
)
plain = st.one_of(st.binary(max_size=300), deep, not_numbers, huge, st.builds(bytes.__add__, images, st.binary(max_size=300)))
part_headers = st.sampled_from(
    [
        b'Content-Disposition: form-data; name="image"; filename="../../x"',
        b'content-disposition: form-data; name="image"\r\nContent-Type: text/plain',
        b"Content-Disposition: form-data; name*=utf-8''%ff",
        b"Content-Type: application/dicom",
        b"Content-Disposition:",
        b": x",
        b"X-A: " + b"y" * 20_000,
        b"Content-Type: multipart/mixed; boundary=b",
        b"",
    ]
)
part = st.builds(
    lambda head, body, end: b"--b\r\n" + head + b"\r\n\r\n" + body + end, part_headers, plain, st.sampled_from([b"\r\n", b""])
)
forms = st.builds(
    lambda parts, end: b"".join(parts) + end, st.lists(part, max_size=10), st.sampled_from([b"--b--\r\n", b"--b--", b"--b", b""])
)
media_types = st.one_of(
    st.sampled_from(
        ["image/png", "image/jpeg", "application/dicom", "application/json", "text/plain", "multipart/form-data", ""]
    ),
    st.sampled_from(['multipart/form-data; boundary="', "multipart/form-data; boundary*=utf-8''b", "image/png; a*0=b; a*1=c"]),
    latin.map("multipart/form-data; boundary={}".format),
    st.sampled_from(['multipart/related; type="application/dicom"; boundary=b', "multipart/related; type=x; boundary=b"]),
    latin,
)
names = st.sampled_from(
    [
        "Content-Encoding",
        "Authorization",
        "Origin",
        "Host",
        "Expect",
        "Upgrade",
        "Range",
        "Accept",
        "Transfer-Encoding",
        "X-A",
        "Cookie",
        "Content-Length",
        "If-None-Match",
        "X-Forwarded-For",
        "Trailer",
        "TE",
        "X-HTTP-Method-Override",
    ]
)
values = st.one_of(
    latin, st.sampled_from(["Bearer ", "Bearer a b", "100-continue", "websocket", "h2c", "chunked", "gzip", "bytes=0-", "-1"])
)
headers = st.lists(st.tuples(names, values), max_size=5)


class Raw(bytes):
    """The bytes of a request; shown in part."""

    def __repr__(self) -> str:
        return f"{len(self)} bytes: {bytes(self[:600])!r}"


@st.composite
def raw_requests(draw: st.DrawFn) -> Raw:
    """Draw the bytes of a request; a third are well formed around something odd, a third are not HTTP in some way."""
    form = draw(st.booleans())
    body = draw(forms if form else plain)
    lines = [
        f"{draw(methods)} {draw(paths)} {draw(st.sampled_from(['HTTP/1.1'] * 8 + ['HTTP/1.0', 'HTTP/9.9', 'HTCPCP/1.0', '']))}"
    ]
    if draw(st.integers(0, 9)):
        lines.append("Host: 127.0.0.1")
    fitting = st.sampled_from(["multipart/form-data; boundary=b", 'multipart/related; type="application/dicom"; boundary=b'])
    lines.append(f"Content-Type: {draw(fitting) if form and draw(st.booleans()) else draw(media_types)}")
    framing = draw(st.sampled_from(["length", "length", "length", "chunked", "broken chunks", "too long", "too short", "none"]))
    if framing == "chunked":
        lines.append("Transfer-Encoding: chunked")
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    elif framing == "broken chunks":
        lines.append("Transfer-Encoding: chunked")
    elif framing != "none":
        lines.append(f"Content-Length: {len(body) + {'too long': 7, 'too short': -7}.get(framing, 0)}")
    lines += [f"{name}: {value}" for name, value in draw(headers)]
    if draw(st.integers(0, 19)) == 0:
        lines += [f"X-{number}: {'y' * 50}" for number in range(draw(st.integers(0, 3000)))]
    request = "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body
    if draw(st.integers(0, 9)) == 0:  # one bit is turned
        position = draw(st.integers(0, min(len(request), 200) - 1))
        request = request[:position] + bytes([request[position] ^ (1 << draw(st.integers(0, 7)))]) + request[position + 1 :]
    if draw(st.integers(0, 9)) == 0:  # another one comes behind it
        request += b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    return Raw(request)


def check_answer(status: int, media_type: str, body: bytes) -> None:
    """Check one answer; raises AssertionError."""
    assert status < 500 or status in {503, 507}, f"{status} {body[:300]!r}"
    assert b"Traceback" not in body
    if status == 409 and media_type == "application/dicom+json":  # STOW-RS says of each instance why it was refused
        assert {"00081198", "0008119A"} & set(json.loads(body))
    elif status >= 400 and body:
        assert media_type == "application/problem+json", f"{status} {media_type} {body[:300]!r}"
        document = json.loads(body)
        assert STATUS[document["code"]] == document["status"] == status
        assert document["title"] == CODES[document["code"]]


def check_bytes(received: bytes) -> int:
    """Check each answer on a connection, and return how many there were."""
    found = 0
    while received:
        head, blank, rest = received.partition(b"\r\n\r\n")
        assert blank, f"half an answer: {received[:200]!r}"
        match = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
        assert match, f"no answer: {received[:200]!r}"
        if match[1] == b"100":
            received = rest
            continue
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(fields.get(b"content-length", b"0"))
        body, after = rest[:length], rest[length:]
        if (after and not after.startswith(b"HTTP/1.1 ")) or len(
            body
        ) < length:  # an answer to HEAD announces a body and has none
            body, after = b"", rest
        check_answer(int(match[1]), fields.get(b"content-type", b"").decode().partition(";")[0], body)
        found += 1
        received = after
    return found


def check_log(text: str) -> None:
    """Check what the server wrote meanwhile."""
    for fault in FAULTS:
        assert fault not in text, text[max(0, text.index(fault) - 500) :][:3000]


def attack(url: str, exchange: Callable[..., bytes], requests: int) -> int:
    """Send raw requests, check each answer, and return how many were answered."""
    answered = 0

    @quick(requests)
    @given(raw_requests())
    def send(request: Raw) -> None:
        nonlocal answered
        answered += check_bytes(exchange(url, request))

    send()
    return answered


def attack_by_document(url: str, requests: int) -> int:
    """Send what the OpenAPI document's schemas suggest, valid and not, and return how many requests were answered."""
    schemathesis.serializer.alias("multipart/related", "application/octet-stream")
    schema = schemathesis.openapi.from_url(f"{url}/v1/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    answered = 0
    for operation in operations:
        for mode in schemathesis.GenerationMode:

            @quick(max(1, requests // len(operations) // 2))
            @given(operation.as_strategy(generation_mode=mode))
            def send(case: schemathesis.Case) -> None:
                nonlocal answered
                response = case.call(base_url=url, timeout=60)
                media_type = response.headers.get("content-type", [""])[0].partition(";")[0]
                check_answer(response.status_code, media_type, response.content)
                answered += 1

            try:
                send()
            except Exception as error:
                if type(error).__name__ != "Unsatisfiable":  # an operation without parameters has no wrong ones
                    raise
    return answered


def test_malformed_requests_are_refused_with_a_code(server: Any, send_raw: Callable[..., bytes]) -> None:
    workers = server.workers()
    answered = attack(server.url, send_raw, REQUESTS * 3 // 4)
    assert answered > REQUESTS // 3, "most requests must be complete enough to be answered"
    assert attack_by_document(server.url, REQUESTS // 4) > REQUESTS // 10
    assert server.workers() == workers
    assert httpx.get(f"{server.url}/readyz", timeout=60).status_code == 200
    check_log(server.log.read_text())


class Faulty(BaseHTTPRequestHandler):
    """A stand-in that has each fault the test looks for, one at a time."""

    fault = ""

    def answer(self) -> None:
        status, media_type, body = {
            "500": (500, "application/problem+json", b"{}"),
            "traceback": (200, "text/plain", b"Traceback (most recent call last)"),
            "text": (400, "text/plain", b"no"),
            "code": (400, "application/problem+json", b'{"code": "odd", "status": 400, "title": "x"}'),
            "status": (400, "application/problem+json", b'{"code": "too_large", "status": 413, "title": "x"}'),
        }[self.fault]
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    do_GET = answer  # noqa: N815  (the name is the base class's)

    def log_message(self, *_: Any) -> None:
        """Stay silent."""


@pytest.fixture
def faulty() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("fault", ["500", "traceback", "text", "code", "status"])
def test_the_check_sees_a_planted_fault(
    faulty: str, send_raw: Callable[..., bytes], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Faulty, "fault", fault)
    with pytest.raises((AssertionError, KeyError)):
        check_bytes(send_raw(faulty, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"))


def test_the_check_sees_a_planted_log_line(tmp_path: Path) -> None:
    check_log("all quiet")
    for fault in FAULTS:
        with pytest.raises(AssertionError):
            check_log(f"before {fault} after")
