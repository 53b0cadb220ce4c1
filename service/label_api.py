"""Routes of labels."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from starlette.responses import Response

from models.errors import Refusal
from service.label_schemas import LabelIn, LabelList
from service.routes import Call, Handler, json_response

if TYPE_CHECKING:
    from service.analysis import Site

MAX_LABEL_BYTES = 8 * 1024 * 1024
"""Some 200,000 points or 10,000 outlines."""


def _key(call: Call) -> str | None:
    given = call.request.headers.getlist("idempotency-key")
    if not given:
        return None
    if len(given) > 1 or re.fullmatch(r"[!-~]{1,128}", given[0]) is None:
        raise Refusal("bad_request", "Idempotency-Key must be one of 1 to 128 visible ASCII characters.")
    return given[0]


async def _add(site: Site, call: Call) -> Response:
    call.query()
    key, reader = _key(call), call.caller.reader
    given = await call.document(LabelIn, site.settings.body_timeout_seconds, MAX_LABEL_BYTES)
    answer = await site.engine.run(lambda: site.loop.labels.add(given, reader, key, by=call.who))
    site.telemetry.labels.labels(given.source).inc()
    return json_response(answer, 201)


async def _list(site: Site, call: Call) -> Response:
    query = call.query("item_id", "result_id")
    if len(query) != 1:
        raise Refusal("bad_request", "Ask for the labels of one item_id or of one result_id.")
    number, result = query.get("item_id"), query.get("result_id")
    if re.fullmatch("[1-9][0-9]{0,14}" if number else "[0-9a-f]{64}", number or result or "") is None:
        raise Refusal("bad_request", "item_id is a number, result_id has 64 hexadecimal digits.")
    reader = None if call.caller.role == "operator" else call.caller.reader

    def listed() -> LabelList:
        found = LabelList(labels=site.loop.labels.listed(reader, int(number) if number else None, result))
        site.audit.read(call.who, "labels_read", [label.image_sha256 for label in found.labels])
        return found

    return json_response(await site.engine.run(listed))


LABEL_HANDLERS: dict[tuple[str, str], Handler] = {
    ("POST", "/v1/labels"): _add,
    ("GET", "/v1/labels"): _list,
}
"""(method, route) -> what answers it."""
