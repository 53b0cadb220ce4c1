"""Following an archive that has no log: what has become of its studies since it was last asked, by QIDO-RS.

Looked at is the list of studies alone; only where a study's number of instances is another than before are its series listed, and
of those the ones that have changed. What is remembered for that is in memory: a restart lists everything anew.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from models.errors import Refusal
from service import qido
from service.arrivals import Arrivals, Position
from service.dicomweb import Archive
from service.places import Place, reference_of
from service.qido import Held
from service.settings import Settings
from service.telemetry import logger

STUDIES = 20
"""Studies listed before what was found is analysed: what came just now does not wait for all that is old."""
SWEEP_SECONDS = 3600.0
"""After this a study is listed anew though its number of instances is the same: one may have taken another's place."""
LONGEST_BACKOFF_SECONDS = 2400.0


def backoff(failures: int) -> float:
    """Return how many seconds to wait after so many failures: 1, 4, 16 … so that eight attempts take more than an hour."""
    return min(LONGEST_BACKOFF_SECONDS, 4.0**failures)


@dataclass(frozen=True)
class _Known:
    """A study that was last listed whole at ``at`` (monotonic clock), or could not be for the ``failures``-th time."""

    at: float
    instances: int | None = None
    series: dict[str, int | None] = field(default_factory=dict)
    failures: int = 0

    def changed(self, study: Held, now: float) -> bool:
        """Tell whether a study is to be listed again; one whose number of instances is not stated always is."""
        if self.failures:
            return now - self.at >= backoff(self.failures - 1)
        return study.instances is None or study.instances != self.instances


class Polling:
    """Asks an archive for its studies of the last days, and of those since it was last asked."""

    def __init__(self, archive: Archive, arrivals: Arrivals, settings: Settings) -> None:
        self._archive, self._arrivals, self._settings = archive, arrivals, settings
        self._modalities = {modality.upper() for modality in settings.pacs_modalities}
        self._known: dict[str, _Known] = {}
        self._queue: deque[Held] = deque()
        self._looked = -float("inf")
        self._day = date.min

    def step(self) -> bool:
        """Look for changed studies if it is time to, list a few of them; return whether there are more.

        Raises
        ------
        Refusal
            Where the archive or the disk is away, or the list of studies cannot be read; what was being done is done again later.
        """
        if time.monotonic() - self._looked >= self._settings.pacs_poll_seconds:
            self._look()
        for _ in range(min(STUDIES, len(self._queue))):
            self._take(self._queue[0])
            self._queue.popleft()
        if not self._queue and not any(known.failures for known in self._known.values()):
            position = self._position()
            if position != self._arrivals.position():  # all until that day was listed
                self._arrivals.note([], position, again=False)
        return bool(self._queue)

    def _position(self) -> Position:
        return Position(int(f"{self._day:%Y%m%d}"), "")

    def _look(self) -> None:
        """Ask for the studies, and queue those that are to be listed: the changed ones first."""
        today = datetime.now(UTC).date()
        start = min(today, _day_of(self._arrivals.position()) or today)
        since = f"{start - timedelta(days=self._settings.pacs_days):%Y%m%d}"
        found: dict[str, Held] = {}
        for modality in sorted(self._modalities) or [""]:
            for page in qido.studies(self._archive.query, since, modality):
                found |= {study.uid: study for study in page}
        self._known = {uid: known for uid, known in self._known.items() if uid in found}
        now = time.monotonic()
        changed, old = [], []
        for study in found.values():
            known = self._known.get(study.uid)
            if known is None or known.changed(study, now):
                changed.append(study)
            elif now - known.at >= SWEEP_SECONDS:
                old.append(study)
        self._queue = deque(changed + old)
        self._looked, self._day = time.monotonic(), today

    def _take(self, study: Held) -> None:
        """List a study; one that cannot be listed is asked for again later, and the others go on."""
        known = self._known.get(study.uid, _Known(0.0))
        try:
            self._list(study, known)
        except Refusal as refusal:
            if refusal.code not in {"archive_unavailable", "archive_refused", "not_found", "too_large"}:
                raise
            self._archive.probe()
            self._known[study.uid] = _Known(time.monotonic(), failures=known.failures + 1)
            logger().warning("archive_study_unlisted", extra={"fields": {"code": refusal.code, "attempts": known.failures + 1}})

    def _list(self, study: Held, known: _Known) -> None:
        now = time.monotonic()
        before = known.series if now - known.at < SWEEP_SECONDS else {}
        listed: dict[str, int | None] = {}
        if _malformed(study):
            self._note([Place(reference_of(study.uid))])
        else:
            for page in qido.series(self._archive.query, study):
                for series in page:
                    if series.instances is None or before.get(series.uid) != series.instances:
                        self._list_series(study, series)
                    listed[series.uid] = series.instances
        self._known[study.uid] = _Known(known.at if before else now, study.instances, listed)

    def _list_series(self, study: Held, series: Held) -> None:
        if self._modalities and series.modality and series.modality.upper() not in self._modalities:
            return
        if _malformed(series):
            self._note([Place(reference_of(series.uid))])
            return
        for places in qido.instances(self._archive.query, study.uid, series):
            self._note(places)

    def _note(self, places: Iterable[Place]) -> None:
        new = self._arrivals.unknown(places)
        if new:
            # Not further than before: a crash now must not leave out the studies that are not listed yet
            self._arrivals.note(new, self._arrivals.position() or self._position(), again=False)
            logger().info("archive_arrivals", extra={"fields": {"number": len(new)}})


def _day_of(position: Position | None) -> date | None:
    """Return until which day all was listed; None at the first time, also after a log was followed, whose numbers are no days."""
    try:
        return datetime.strptime(str(position.sequence), "%Y%m%d").replace(tzinfo=UTC).date() if position else None
    except ValueError:
        return None


def _malformed(held: Held) -> bool:
    """Tell whether no path can be built from a UID; noted as an instance without one, it becomes a failure that is listed."""
    return reference_of(held.uid) != held.uid
