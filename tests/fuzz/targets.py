"""What must hold for any bytes: an image, an upload or instances, or else a coded refusal, in bounded time and memory."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from starlette.requests import Request

from models.errors import CODES, Refusal
from models.imaging import read_image
from service.bodies import AT_ONCE, Bodies, Held
from service.segmentation import read_regions
from service.stow import Outcome, answer, meta_uids, receive, status_of
from service.wall import IMAGE_TYPES, read_upload
from tests.models.memory import forget_peak, megabytes

SECONDS = 2.0
"""Of processor time, which a noisy machine does not stretch."""
MEGABYTES = 512
LIMIT = 1 << 20
WAIT = 60.0


@contextmanager
def bounded(seconds: float = SECONDS) -> Iterator[None]:
    """Raise AssertionError if what is done inside takes too long, or too much memory."""
    before, start = forget_peak(), time.process_time()
    yield
    took, grown = time.process_time() - start, megabytes("VmHWM") - before
    assert took < seconds, f"it took {took:.1f} s"
    assert grown < MEGABYTES, f"it took {grown:.0f} MB"


def check_image(data: bytes) -> str:
    """Decode as the service does, a part of a slide too; return what came of it: ``image`` or a code."""
    try:
        image = read_image(data, target=(16, 16) if len(data) % 4 else None, region=(8, 8, 64, 64))
    except Refusal as refusal:
        return refusal.code
    assert np.isfinite(image.rendered()).all(), "a rendered value is not finite"
    return "image"


def _request(data: bytes, size: int) -> Request:
    """A request whose Content-Type is the first line, and whose body comes in pieces of ``size`` bytes."""
    head, _, body = data.partition(b"\n")
    pieces = [body[first : first + size] for first in range(0, len(body), size)]
    messages = iter([{"type": "http.request", "body": piece, "more_body": True} for piece in pieces])

    async def arrive() -> Any:
        return next(messages, {"type": "http.request", "body": b"", "more_body": False})

    headers = [(b"content-type", head.strip(b"\r"))]
    return Request({"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}, arrive)


def check_form(data: bytes) -> str:
    """Find the image of a form and the regions beside it; return what came of it: ``upload`` or a code."""
    try:
        upload = asyncio.run(read_upload(_request(data, 4096), LIMIT, WAIT, Held(Bodies(AT_ONCE * LIMIT))))
        if upload.regions is not None:
            read_regions(upload.regions, read_image(upload.body), None)
    except Refusal as refusal:
        return refusal.code
    assert upload.body
    assert upload.media_type in {None, *IMAGE_TYPES}
    return "upload"


async def _instances(data: bytes, size: int) -> str:
    async def analyse(content: bytes) -> Outcome:
        return Outcome(*meta_uids(content), result_id=f"{hash(content):x}", verdict="review")

    outcomes = await receive(_request(data, size), analyse, 2, LIMIT, WAIT, Held(Bodies(AT_ONCE * LIMIT)))
    return f"{status_of(outcomes)} {json.dumps(answer(outcomes), allow_nan=False)}"


def check_related(data: bytes) -> str:
    """Take the instances of a body; return what came of it, ``stored`` or a code: the same however the body is cut."""
    found = set()
    for size in (LIMIT, 61):
        try:
            found.add(asyncio.run(_instances(data, size)))
        except Refusal as refusal:
            found.add(refusal.code)
    assert len(found) == 1, f"whole and in pieces it is not the same: {sorted(found)}"
    (one,) = found
    return one if one in CODES else "stored"


TARGETS: dict[str, Callable[[bytes], str]] = {"image": check_image, "form": check_form, "related": check_related}


def check(target: str, data: bytes, seconds: float = SECONDS) -> str:
    """Give bytes to a target; return what came of it.

    Raises
    ------
    AssertionError
        If what must hold does not.
    Exception
        Whatever escapes the target, which is a finding too.
    """
    with bounded(seconds):
        came = TARGETS[target](data)
    assert came in CODES or came in {"image", "upload", "stored"}
    return came


def warm(target: str, sources: dict[str, bytes]) -> None:
    """Let the codecs and their libraries be loaded before time and memory are counted."""
    for data in sources.values():
        with suppress(Refusal):
            TARGETS[target](data)
