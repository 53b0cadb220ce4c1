"""Bodies together take a bounded part of the memory; who finds no room is told so, and nothing stays taken."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from models.errors import Refusal
from service.analysis import Site
from service.bodies import AT_ONCE, Bodies
from tests.service.scans import NONE, scan

LIMIT = 256 * 1024
RELATED = 'multipart/related; type="application/dicom"; boundary=edge'


@pytest.fixture
def site(make_site: Any) -> Site:
    return make_site(max_body_bytes=LIMIT, **NONE)


def test_the_bound_is_that_of_the_documentation(site: Site) -> None:
    assert site.bodies.limit == 8 * LIMIT == AT_ONCE * LIMIT


def test_what_is_held_is_given_back() -> None:
    bodies = Bodies(10)
    with bodies.held() as first, bodies.held() as second:
        first.hold(6)
        with pytest.raises(Refusal, match="overloaded"):
            second.hold(5)
        second.hold(4)
        first.hold(2)
        second.hold(8)
        assert bodies.size == 10
    assert bodies.size == 0
    with contextlib.suppress(KeyError), bodies.held() as held:
        held.hold(10)
        raise KeyError
    assert bodies.size == 0


async def _slow(first: bytes, rest: bytes, go_on: asyncio.Event) -> AsyncIterator[bytes]:
    yield first
    await go_on.wait()
    yield rest


@pytest.mark.parametrize("declared", [True, False])
def test_who_finds_no_room_is_told_so_and_the_others_are_answered(site: Site, connect: Any, declared: bool) -> None:
    """Eight callers have sent nearly all of the largest body; what a ninth sends does not fit, until one of them is done."""
    body = scan(1)
    assert len(body) < LIMIT
    api = connect(site).api

    async def walk() -> tuple[httpx.Response, list[httpx.Response], httpx.Response]:
        transport = httpx.ASGITransport(app=api)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:

            def send(content: Any, length: int | None = None, media_type: str = "application/dicom") -> Any:
                headers = {"content-type": media_type} | ({"content-length": str(length)} if length else {})
                return client.post("/v1/predict", content=content, headers=headers)

            go_on = asyncio.Event()
            padding = bytes(LIMIT - 8)
            waiting = [
                asyncio.create_task(send(_slow(padding, bytes(8), go_on), LIMIT if declared else None)) for _ in range(AT_ONCE)
            ]
            while site.bodies.size < AT_ONCE * (LIMIT - 8):
                await asyncio.sleep(0.01)
            refused = await send(body)
            related = b"--edge\r\ncontent-type: application/dicom\r\n\r\n" + body + b"\r\n--edge--\r\n"
            stow = await client.post("/v1/dicomweb/studies", content=related, headers={"content-type": RELATED})
            assert (stow.status_code, stow.json()["code"]) == (503, "overloaded")
            go_on.set()
            others = list(await asyncio.gather(*waiting))
            return refused, others, await send(body)

    refused, others, later = asyncio.run(walk())
    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    assert refused.headers["retry-after"]
    assert {answer.status_code for answer in others} == {400}  # they were read: zeros are no DICOM file
    assert later.status_code == 200
    assert site.bodies.size == 0
