"""The scans of a site that one package accepted, and the labels of those that were drawn at random among them."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from models.card import ModelCard
from models.certify import Document
from models.errors import Refusal
from models.site import Site
from models.site_labels import Label
from service.items import DOUBT, RANDOM
from service.label_export import decided, said
from service.store import Store
from service.tables import instances, items, results, verdicts
from service.tables import models as packages

_SCORES = ("image_sha256", "probabilities", "predicted_loss", "loss_percentile")


@dataclass(frozen=True)
class RandomShare:
    """What there is of a site and a package.

    Attributes
    ----------
    site : models.site.Site
        Accepted scans, one a patient, each named by its digest.
    labels : list of Label
        Of those that were drawn and are decided, with the share of the scans that was drawn.
    drawn : int
        Scans that were drawn, labelled or not.
    others : dict of str to int
        Scans of the site that are not among them, by why: "review", "refuse" (the verdict), "flagged" (an earlier package did not
        accept them, so that the draw passed them by), "again" (further scans of a patient).
    """

    site: Site
    labels: list[Label]
    drawn: int
    others: Counter[str]


def _scans(connection: sa.Connection, model_name: str, model_sha256: str, site: str) -> list[Any]:
    """Return each scan's first verdict by a package, in their order, with the item and the patient that there are of it."""
    first = sa.select(sa.func.min(verdicts.c.id)).where(~verdicts.c.scored_again).group_by(verdicts.c.result_id)
    same_image = (items.c.image_sha256 == results.c.image_sha256, items.c.model_name == model_name)
    same_instance = (
        instances.c.sop_instance_uid == verdicts.c.sop_instance_uid, instances.c.image_sha256 == results.c.image_sha256
    )  # fmt: skip
    query = (
        sa.select(verdicts.c.verdict, verdicts.c.reasons, *(results.c[name] for name in _SCORES))
        .add_columns(sa.func.coalesce(instances.c.patient, items.c.patient, results.c.image_sha256).label("patient"))
        .add_columns(items.c.id.label("item"), items.c.origin)
        .join_from(verdicts, results, results.c.id == verdicts.c.result_id)
        .outerjoin(items, sa.and_(*same_image))
        .outerjoin(instances, sa.and_(*same_instance))
        .where(verdicts.c.id.in_(first), verdicts.c.site == site, results.c.model_sha256 == model_sha256)
        .order_by(verdicts.c.id)
    )
    return list(connection.execute(query))


def random_share(store: Store, card: ModelCard, model_sha256: str, site: str) -> RandomShare:
    """Collect the accepted scans of a site by one package, and the labels of those that were drawn at random.

    Of a patient the first accepted scan stands: which one it is must not hang on what was drawn or labelled.

    Raises
    ------
    Refusal
        ``data_invalid`` if a label is of a class that the card does not know.
    """
    with store.reading() as connection:
        scans = _scans(connection, card.name, model_sha256, site)
        classes = {each.item["id"]: said(each.label) for each in decided(connection, card.name)}
    rows: list[Document] = []
    labels: list[tuple[str, str]] = []
    others: Counter[str] = Counter()
    patients: set[str] = set()
    drawn = 0
    for scan in scans:
        if scan.verdict != "accept":
            others[scan.verdict] += 1
        elif scan.origin == DOUBT:
            others["flagged"] += 1
        elif scan.patient in patients:
            others["again"] += 1
        else:
            patients.add(scan.patient)
            rows.append({name: getattr(scan, name) for name in (*_SCORES, "verdict", "reasons")} | {"file": scan.image_sha256})
            drawn += scan.origin == RANDOM
            given = classes.get(scan.item) if scan.origin == RANDOM else None
            if given is not None:
                labels.append((scan.image_sha256, given))
    if not {given for _, given in labels} <= set(card.output.classes):
        raise Refusal("data_invalid", "A label is of a class that the model card does not know.")
    digest = hashlib.sha256("".join(sorted(f"{row['image_sha256']}\n" for row in rows)).encode()).hexdigest()
    found = Site(rows, {row["file"]: row["file"] for row in rows}, Counter(), digest)
    share = drawn / max(len(rows), 1)
    return RandomShare(found, [Label(image, given, share) for image, given in labels], drawn, others)


def stored_card(store: Store, sha256: str) -> dict[str, Any] | None:
    """Return the card of a package that has answered for a scan, or None."""
    with store.reading() as connection:
        return connection.execute(sa.select(packages.c.card).where(packages.c.sha256 == sha256)).scalar_one_or_none()
