"""``overread watch``: what arrives in an archive is analysed, and the results are stored beside it.

What was seen is committed together with how far the archive's log was read; a result is committed before it is sent; an
object's UID follows from its verdict. So after a crash of either side every step can simply be done again: nothing is missed, and
nothing is stored twice.
"""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from typing import cast

from pydicom.dataset import Dataset

from models.command import command_parser
from models.errors import Refusal
from service.analysis import Site
from service.arrivals import DONE, FAILED, OUTSIDE, SKIPPED, Arrival, Arrivals, Object, Position
from service.dicom_results import Written, dicom_bytes, is_ours, is_slide
from service.dicomweb import Archive
from service.outgoing import analyse
from service.places import Header, Place, place_of
from service.polling import LONGEST_BACKOFF_SECONDS, Polling, backoff
from service.settings import Settings, drop_proxies, read_settings
from service.single import only_one
from service.store import Store
from service.telemetry import log_fault, logger

LONGEST_PAUSE_SECONDS = 60.0
LOOK_SECONDS = 15.0
"""How often it is noted that the archive answers."""
AWAY = frozenset({"archive_unavailable", "storage_full", "storage_unavailable"})
"""Codes at which everything pauses, and no attempt is counted; the first only where the archive as a whole is away."""


def asked_for(settings: Settings, header: Header) -> bool:
    """Tell whether the rules of the settings ask for an instance; a rule that is not set lets everything pass."""
    for keyword, values in (("Modality", settings.pacs_modalities), ("BodyPartExamined", settings.pacs_body_parts)):
        if values and header.get(keyword, "").upper() not in {value.upper() for value in values}:
            return False
    for keywords, patterns in (
        (("StationName",), settings.pacs_stations),
        (("StudyDescription", "SeriesDescription"), settings.pacs_descriptions),
    ):
        texts = [header.get(keyword, "").lower() for keyword in keywords]
        if patterns and not any(fnmatchcase(text, pattern.lower()) for text in texts for pattern in patterns):
            return False
    return True


class Watch:
    """Follows one archive for one site."""

    def __init__(self, site: Site, archive: Archive) -> None:
        self._site, self._archive, self._settings = site, archive, site.settings
        self._arrivals = Arrivals(site.store)
        self._polling = Polling(archive, self._arrivals, self._settings)
        self._pool = ThreadPoolExecutor(site.settings.threads, thread_name_prefix="overread-watch")
        self._checked = False
        self._noted = -LOOK_SECONDS
        site.predictor(site.settings.pacs_model)  # a model that is not there is no instance's fault

    def close(self) -> None:
        """Finish what is being analysed."""
        self._pool.shutdown(wait=True)

    def run(self, stop: threading.Event, *, once: bool = False) -> None:
        """Follow the archive until ``stop``, or until there is nothing to do where ``once``."""
        pause = 0.0
        while not stop.is_set():
            try:
                busy, pause = self.step(), 0.0
            except Refusal as refusal:
                self._checked = False  # whatever comes back may have another log
                pause = min(LONGEST_PAUSE_SECONDS, max(1.0, 2 * pause))
                logger().warning("archive_pause", extra={"fields": {"code": refusal.code, "seconds": pause}})
                stop.wait(pause * random.uniform(0.7, 1.0))  # noqa: S311  (so that several sites do not come back at once)
                continue
            if once and not busy:
                return
            if not busy:
                stop.wait(self._settings.pacs_poll_seconds)

    def step(self) -> bool:
        """Read on in the log, then analyse some of what waits; return whether there may be more to do at once.

        Raises
        ------
        Refusal
            Where the archive or the disk is away; what was being done is done again later.
        """
        more = self._follow() if self._archive.has_log else self._polling.step()
        if time.monotonic() - self._noted >= LOOK_SECONDS:
            self._arrivals.looked()
            self._noted = time.monotonic()
        batch = self._arrivals.due(4 * self._settings.threads)
        futures = [self._pool.submit(self._attempt, arrival) for arrival in batch]
        faults = [fault for future in futures if (fault := future.exception()) is not None]
        if faults:
            raise faults[0]
        return more or bool(batch)

    def _follow(self) -> bool:
        position = self._arrivals.position()
        if position is None and not self._settings.pacs_history:
            last = self._archive.last_change()
            position = Position(last.last, last.anchor)
            self._arrivals.note([], position)
        elif position is None or (not self._checked and not self._same_log(position)):
            position = Position(0, "")
            self._arrivals.note([], position)
            logger().info("archive_read_from_start")
        self._checked = True
        page = self._archive.changes(position.sequence)
        if not page.anchor:
            return False
        number = self._arrivals.note([Place(identifier) for _, identifier in page.arrived], Position(page.last, page.anchor))
        if number:
            logger().info("archive_arrivals", extra={"fields": {"number": number}})
        return not page.done

    def _same_log(self, position: Position) -> bool:
        """Tell whether the archive still has the log that was read, rather than one that began anew or from a backup."""
        if position.sequence == 0:
            return True
        page = self._archive.changes(position.sequence - 1, 1)
        if not page.anchor:
            return False  # it ends before; or the last study was deleted, and reading again only costs time
        return page.last != position.sequence or page.anchor == position.anchor

    def _attempt(self, arrival: Arrival) -> None:
        if arrival.attempts >= self._settings.pacs_attempts:  # it took the process with it each time
            self._give_up(arrival, "internal_error")
            return
        started = time.monotonic()
        self._arrivals.begin(arrival.id)
        try:
            self._analyse(arrival)
        except Refusal as refusal:
            if refusal.code in {"archive_unavailable", "archive_refused"}:
                self._refused(arrival, refusal.code)
            elif refusal.code in AWAY:
                self._arrivals.release(arrival.id)
                raise
            elif refusal.code in OUTSIDE:
                self._arrivals.settle(arrival.id, SKIPPED, refusal.code)
                _log(arrival, SKIPPED, refusal.code)
            else:
                self._give_up(arrival, refusal.code)
        # Whatever one image can cause must not end the watch: it becomes a row that names its instance
        except Exception as error:  # noqa: BLE001
            log_fault(error)
            self._again(arrival, "internal_error", 2.0**arrival.attempts)
        else:
            _log(arrival, DONE, "ok", ms=round(1000 * (time.monotonic() - started), 1))

    def _refused(self, arrival: Arrival, code: str) -> None:
        """Count an attempt that the archive failed, unless it is away as a whole: one bad instance must not stop the others."""
        try:
            self._archive.probe()
        except Refusal:
            self._arrivals.release(arrival.id)
            raise
        # "Not now" may be said of all that is stored or fetched while the archive still answers; it gets an hour for that
        seconds = backoff(arrival.attempts) if code == "archive_unavailable" else 2.0**arrival.attempts
        self._again(arrival, "archive_refused", seconds)

    def _again(self, arrival: Arrival, code: str, seconds: float) -> None:
        """Wait before the next attempt; after the last one it is a failure."""
        if arrival.attempts + 1 >= self._settings.pacs_attempts:
            self._give_up(arrival, code)
        else:
            self._arrivals.postpone(arrival.id, code, min(LONGEST_BACKOFF_SECONDS, seconds))

    def _give_up(self, arrival: Arrival, code: str) -> None:
        self._arrivals.settle(arrival.id, FAILED, code)
        _log(arrival, FAILED, code)

    def _analyse(self, arrival: Arrival) -> None:
        """Take one instance from the archive's header to the stored objects."""
        header = self._archive.header(arrival.place)
        # All that is_ours reads is there; a real data set would complain of values that are none
        if is_ours(cast(Dataset, header)):
            raise Refusal("own_output")
        if "Rows" not in header:
            raise Refusal("no_pixel_data")
        if not asked_for(self._settings, header):
            raise Refusal("not_asked_for")
        if is_slide(cast(Dataset, header)):  # it is not fetched: nobody has said which part of it to analyse
            raise Refusal("region_required")
        place = place_of(arrival.place.reference, header)

        def earlier(modality: str, uid: str) -> Written | None:
            found = self._arrivals.latest(arrival.id, modality, uid)
            return Written(found.series_instance_uid, found.sop_instance_uid) if found else None

        reply, objects = analyse(self._site, self._archive.retrieve(place), earlier)
        if objects:
            self._archive.store({str(item.SOPInstanceUID): dicom_bytes(item) for item in objects})
        kept = [Object(str(item.Modality), str(item.SeriesInstanceUID), str(item.SOPInstanceUID)) for item in objects]
        self._arrivals.settle(arrival.id, DONE, "", reply.stored.result["id"], place, kept)


def _log(arrival: Arrival, state: str, code: str, **more: float) -> None:
    logger().info("archive_instance", extra={"fields": {"row": arrival.id, "state": state, "code": code} | more})


def _list_failures(arrivals: Arrivals) -> int:
    failures = arrivals.failures()
    for item in failures:
        times = f"seen {item.seen_at:%Y-%m-%d %H:%M}\tlast {item.updated_at:%Y-%m-%d %H:%M} UTC"
        again = "\treceived: send it again" if item.received else ""
        print(f"{item.id}\t{item.code}\t{item.attempts} attempts\t{times}{again}")
    states = ", ".join(f"{number} {state}" for state, number in arrivals.counts().items())
    print(f"overread watch: {states}", file=sys.stderr)
    return 1 if failures else 0


def main(argv: list[str]) -> int:
    """Run ``overread watch``."""
    parser = command_parser(
        "watch",
        "Analyse what arrives in an archive and store the results there. docs/pacs.md says how to set it up; "
        "OVERREAD_PACS_URL and, before an Orthanc, OVERREAD_PACS_ORTHANC_URL say where the archive is.",
        "OVERREAD_PACS_URL=http://127.0.0.1:8042/dicom-web overread watch",
        "overread watch --failures",
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--once", action="store_true", help="end when there is nothing to do")
    chosen.add_argument("--failures", action="store_true", help="list what was given up; the exit code is 1 if there is any")
    chosen.add_argument(
        "--replay", nargs="*", type=int, metavar="NUMBER", help="try failures again, all or those of these numbers"
    )
    options = parser.parse_args(argv)
    settings = read_settings()
    if options.failures or options.replay is not None:
        store = Store(settings.store)
        try:
            arrivals = Arrivals(store)
            if options.failures:
                return _list_failures(arrivals)
            print(f"{arrivals.replay(options.replay or None)} will be tried again")
            return 0
        finally:
            store.close()
    drop_proxies()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    archive, site = Archive(settings), Site(settings)
    try:
        with only_one(site.store, "watch"):  # two would do everything twice
            watch = Watch(site, archive)
            try:
                watch.run(stop, once=options.once)
            finally:
                watch.close()
        return 1 if options.once and Arrivals(site.store).failures() else 0
    finally:
        archive.close()
        site.close()
