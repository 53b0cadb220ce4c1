"""``overread certify worklist``: what a model does at a site, from the labels of the worklist's random share.

Only that share was drawn with a known probability. What was labelled for being doubtful is worse than the rest, and is left out.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

import models
from models.card import ModelCard, read_package
from models.certify import Document, add_targets, certify, targets_of, traced, write_report
from models.command import command_parser
from models.errors import Refusal
from models.sampling import share_holds
from models.site import Site
from models.site_labels import Label
from service.items import DOUBT, RANDOM
from service.label_export import decided, said
from service.promotions import Promotions, in_force
from service.settings import Settings, read_settings
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


def document_of(share: RandomShare, card: ModelCard, sha256: str, told: float, targets: tuple[float, float, float]) -> Document:
    """Return the document of a report, as :func:`models.certify.certify` makes it, and what it came from.

    Parameters
    ----------
    share : RandomShare
    card, sha256
        Of the package.
    told : float
        The share of the settings.
    targets : (float, float, float)
        As of :func:`models.certify.certify`.

    Raises
    ------
    Refusal
        ``too_few_labels`` or ``one_class``.
    """
    body = certify(card, share.site, share.labels, share.drawn - len(share.labels), targets)
    others = share.others
    notes = [
        "Of accepted scans alone, one a patient: the random share is drawn among them. "
        f"{others['review']} scans that were sent to review and {others['refuse']} that were refused are not in these figures, "
        "nor is what readers were shown for being doubtful."
    ]
    if others["flagged"]:
        notes.append(f"{others['flagged']} scans are left out that an earlier package flagged: the draw passed them by.")
    if not share_holds(share.drawn, len(share.site.rows), told):
        notes.append(
            f"{share.drawn} of {len(share.site.rows)} scans were drawn, which does not fit the {told:g} of the settings. "
            "It was another one earlier, or items were missed. The figures hold if that had nothing to do with what scans show."
        )
    given = "".join(sorted(f"{label.file} {label.label}\n" for label in share.labels))
    body["labels"] |= {
        "sha256": hashlib.sha256(given.encode()).hexdigest(),
        "draw": {"by": "the worklist's random share", "share": told, "drawn": share.drawn},
    }
    return {
        "overread": models.__version__, "created": datetime.now(UTC).strftime("%Y-%m-%d"), "model": traced(card, sha256),
        **body, "notes": notes + body["notes"], "comparison": None,
    }  # fmt: skip


def current(settings: Settings, store: Store, name: str | None) -> tuple[ModelCard, str]:
    """Return the card and the digest of a model's current package; None is the first model of the settings.

    Raises
    ------
    Refusal
        ``unknown_model``; ``config_invalid`` for a model that finds objects.
    """
    known = {card.name: (card, sha256) for card, _, sha256 in map(read_package, settings.models)}
    wanted = name or next(iter(known))
    if wanted not in known:
        raise Refusal("unknown_model", f"The models of the settings are {', '.join(known)}.")
    card, sha256 = known[wanted]
    promoted = in_force(Promotions(store).rows(), "current").get(wanted, sha256)
    if promoted != sha256:
        with store.reading() as connection:
            kept = connection.execute(sa.select(packages.c.card).where(packages.c.sha256 == promoted)).scalar_one_or_none()
        if kept is None:
            raise Refusal("too_few_labels", "The current package has not answered for any scan yet.")
        card, sha256 = (type(card)).model_validate(kept), promoted
    if not isinstance(card, ModelCard):
        raise Refusal("config_invalid", "A model that finds objects has no error rate; name a classifier by --model.")
    return card, sha256


def main(argv: list[str]) -> int:
    """Run ``overread certify worklist``; returns 0."""
    parser = command_parser(
        "certify worklist",
        "Measure the current package at a site by the labels of the worklist's random share and the stored predictions for all "
        "accepted scans: error, sensitivity, specificity, predictive values and loss with intervals.",
        "overread certify worklist --site east --out report",
    )
    parser.add_argument("--site", default="", help="a site of the settings; without it, scans that came from none")
    parser.add_argument("--model", metavar="NAME", help="of this model; the first of the settings by default")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="REPORT", help="folder of the report")
    add_targets(parser)
    options = parser.parse_args(argv)
    targets = targets_of(options)
    settings = read_settings()
    if options.site and options.site not in settings.sites:
        raise Refusal("unknown_site")
    store = Store(settings.store)
    try:
        card, sha256 = current(settings, store, options.model)
        share = random_share(store, card, sha256, options.site)
    finally:
        store.close()
    write_report(document_of(share, card, sha256, settings.keep_random_share, targets), options.out)
    return 0
