"""What a request must be before anything looks at its content."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from models.errors import Refusal
from service.bodies import Bodies, Held
from service.wall import IMAGE_TYPES, MAX_PARTS, MAX_REGIONS_BYTES, REGIONS_TYPES, Upload, parse_form, read_upload

LIMIT = 100_000
B = b"frontier"


def request_of(
    chunks: Iterable[bytes], headers: dict[str, str], *, pause: float = 0, vanish: bool = False
) -> tuple[Request, list[int]]:
    """Return a request that sends ``chunks``, and a list that counts how many of them were taken."""
    waiting = iter(chunks)
    taken: list[int] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause)
        chunk = next(waiting, None)
        if chunk is None:
            return {"type": "http.disconnect"} if vanish else {"type": "http.request", "body": b"", "more_body": False}
        taken.append(len(chunk))
        return {"type": "http.request", "body": chunk, "more_body": True}

    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "headers": raw, "path": "/", "query_string": b""}, receive), taken


def upload(body: bytes, headers: dict[str, str], **options: Any) -> Upload:
    request, _ = request_of([body], headers, **options)
    return asyncio.run(read_upload(request, LIMIT, 5, Held(Bodies(LIMIT))))


def refused(body: bytes, headers: dict[str, str], **options: Any) -> str:
    with pytest.raises(Refusal) as caught:
        upload(body, headers, **options)
    return caught.value.code


def part(content: bytes = b"pixels", name: str = "image", media_type: str | None = "image/png", extra: bytes = b"") -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"; filename="x.png"\r\n'.encode()
    head += f"Content-Type: {media_type}\r\n".encode() if media_type is not None else b""
    return b"--" + B + b"\r\n" + head + extra + b"\r\n" + content + b"\r\n"


END = b"--" + B + b"--\r\n"
FORM = {"content-type": f"multipart/form-data; boundary={B.decode()}"}


@pytest.mark.parametrize("media_type", IMAGE_TYPES)
def test_raw_bodies(media_type: str) -> None:
    assert upload(b"abc", {"content-type": media_type}) == Upload(b"abc", media_type)
    assert upload(b"abc", {"content-type": media_type.upper() + "; q=1"}) == Upload(b"abc", media_type)


@pytest.mark.parametrize(
    "media_type",
    [
        "text/plain",
        "application/json",
        "application/octet-stream",
        "image/gif",
        "image/*",
        "application/dicom+json",
        "multipart/mixed; boundary=x",
        "multipart/related; boundary=x",
        "application/x-www-form-urlencoded",
        "",
        ";",
        "image/png image/png",
        "\xff\xfe",
    ],
)
def test_other_media_types(media_type: str) -> None:
    assert refused(b"http://127.0.0.1:1/", {"content-type": media_type}) == "unsupported_media_type"


def test_no_media_type() -> None:
    assert refused(b"abc", {}) == "unsupported_media_type"


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "identity, gzip", "x"])
def test_content_codings_are_not_taken(coding: str) -> None:
    assert refused(b"abc", {"content-type": "image/png", "content-encoding": coding}) == "unsupported_media_type"
    assert upload(b"abc", {"content-type": "image/png", "content-encoding": "Identity"}).body == b"abc"


def test_empty_bodies() -> None:
    assert refused(b"", {"content-type": "image/png"}) == "empty_body"
    assert refused(b"", FORM) == "empty_body"
    assert refused(part(b"") + END, FORM) == "empty_body"


def test_a_declared_length_is_refused_before_reading() -> None:
    request, taken = request_of([b"x"], {"content-type": "image/png", "content-length": str(LIMIT + 1)})
    with pytest.raises(Refusal) as caught:
        asyncio.run(read_upload(request, LIMIT, 5, Held(Bodies(LIMIT))))
    assert (caught.value.code, taken) == ("too_large", [])


@pytest.mark.parametrize("declared", ["\xb2", "-1", "1e9", "abc", ""])
def test_a_nonsense_length_is_not_a_fault(declared: str) -> None:
    assert upload(b"x", {"content-type": "image/png", "content-length": declared}).body == b"x"


def test_a_length_of_thousands_of_digits_is_too_large() -> None:
    assert refused(b"x", {"content-type": "image/png", "content-length": "9" * 5000}) == "too_large"


@pytest.mark.parametrize("lie", [{}, {"content-length": "5"}])
def test_bytes_are_counted_while_reading(lie: dict[str, str]) -> None:
    """Whatever length was declared: a chunked body without end is cut at the limit, not at the end of memory."""
    request, taken = request_of((bytes(10_000) for _ in range(10**9)), {"content-type": "image/png"} | lie)
    with pytest.raises(Refusal) as caught:
        asyncio.run(read_upload(request, LIMIT, 5, Held(Bodies(LIMIT))))
    assert caught.value.code == "too_large"
    assert sum(taken) <= LIMIT + 10_000


def test_a_body_of_exactly_the_limit_is_read() -> None:
    assert len(upload(bytes(LIMIT), {"content-type": "image/png"}).body) == LIMIT


def test_slow_bodies_end() -> None:
    request, _ = request_of((b"x" for _ in range(10**9)), {"content-type": "image/png"}, pause=0.05)
    started = time.monotonic()
    with pytest.raises(Refusal) as caught:
        asyncio.run(read_upload(request, LIMIT, 0.3, Held(Bodies(LIMIT))))
    assert caught.value.code == "request_timeout"
    assert time.monotonic() - started < 30  # it would go on for hours


def test_a_client_that_vanishes_is_no_image() -> None:
    request, _ = request_of([b"half"], {"content-type": "image/png"}, vanish=True)
    with pytest.raises(ClientDisconnect):
        asyncio.run(read_upload(request, LIMIT, 5, Held(Bodies(LIMIT))))


@pytest.mark.parametrize("media_type", IMAGE_TYPES)
def test_forms(media_type: str) -> None:
    assert upload(part(media_type=media_type) + END, FORM) == Upload(b"pixels", media_type)


@pytest.mark.parametrize("media_type", [None, "application/octet-stream"])
def test_a_part_need_not_say_what_it_is(media_type: str | None) -> None:
    assert upload(part(media_type=media_type) + END, FORM) == Upload(b"pixels", None)


def test_a_part_may_hold_anything_but_the_boundary() -> None:
    content = bytes(range(256)) * 40 + b"\r\n--frontie\r\n--\r\n"
    assert upload(part(content) + END, FORM).body == content


@pytest.mark.parametrize(
    "media_type", ["text/plain", "text/uri-list", "application/json", "image/gif", "multipart/mixed; boundary=y"]
)
def test_a_part_of_another_type(media_type: str) -> None:
    assert refused(part(b"http://127.0.0.1:1/", media_type=media_type) + END, FORM) == "unsupported_media_type"


def regions(content: bytes = b"{}", media_type: str | None = "application/geo+json") -> bytes:
    return part(content, "regions", media_type)


@pytest.mark.parametrize("media_type", [*REGIONS_TYPES, None, "application/octet-stream"])
def test_regions_beside_an_image(media_type: str | None) -> None:
    for body in (part() + regions(b"[1]", media_type), regions(b"[1]", media_type) + part()):
        assert upload(body + END, FORM) == Upload(b"pixels", "image/png", b"[1]")
    assert upload(part() + END, FORM).regions is None
    assert upload(part() + regions(b"") + END, FORM).regions == b""


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (regions(), "bad_request"),
        (part() + regions() + regions(), "bad_request"),
        (part() + regions(media_type="text/plain"), "unsupported_media_type"),
        (part() + regions(media_type="image/png"), "unsupported_media_type"),
        (part(media_type="application/geo+json") + regions(), "unsupported_media_type"),
        (part() + part(name="Regions", media_type="application/json"), "bad_request"),
    ],
)
def test_regions_that_are_refused(body: bytes, code: str) -> None:
    assert refused(body + END, FORM) == code


def test_regions_have_a_limit_of_their_own() -> None:
    most = part() + regions(b" " * MAX_REGIONS_BYTES) + END
    assert len(parse_form(most, B).regions or b"") == MAX_REGIONS_BYTES
    with pytest.raises(Refusal) as caught:
        parse_form(part() + regions(b" " * (MAX_REGIONS_BYTES + 1)) + END, B)
    assert caught.value.code == "too_large"


NESTED = b'--inner\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--inner--\r\n'


@pytest.mark.parametrize(
    ("body", "code"),
    [
        pytest.param(part() + part() + END, "bad_request", id="two-images"),
        pytest.param(part(name="file") + END, "bad_request", id="other-name"),
        pytest.param(part(name="") + END, "bad_request", id="no-name"),
        pytest.param(part() + part(name="url", media_type="text/plain") + END, "bad_request", id="an-extra-part"),
        pytest.param(part() * (MAX_PARTS + 1) + END, "bad_request", id="many-parts"),
        pytest.param(part() * 900 + END, "bad_request", id="very-many-parts"),
        pytest.param(END, "bad_request", id="no-part"),
        pytest.param(b"x", "bad_request", id="no-boundary-inside"),
        pytest.param(part(), "bad_request", id="no-end"),
        pytest.param(part()[:-6], "bad_request", id="cut-in-content"),
        pytest.param(part()[:20], "bad_request", id="cut-in-header"),
        pytest.param((part() + END)[len(B) + 2 :], "bad_request", id="no-start"),
        pytest.param(part(NESTED, media_type="multipart/mixed; boundary=inner") + END, "unsupported_media_type", id="nested"),
        pytest.param(part(extra=b"X-Y: " + b"y" * 90_000 + b"\r\n") + END, "bad_request", id="huge-header"),
        pytest.param(part(extra=b"X-Y: y\r\n" * 9_000) + END, "bad_request", id="many-headers"),
        pytest.param(part(extra=b": y\r\n") + END, "bad_request", id="nameless-header"),
        pytest.param(part(extra=b"X Y\r\n") + END, "bad_request", id="header-without-colon"),
        pytest.param(b"--" + B + b"\r\n\r\npixels\r\n" + END, "bad_request", id="no-headers"),
        pytest.param(b"--" + B + b"\r\nContent-Type: image/png\r\n\r\npixels\r\n" + END, "bad_request", id="no-disposition"),
    ],
)
def test_broken_forms(body: bytes, code: str) -> None:
    assert refused(body, FORM) == code


@pytest.mark.parametrize("boundary", ["", "; boundary=", '; boundary=""', "; boundary", "; border=frontier"])
def test_no_boundary(boundary: str) -> None:
    assert refused(part() + END, {"content-type": f"multipart/form-data{boundary}"}) == "bad_request"


@pytest.mark.parametrize("boundary", ["other", "\xff", "a" * 300, "frontier\x00", "'", "\r"])
def test_a_wrong_boundary(boundary: str) -> None:
    assert refused(part() + END, {"content-type": f"multipart/form-data; boundary={boundary}"}) == "bad_request"


@given(st.binary(max_size=400), st.binary(min_size=1, max_size=80))
@settings(deadline=None, max_examples=300)
def test_no_form_is_a_fault(body: bytes, boundary: bytes) -> None:
    with contextlib.suppress(Refusal):
        parse_form(body, boundary)


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_no_mutation_of_a_form_is_a_fault(data: st.DataObject) -> None:
    body = bytearray(part() + END)
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, len(body) - 1))
        body[position : position + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4)) or b"\r"
    with contextlib.suppress(Refusal):
        assert parse_form(bytes(body), B).body


@given(st.text(st.characters(max_codepoint=255), max_size=120))
@settings(deadline=None, max_examples=300)
def test_no_content_type_is_a_fault(value: str) -> None:
    for text in (value, f"multipart/form-data; {value}", f"image/png;{value}"):
        with contextlib.suppress(Refusal):
            upload(b"abc", {"content-type": text})
