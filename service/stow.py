"""STOW-RS: DICOM instances in one multipart/related body, each analysed and committed before the answer names it.

A study can be far larger than one image, so the body is never held: a part is handed to the engine as soon as it has
arrived, and no more than the engine's threads are held at a time (DICOM PS3.18, section 10.5).
"""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydicom.filereader import read_dataset
from starlette.requests import Request

from models.errors import Refusal
from models.imaging import refusing
from service.bodies import Held
from service.related import RELATED, RelatedParts
from service.wall import media_type_of

DICOM_JSON = "application/dicom+json"
PART_TYPE = "application/dicom"
MAX_INSTANCES = 1000
MAX_SECONDS = 100
"""Of one request; BentoML ends one that takes 120. What was committed until then stays, so the sender repeats cheaply."""

FAILURES: dict[str, int] = {
    "overloaded": 0xA700,
    "deadline_exceeded": 0xA700,
    "storage_full": 0xA700,
    "storage_unavailable": 0xA700,
    "image_too_large": 0xA700,
    "unsupported_media_type": 0xC000,
    "empty_body": 0xC000,
    "not_decodable": 0xC000,
    "inconsistent_image": 0xC000,
    "unsupported_transfer_syntax": 0xC122,
    "no_pixel_data": 0x0122,
    "multi_frame": 0x0122,
    "region_required": 0x0122,
    "not_tissue": 0x0122,
}
"""Error code -> Failure Reason (0008,1197), PS3.18 table I.2-2 and PS3.4 annex B; 0110, a processing failure, for others."""
BUSY = frozenset({"overloaded", "deadline_exceeded", "storage_full", "storage_unavailable"})
_PROCESSING_FAILURE = 0x0110
_UID = re.compile(r"[0-9.]{1,64}")

Json = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of one instance.

    Attributes
    ----------
    sop_class_uid, sop_instance_uid : str or None
        Of the instance, from its meta header; None where that does not say.
    result_id, verdict : str or None
        Of what was committed.
    refusal : Refusal or None
        Why nothing was.
    """

    sop_class_uid: str | None
    sop_instance_uid: str | None
    result_id: str | None = None
    verdict: str | None = None
    refusal: Refusal | None = None


def _boundary(request: Request) -> bytes:
    media_type, options = media_type_of(request.headers.get("content-type"))
    kind = options.get(b"type", b"").decode("latin-1").lower()
    if media_type != RELATED or kind not in {"", PART_TYPE}:
        raise Refusal("unsupported_media_type", f'Content-Type must be {RELATED}; type="{PART_TYPE}".')
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal("unsupported_media_type", "A Content-Encoding is not taken.")
    boundary = options.get(b"boundary")
    if not boundary:
        raise Refusal("bad_request", "The Content-Type lacks its boundary.")
    return boundary


async def _instances(
    request: Request, limit: int, seconds: float, arriving: Callable[[int], None]
) -> AsyncIterator[tuple[str, bytes]]:
    """Yield (Content-Type, content) of each part as it arrives; ``seconds`` is the longest time for one of them.

    ``arriving`` is told how many bytes are held of parts that are not yielded yet.
    """
    parts = RelatedParts(_boundary(request), limit, MAX_INSTANCES)
    stream = request.stream()
    clock = asyncio.get_running_loop()
    end = clock.time() + seconds
    while True:
        try:
            async with asyncio.timeout_at(end):
                chunk = await anext(stream, None)
        except TimeoutError as error:
            raise Refusal("request_timeout", f"An instance took longer than {seconds:g} seconds.") from error
        if chunk is None:
            break
        complete = parts.write(chunk)
        arriving(parts.size + sum(len(content) for _, content in complete))
        for part in complete:
            yield part
            end = clock.time() + seconds  # the time that the analysis took is not the sender's
    if not parts.begun:
        raise Refusal("empty_body")
    if not parts.ended:
        raise Refusal("bad_request", "The multipart body ends early.")


async def receive(
    request: Request, analyse: Callable[[bytes], Awaitable[Outcome]], threads: int, limit: int, seconds: float, held: Held
) -> list[Outcome]:
    """Analyse every instance of a request.

    Parameters
    ----------
    request : Request
    analyse : callable
        Called with the bytes of an instance.
    threads : int
        Instances worked on, and held, at the same time.
    limit : int, bytes
        Of one instance.
    seconds : float
        For one instance to arrive.
    held : Held
        What the instances take of the memory.

    Returns
    -------
    list of Outcome
        In the order of the parts.

    Raises
    ------
    Refusal
        ``unsupported_media_type``, ``bad_request``, ``too_large``, ``request_timeout``, ``overloaded`` or ``empty_body``. What
        was committed before stays.
    """
    tasks: list[asyncio.Task[Outcome]] = []
    under_way: dict[asyncio.Task[Outcome], int] = {}

    def arriving(size: int) -> None:
        held.hold(size + sum(under_way.values()))

    try:
        async with asyncio.timeout(MAX_SECONDS):
            async for declared, content in _instances(request, limit, seconds, arriving):
                tasks.append(asyncio.create_task(_one(declared, content, analyse)))
                under_way[tasks[-1]] = len(content)
                tasks[-1].add_done_callback(under_way.pop)
                while sum(not task.done() for task in tasks) >= threads:
                    await asyncio.wait([task for task in tasks if not task.done()], return_when=asyncio.FIRST_COMPLETED)
            return list(await asyncio.gather(*tasks))
    except TimeoutError as error:
        raise Refusal("request_timeout", f"A request may take {MAX_SECONDS} seconds; send the study in parts.") from error
    finally:
        for task in tasks:
            task.cancel()


async def _one(declared: str, content: bytes, analyse: Callable[[bytes], Awaitable[Outcome]]) -> Outcome:
    media_type, _ = media_type_of(declared)
    try:
        if media_type != PART_TYPE:
            raise Refusal("unsupported_media_type", f"Each part must be {PART_TYPE}.")
        if not content:
            raise Refusal("empty_body")
        return await analyse(content)
    except Refusal as refusal:
        return Outcome(*meta_uids(content), refusal=refusal)


def meta_uids(content: bytes) -> tuple[str | None, str | None]:
    """Return the SOP Class and SOP Instance UID of a file from its meta header, the part that is never compressed."""
    if content[128:132] != b"DICM":
        return None, None
    try:
        with refusing():
            source = io.BytesIO(content[132:8192])
            meta = read_dataset(source, False, True, stop_when=lambda tag, _vr, _length: tag.group != 2)
            sop_class, instance = (str(meta.get(f"MediaStorageSOP{name}UID", "")) for name in ("Class", "Instance"))
    except Refusal:
        return None, None
    return (sop_class, instance) if _UID.fullmatch(sop_class) and _UID.fullmatch(instance) else (None, None)


def status_of(outcomes: list[Outcome]) -> int:
    """Return the HTTP status: 200 everything was committed, 202 a part of it, 409 nothing.

    Raises
    ------
    Refusal
        Where nothing was, and only because the service or its disk is busy or full: the whole request may be repeated.
    """
    refusals = [outcome.refusal for outcome in outcomes if outcome.refusal is not None]
    if not refusals:
        return 200
    if len(refusals) < len(outcomes):
        return 202
    if all(refusal.code in BUSY for refusal in refusals):
        raise refusals[0]
    return 409


def answer(outcomes: list[Outcome]) -> Json:
    """Return the Store Instances Response in the DICOM JSON model (PS3.18, table 10.5.3-1).

    A private block OVERREAD (0009,10xx) adds to each item what a caller needs to find the result: (01) its id, (02) the
    verdict, (03) the error code.
    """
    document: Json = {"00081190": {"vr": "UR"}}  # Retrieve URL, empty: the instances are not kept
    stored = [_referenced(outcome) for outcome in outcomes if outcome.refusal is None]
    failed = [_failed(outcome) for outcome in outcomes if outcome.refusal is not None]
    named = [item for item in failed if "00081155" in item]
    others = [item for item in failed if "00081155" not in item]
    for tag, items in (("00081198", named), ("00081199", stored), ("0008119A", others)):
        if items:
            document[tag] = {"vr": "SQ", "Value": items}
    return document


def _item(outcome: Outcome) -> Json:
    item: Json = {}
    for tag, uid in (("00081150", outcome.sop_class_uid), ("00081155", outcome.sop_instance_uid)):
        if uid:
            item[tag] = {"vr": "UI", "Value": [uid]}
    return item


def _private(elements: dict[str, tuple[str, str | None]]) -> Json:
    block = {f"000910{number}": {"vr": vr, "Value": [value]} for number, (vr, value) in elements.items() if value is not None}
    return {"00090010": {"vr": "LO", "Value": ["OVERREAD"]}} | block


def _referenced(outcome: Outcome) -> Json:
    private = _private({"01": ("LO", outcome.result_id), "02": ("LO", outcome.verdict)})
    return _item(outcome) | {"00081190": {"vr": "UR"}} | private


def _failed(outcome: Outcome) -> Json:
    assert outcome.refusal is not None
    code = outcome.refusal.code
    reason = {"00081197": {"vr": "US", "Value": [FAILURES.get(code, _PROCESSING_FAILURE)]}}
    return _item(outcome) | reason | _private({"03": ("LO", code)})
