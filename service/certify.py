"""``overread certify worklist``: what a model does at a site, from the labels of the worklist's random share.

Only that share was drawn with a known probability. What was labelled for being doubtful is worse than the rest, and is left out.
"""

from __future__ import annotations

import hashlib
import shlex
from datetime import UTC, datetime
from pathlib import Path

import models
from models.card import ModelCard, read_package
from models.certify import Document, certify, traced, write_report
from models.command import command_parser
from models.errors import Refusal
from models.promised import Targets, add_targets, targets_of, words_of
from models.sampling import share_holds
from service.promotions import Promotions, in_force
from service.random_share import RandomShare, random_share, stored_card
from service.settings import Settings, read_settings
from service.store import Store


def document_of(share: RandomShare, card: ModelCard, sha256: str, told: float, targets: Targets) -> Document:
    """Return the document of a report, as :func:`models.certify.certify` makes it, and what it came from.

    Parameters
    ----------
    share : RandomShare
    card, sha256
        Of the package.
    told : float
        The share of the settings.
    targets : Targets

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
        kept = stored_card(store, promoted)
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
    words = ["overread", "certify", "worklist", "--site", options.site, "--model", card.name, "--out", "REPORT"]
    document = document_of(share, card, sha256, settings.keep_random_share, targets)
    write_report(document | {"command": shlex.join([*words, *words_of(targets)])}, options.out)
    return 0
