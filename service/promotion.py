"""``overread promote``, ``candidate`` and ``rollback``: which package of a model answers, and which one is tried beside it.

Each command copies and tries the package first, then commits a row; the running service follows the rows by itself. Killed in
between, it leaves a copy that nobody names, and the next command goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.batch import AnyPredictor, load_model
from models.card import ModelCard, SegmenterCard, read_package
from models.command import command_parser
from models.comparison import Comparison, check_kind, read_comparison
from models.errors import Refusal
from service.audit import actor
from service.packages import alone, keep
from service.promotions import (
    NO_PACKAGE,
    SETTINGS_ACTOR,
    SETTINGS_REASON,
    TAKEN_BACK,
    Decision,
    Promotions,
    in_force,
    standing,
)
from service.settings import Settings, read_settings
from service.store import Store

NOT_WORSE = "The comparison with the package before says that it is not worse."


def read_reason(text: str | None) -> str:
    """Check a reason that is kept; "" where none was given.

    Raises
    ------
    Refusal
        ``config_invalid`` if it is blank, has more than 512 characters or more than a line.
    """
    if text is None:
        return ""
    if not text.strip() or len(text) > 512 or not text.isprintable():
        raise Refusal("config_invalid", "--reason must be one line of at most 512 characters.")
    return text.strip()


class Named(NamedTuple):
    """The package that the settings name for a model: its folder, its card and its identity."""

    folder: Path
    card: ModelCard | SegmenterCard
    sha256: str


def named(name: str, settings: Settings) -> Named:
    """Return the package of a model that the settings name.

    Raises
    ------
    Refusal
        ``unknown_model`` if there is none, ``package_invalid`` if one of the settings' packages is not as released.
    """
    for folder in settings.models:
        card, _, sha256 = read_package(folder)
        if card.name == name:
            return Named(folder, card, sha256)
    raise Refusal("unknown_model", f"OVERREAD_MODELS names no package of {name}: the service would not answer with it.")


def try_out(predictor: AnyPredictor) -> None:
    """Run a package once, on an image that is 0 throughout, so that what cannot run here is never promoted.

    Raises
    ------
    Refusal
        ``package_invalid`` if it fails; ``model_output_invalid`` for a value that is not finite.
    """
    spec = predictor.card.input
    blank = np.zeros((1, spec.channels, spec.height, spec.width), np.float32)
    try:
        values = predictor.graph.values(blank)
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        raise Refusal("package_invalid", "onnxruntime cannot run model.onnx on an image of the card's size.") from error
    if not all(np.isfinite(value).all() for value in values):
        raise Refusal("model_output_invalid", "The model gives a value that is not finite for an image that is 0 throughout.")


def gate(comparison: Comparison | None, sha256: str, current_sha256: str, reason: str) -> str:
    """Decide whether a package may be promoted, and return the reason that is kept.

    Raises
    ------
    Refusal
        Without a reason: ``candidate_not_compared`` if it was not compared with the package that is current here,
        ``candidate_worse`` if the comparison says so.
    """
    compared = comparison is not None and (comparison.candidate.sha256, comparison.current.sha256) == (sha256, current_sha256)
    if reason:
        return reason
    if comparison is None or not compared:
        raise Refusal("candidate_not_compared", "'overread release --current' compares it; --reason promotes it all the same.")
    if comparison.worse:
        raise Refusal("candidate_worse", f"{' '.join(comparison.worse)} --reason promotes it all the same.")
    return NOT_WORSE


class Desk:
    """Where decisions are made, one at a time, and kept.

    Parameters
    ----------
    settings : Settings
    store : Store
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._promotions = settings, Promotions(store)

    def promote(self, package: Path, reason: str) -> str:
        """Make a package the current one of its model; return what was done, in a sentence."""
        with alone(self._settings.packages):
            last, rows = self._promotions.last(), self._promotions.rows()
            predictor, first = self._checked(package)
            card, sha256 = predictor.card, predictor.sha256
            current = in_force(rows, "current").get(card.name, first.sha256)
            if sha256 == current:
                keep(package, sha256, self._settings.packages)  # the copy may have been damaged
                return f"{card.name}: version {card.version} is current already"
            comparison = read_comparison(package)
            reason = gate(comparison, sha256, current, reason)
            decisions = []
            if not standing(rows, card.name):  # a rollback must need nothing from outside
                keep(first.folder, first.sha256, self._settings.packages)
                decisions.append(Decision(card.name, first.sha256, "current", SETTINGS_ACTOR, SETTINGS_REASON))
            keep(package, sha256, self._settings.packages)
            report = comparison.model_dump(mode="json") if comparison else None
            decisions.append(Decision(card.name, sha256, "current", actor(), reason, report))
            if in_force(rows, "candidate").get(card.name) == sha256:
                decisions.append(Decision(card.name, NO_PACKAGE, "candidate", actor(), "It was promoted."))
            self._promotions.add(decisions, last)
        return f"{card.name}: version {card.version} is current"

    def try_beside(self, package: Path, reason: str) -> str:
        """Make a package the candidate of its model; return what was done, in a sentence."""
        with alone(self._settings.packages):
            last, rows = self._promotions.last(), self._promotions.rows()
            predictor, first = self._checked(package)
            card, sha256 = predictor.card, predictor.sha256
            if sha256 == in_force(rows, "current").get(card.name, first.sha256):
                raise Refusal("config_invalid", "The package is the current one; there is nothing to compare.")
            if in_force(rows, "candidate").get(card.name) == sha256:
                return f"{card.name}: version {card.version} is the candidate already; nothing to do"
            keep(package, sha256, self._settings.packages)
            comparison = read_comparison(package)
            report = comparison.model_dump(mode="json") if comparison else None
            self._promotions.add([Decision(card.name, sha256, "candidate", actor(), reason, report)], last)
        return f"{card.name}: version {card.version} is tried beside the current one"

    def withdraw(self, name: str, reason: str) -> str:
        """Try the candidate of a model no longer; return what was done, in a sentence."""
        with alone(self._settings.packages):
            last, rows = self._promotions.last(), self._promotions.rows()
            if name not in in_force(rows, "candidate"):
                raise Refusal("config_invalid", f"{name} has no candidate.")
            self._promotions.add([Decision(name, NO_PACKAGE, "candidate", actor(), reason)], last)
        return f"{name}: no package is tried any more"

    def roll_back(self, name: str, reason: str) -> str:
        """Make the package that was current before the current one; return what was done, in a sentence."""
        with alone(self._settings.packages):
            last, rows = self._promotions.last(), self._promotions.rows()
            stack = standing(rows, name)
            if len(stack) < 2:
                raise Refusal("config_invalid", f"Nothing was promoted before the current package of {name}.")
            target = stack[-2].model_sha256
            predictor = load_model(self._settings.packages / target, self._settings.trusted())
            if predictor.sha256 != target:
                raise Refusal("package_invalid", "The folder of the package before holds another one.")
            try_out(predictor)
            report = {TAKEN_BACK: stack[-1].id}
            decisions = [Decision(name, target, "current", actor(), reason, report)]
            if in_force(rows, "candidate").get(name) == target:
                decisions.append(Decision(name, NO_PACKAGE, "candidate", actor(), "It is current again."))
            self._promotions.add(decisions, last)
        return f"{name}: version {predictor.card.version} is current again"

    def _checked(self, package: Path) -> tuple[AnyPredictor, Named]:
        predictor = load_model(package, self._settings.trusted())
        first = named(predictor.card.name, self._settings)
        check_kind(predictor.card, first.card)
        try_out(predictor)
        return predictor, first

    def history(self) -> list[str]:
        """Return every decision, a line each, the earliest first: number, when, model, role, package, who, and why."""
        lines = []
        for row in self._promotions.rows():
            package = row.model_sha256[:12] or "none"
            what = f"takes back {row.taken_back}. {row.reason}" if row.taken_back else row.reason
            cells = (str(row.id), f"{row.created_at:%Y-%m-%d %H:%M} UTC", row.model_name, row.role, package, row.actor, what)
            lines.append("\t".join(cells))
        return lines


@contextmanager
def _desk() -> Iterator[Desk]:
    settings = read_settings()
    store = Store(settings.store)
    try:
        yield Desk(settings, store)
    finally:
        store.close()


def promote_main(argv: list[str]) -> int:
    """Run ``overread promote``; returns 0."""
    parser = command_parser(
        "promote",
        "Answer with this package from now on. It must have been compared with the current one and not be worse, or "
        "--reason says why it is promoted all the same. The running service follows within seconds.",
        "overread promote packages/cxr-pneumonia",
    )
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("package", nargs="?", type=Path, metavar="PACKAGE", help="folder of a model package")
    chosen.add_argument("--history", action="store_true", help="list what was decided, by whom, when and why")
    parser.add_argument("--reason", help="kept with the decision")
    options = parser.parse_args(argv)
    with _desk() as desk:
        print("\n".join(desk.history()) if options.history else desk.promote(options.package, read_reason(options.reason)))
    return 0


def candidate_main(argv: list[str]) -> int:
    """Run ``overread candidate``; returns 0."""
    parser = command_parser(
        "candidate",
        "Try a package beside the current one: it predicts the same images, after they were answered, and is never "
        "shown as an answer. GET /v1/candidates tells how the two compare.",
        "overread candidate packages/cxr-pneumonia",
    )
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("package", nargs="?", type=Path, metavar="PACKAGE", help="folder of a model package")
    chosen.add_argument("--withdraw", metavar="NAME", help="try the candidate of this model no longer")
    parser.add_argument("--reason", help="kept with the decision")
    options = parser.parse_args(argv)
    reason = read_reason(options.reason)
    with _desk() as desk:
        print(desk.withdraw(options.withdraw, reason) if options.withdraw else desk.try_beside(options.package, reason))
    return 0


def rollback_main(argv: list[str]) -> int:
    """Run ``overread rollback``; returns 0."""
    parser = command_parser(
        "rollback",
        "Answer with the package before the current one again. Twice goes back two packages.",
        "overread rollback cxr-pneumonia --reason 'missed two effusions on Monday'",
    )
    parser.add_argument("name", metavar="NAME", help="of the model")
    parser.add_argument("--reason", help="kept with the decision")
    options = parser.parse_args(argv)
    with _desk() as desk:
        print(desk.roll_back(options.name, read_reason(options.reason)))
    return 0
