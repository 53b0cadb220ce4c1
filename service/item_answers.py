"""Items as they are answered: what the database holds of them, with the result and the words for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

from models.card import ModelCard, SegmenterCard
from models.errors import Refusal
from models.triage import REASONS
from service.analysis import Site
from service.answers import card_of, findings
from service.evidence import item_heatmap
from service.items import RANDOM, WAITING, Shown
from service.loop_schemas import Item, ItemDetail, ItemLabels, ItemModel, SkipCount
from service.schemas import Extras, Reason
from service.settings import Settings
from service.worklist import WHY, Place


def item_answers(site: Site, places: Iterable[Place]) -> list[Item]:
    """Return items in the order of their places; one that is not there any more is left out."""
    places = list(places)
    found = site.loop.items.shown(place.item_id for place in places)
    packages = {shown.row["model_sha256"]: shown.stored for shown in found.values()}
    cards = {sha256: card_of(stored) for sha256, stored in packages.items()}  # one is read once, not for every item
    settings = site.settings
    return [
        _item(shown, is_blind(settings, shown.row["origin"]), cards[shown.row["model_sha256"]], place.why)
        for place in places
        if (shown := found.get(place.item_id)) is not None
    ]


def item_answer(site: Site, item_id: int) -> Item:
    """Return one item.

    Raises
    ------
    Refusal
        ``not_found``.
    """
    for item in item_answers(site, [Place(item_id, ())]):
        return item
    raise Refusal("not_found", "There is no item of that number.")


def item_detail(site: Site, item_id: int, reader: str, heatmap: bool = False) -> ItemDetail:
    """Return one item with its whole result, and how far its labels are; the heatmap too where it is wanted, and can be had.

    Raises
    ------
    Refusal
        ``not_found``; ``bad_request`` for the heatmap of a model that finds objects.
    """
    item = item_answer(site, item_id)
    given, mine, skipped = site.loop.items.progress(item_id, reader)
    skips = [SkipCount.model_validate({"reason": reason, "readers": number}) for reason, number in sorted(skipped.items())]
    labels = ItemLabels(given=given, wanted=site.settings.readers, mine=mine, skipped=skips)
    reply = site.result(item.result_id, "")
    if heatmap:
        reply = replace(reply, extras=Extras(heatmap=item_heatmap(site, item)))
    return ItemDetail(item=item, result=reply.answer(), labels=labels)


def is_blind(settings: Settings, origin: str) -> bool:
    """Tell whether an item of that origin is to be read without what the model says: a label that follows it measures nothing."""
    return settings.blind_reading == "all" or (settings.blind_reading == "random" and origin == RANDOM)


def _item(shown: Shown, blind: bool, card: ModelCard | SegmenterCard, why: tuple[str, ...]) -> Item:
    row, stored, judgement = shown.row, shown.stored, shown.judgement
    held = row["until"] if row["state"] in WAITING else None
    return Item(
        item_id=row["id"],
        image_sha256=row["image_sha256"],
        result_id=row["result_id"],
        model=ItemModel(name=card.name, version=card.version, sha256=row["model_sha256"]),
        origin=row["origin"],
        blind=blind,
        site=row["site"],
        state=row["state"],
        findings=findings(stored, card, judgement.verdict) if isinstance(card, ModelCard) else [],
        predicted_loss=stored.result["predicted_loss"],
        loss_percentile=stored.result["loss_percentile"],
        domain_percentile=stored.result["domain_percentile"],
        verdict=judgement.verdict,
        reasons=[Reason(code=code, message=REASONS[code]) for code in judgement.reasons],
        why=[Reason(code=code, message=WHY[code]) for code in why],
        rows=row["rows"],
        columns=row["columns"],
        pixel_spacing_mm=row["facts"]["pixel_spacing_mm"],
        facts=row["facts"],
        leased_until=_active(held),
        created_at=row["created_at"].replace(tzinfo=UTC),
    )


def _active(until: float | None) -> datetime | None:
    at = datetime.fromtimestamp(until, UTC) if until is not None else None
    return at if at is not None and at > datetime.now(UTC) else None
