"""Which packages a worker answers with, and which it tries beside them: what the settings name, then what was promoted.

A thread asks the database every second whether something was promoted, loads what it names, and puts the whole line-up in the
place of the old one in one assignment. Whoever took a package from the old one finishes with it: no request sees two.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.batch import AnyPredictor, load_model
from models.card import Triage, read_package
from models.errors import Refusal
from service.promotions import Promotions, in_force
from service.settings import Settings, triage_sha256
from service.store import Store, model_row
from service.telemetry import Telemetry, log_fault, logger

POLL_SECONDS = 1.0
RETRY_SECONDS = 30.0
"""Until a package that could not be loaded is tried again; another promotion is followed at once."""


@dataclass(frozen=True, eq=False)
class Served:
    """A loaded package, with what is the same for every image of it.

    Attributes
    ----------
    predictor : Predictor or SegmenterPredictor
    row : dict
        Of the table ``models``.
    limits : Triage
        In force at this site, and their digest.
    """

    predictor: AnyPredictor
    row: dict[str, Any]
    limits: Triage
    limits_sha256: str

    @classmethod
    def of(cls, predictor: AnyPredictor, settings: Settings) -> Served:
        """Put together what this site needs of a predictor."""
        limits = settings.triage(predictor.card.triage)
        return cls(predictor, model_row(predictor), limits, triage_sha256(limits))


@dataclass(frozen=True)
class _Now:
    current: Mapping[str, Served]
    candidates: Mapping[str, Served]


class Lineup:
    """The packages of one worker.

    Raises
    ------
    Refusal
        ``package_invalid`` for a current package that is not as released, ``package_untrusted``, ``config_invalid`` for two of
        one name in the settings.
    """

    def __init__(self, settings: Settings, store: Store, telemetry: Telemetry) -> None:
        self._settings, self._store, self._telemetry = settings, store, telemetry
        self._promotions, self._trusted = Promotions(store), settings.trusted()
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._follow, daemon=True)
        self._tried, self._again_at = self._promotions.last(), float("inf")
        rows = self._promotions.rows()
        promoted = in_force(rows, "current")
        current: dict[str, Served] = {}
        for folder in settings.models:
            name = read_package(folder)[0].name
            if name in current:
                raise Refusal("config_invalid", "OVERREAD_MODELS: two model packages have the same name.")
            current[name] = self._load_promoted(name, promoted[name]) if name in promoted else self._load(folder)
        self._now = _Now(current, {})
        self._take(_Now(current, self._candidates(in_force(rows, "candidate"), current)))
        for served in current.values():
            telemetry.loaded(served.predictor)
        self._thread.start()

    def close(self) -> None:
        """Stop following."""
        self._stop.set()
        self._thread.join()

    @property
    def current(self) -> Mapping[str, Served]:
        """The packages that answer, by the names of their models; the first is the default."""
        return self._now.current

    @property
    def candidates(self) -> Mapping[str, Served]:
        """The packages that are tried in shadow, by the names of their models."""
        return self._now.candidates

    def refresh(self) -> None:
        """Follow the promotions if there is one that was not followed.

        Raises
        ------
        Refusal
            ``storage_*`` where the database cannot be read.
        """
        last = self._promotions.last()
        if last == self._tried and time.monotonic() < self._again_at:
            return
        rows = self._promotions.rows()
        self._tried, self._again_at = last, float("inf")
        promoted, current = in_force(rows, "current"), dict(self.current)
        for name, before in self.current.items():
            sha256 = promoted.get(name, before.predictor.sha256)
            if sha256 != before.predictor.sha256:
                current[name] = self._instead(name, sha256) or before
        self._take(_Now(current, self._candidates(in_force(rows, "candidate"), current)))

    def _take(self, now: _Now) -> None:
        before, self._now = self._now, now  # one assignment: a reader has the one or the other
        for name, served in now.current.items():
            if served is not before.current[name]:
                self._telemetry.unloaded(before.current[name].predictor)
                self._telemetry.loaded(served.predictor)
                _log("package_taken", name, served.predictor.sha256)
        for name in now.candidates.keys() | before.candidates.keys():
            new, old = now.candidates.get(name), before.candidates.get(name)
            if new is not old:
                self._telemetry.tried(name)
                _log("candidate_taken", name, new.predictor.sha256 if new else "")

    def _candidates(self, named: Mapping[str, str], current: Mapping[str, Served]) -> dict[str, Served]:
        """Return the candidates that can be tried: those loaded before, and those that can be loaded now."""
        found: dict[str, Served] = {}
        for name, sha256 in named.items():
            if name not in current or current[name].predictor.sha256 == sha256:
                continue
            before = self.candidates.get(name)
            same = before is not None and before.predictor.sha256 == sha256
            served = before if same else self._instead(name, sha256)
            if served is not None:
                found[name] = served
        return found

    def _instead(self, name: str, sha256: str) -> Served | None:
        """Load a package that was promoted while this worker ran; None, counted and logged, if that fails."""
        try:
            return self._load_promoted(name, sha256)
        except Refusal as refusal:
            code = refusal.code
        # Whatever a package does when it is loaded, the one that answers now goes on
        except Exception as error:  # noqa: BLE001
            code = "internal_error"
            log_fault(error)
        self._again_at = time.monotonic() + RETRY_SECONDS
        self._telemetry.package_failures.labels(name).inc()
        _log("package_not_taken", name, sha256, code)
        return None

    def _load_promoted(self, name: str, sha256: str) -> Served:
        try:
            served = self._load(self._settings.packages / sha256)
        except Refusal as refusal:
            if refusal.code != "package_invalid":
                raise
            what = f"The promoted package of {name} cannot be used; 'overread rollback {name}' takes the one before it."
            raise Refusal("package_invalid", f"{what} {refusal.detail}") from refusal
        if served.predictor.sha256 != sha256 or served.predictor.card.name != name:
            raise Refusal("package_invalid", f"The folder of the promoted package of {name} holds another one.")
        return served

    def _load(self, folder: Path) -> Served:
        predictor = load_model(folder, self._trusted)
        if self._settings.batch > 1:
            predictor.graph.gather(self._settings.batch, self._settings.batch_wait_seconds)
        self._store.register(predictor)  # before any result of it can be stored
        return Served.of(predictor, self._settings)

    def _follow(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            try:
                self.refresh()
            except Refusal:
                continue  # no request can be answered without the database either, and each says so


def _log(event: str, name: str, sha256: str, code: str = "ok") -> None:
    logger().info(event, extra={"fields": {"model": name, "model_sha256": sha256, "code": code}})
