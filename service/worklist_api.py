"""Routes of the worklist: what to label next, leases, items, kept pixels, sites."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from starlette.responses import Response

from models.errors import Refusal
from service.item_answers import item_answer, item_answers, item_detail
from service.leases import Held
from service.loop_schemas import Item, ItemDetail, Lease, LeaseIn, Sites, SkipIn, Worklist
from service.routes import Call, Handler, json_response
from service.sites import site_days
from service.wanted import read_flag
from service.worklist import Place

if TYPE_CHECKING:
    from service.analysis import Site

DEFAULT_BUDGET, MOST_BUDGET = 30, 200
DEFAULT_DAYS, MOST_DAYS = 30, 366


def measure(site: Site) -> None:
    """Set the metrics that are counted where they are asked for."""
    for state, number in site.loop.items.counts().items():
        site.telemetry.items.labels(state).set(number)
    site.telemetry.kept_bytes.set(site.loop.items.kept_bytes())
    site.telemetry.leases.set(site.loop.leases.active())


def _number(text: str | None, name: str, default: int, most: int) -> int:
    if text is None:
        return default
    if re.fullmatch("[0-9]{1,4}", text) is None or not 1 <= int(text) <= most:
        raise Refusal("bad_request", f"{name} must be a whole number from 1 to {most}.")
    return int(text)


async def _worklist(site: Site, call: Call) -> Response:
    query = call.query("model", "budget")
    budget = _number(query.get("budget"), "budget", DEFAULT_BUDGET, MOST_BUDGET)
    predictor = site.predictor(query.get("model"))
    name, sha256 = predictor.card.name, predictor.sha256

    def listed() -> Worklist:
        places = site.loop.worklist.choose(sha256, call.caller.reader, budget)
        counts = site.loop.worklist.counts(name, sha256)
        return Worklist(model=name, model_sha256=sha256, items=_seen(site, call, item_answers(site, places)), **counts)

    return json_response(await site.engine.run(listed))


def _seen(site: Site, call: Call, shown: list[Item]) -> list[Item]:
    """Note that the caller is about to see these items."""
    site.audit.read(call.who, "item_read", [item.image_sha256 for item in shown])
    return shown


def _one(site: Site, call: Call, item_id: int) -> Item:
    (item,) = _seen(site, call, [item_answer(site, item_id)])
    return item


def _leased(site: Site, call: Call, held: Held, place: Place | None = None) -> Lease:
    (item,) = _seen(site, call, item_answers(site, [place or Place(held.item_id, ())]))
    return Lease(item=item, lease_id=held.lease_id, until=datetime.fromtimestamp(held.until, UTC))


def _take(site: Site, call: Call, wanted: LeaseIn) -> Lease:
    reader = call.caller.reader
    if wanted.item_id is None:
        sha256 = site.predictor(wanted.model).sha256
        # Others take from the same list meanwhile, so it is as long as a list can be
        places = site.loop.worklist.choose(sha256, reader, MOST_BUDGET)
        held = site.loop.leases.take(reader, sha256, [place.item_id for place in places])
        if held is None:
            raise Refusal("worklist_empty")
        return _leased(site, call, held, next(place for place in places if place.item_id == held.item_id))
    item = item_answer(site, wanted.item_id)
    if wanted.model is not None and wanted.model != item.model.name:
        raise Refusal("bad_request", "The item is one of another model.")
    return _leased(site, call, site.loop.leases.take_named(reader, site.predictor(item.model.name).sha256, wanted.item_id))


async def _lease(site: Site, call: Call) -> Response:
    call.query()
    wanted = await call.document(LeaseIn, site.settings.body_timeout_seconds)
    return json_response(await site.engine.run(lambda: _take(site, call, wanted)))


async def _renew(site: Site, call: Call) -> Response:
    call.query()
    lease_id, reader = call.parameters["lease_id"], call.caller.reader
    return json_response(await site.engine.run(lambda: _leased(site, call, site.loop.leases.renew(reader, lease_id))))


async def _return(site: Site, call: Call) -> Response:
    call.query()
    lease_id, reader = call.parameters["lease_id"], call.caller.reader
    return json_response(await site.engine.run(lambda: _one(site, call, site.loop.leases.give_back(reader, lease_id))))


async def _skip(site: Site, call: Call) -> Response:
    call.query()
    reason = (await call.document(SkipIn, site.settings.body_timeout_seconds)).reason
    lease_id, reader = call.parameters["lease_id"], call.caller.reader
    return json_response(await site.engine.run(lambda: _one(site, call, site.loop.leases.skip(reader, lease_id, reason))))


async def _item(site: Site, call: Call) -> Response:
    heatmap = read_flag(call.query("heatmap"), "heatmap")
    number = int(call.parameters["item_id"])

    def read() -> ItemDetail:
        detail = item_detail(site, number, call.caller.reader, heatmap)
        _seen(site, call, [detail.item])
        return detail

    return json_response(await site.engine.run(read))


async def _image(site: Site, call: Call) -> Response:
    call.query()
    image_sha256 = call.parameters["image_sha256"]

    def read() -> bytes:
        png = site.loop.kept.read(image_sha256)
        if png is None:
            raise Refusal("not_found", "The pixels are not kept, or not any more.")
        site.audit.read(call.who, "image_read", [image_sha256])
        return png

    return Response(await site.engine.run(read), media_type="image/png")


async def _sites(site: Site, call: Call) -> Response:
    query = call.query("model", "days")
    days = _number(query.get("days"), "days", DEFAULT_DAYS, MOST_DAYS)
    name = site.predictor(query.get("model")).card.name
    rows = await site.engine.run(lambda: site_days(site.store, name, days))
    return json_response(Sites(model=name, sites=list(site.settings.sites), days=rows))


WORKLIST_HANDLERS: dict[tuple[str, str], Handler] = {
    ("GET", "/v1/worklist"): _worklist,
    ("POST", "/v1/worklist/lease"): _lease,
    ("POST", "/v1/worklist/lease/{lease_id}/renew"): _renew,
    ("POST", "/v1/worklist/lease/{lease_id}/return"): _return,
    ("POST", "/v1/worklist/lease/{lease_id}/skip"): _skip,
    ("GET", "/v1/items/{item_id}"): _item,
    ("GET", "/v1/images/{image_sha256}"): _image,
    ("GET", "/v1/sites"): _sites,
}
"""(method, route) -> what answers it."""
