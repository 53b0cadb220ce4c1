"""What the service does by itself: scores open items of the worklist again after a promotion, removes what is over, counts sites.

One worker at a time does it, whichever takes the lock first. Every step can be killed and done again.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from functools import partial

from models.errors import Refusal
from models.rendered import restore
from service.analysis import Site
from service.erasure import Eraser
from service.facts import header_of
from service.items import Row
from service.lineup import Served
from service.loop_schemas import Facts
from service.telemetry import log_fault, logger

ROUND_SECONDS = 1.0
SWEEP_SECONDS = 60.0
RECONCILE_SECONDS = 3600.0
GRACE_SECONDS = 3600.0
"""Age below which a file that nothing names may belong to a commit that is under way."""
BATCH = 50
GONE = frozenset({"modality_not_accepted", "body_part_not_accepted", "view_not_accepted", "age_not_accepted", "too_small"})
"""Codes that say that the current package does not take an image."""


class Upkeep:
    """A thread of one worker."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="overread-upkeep", daemon=True)
        self._sweep_at = self._reconcile_at = 0.0
        self._failed: set[tuple[str, str]] = set()  # image, package; the number of an erased item is given again

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Finish the step that is under way, and end."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(ROUND_SECONDS):
            try:
                with self._site.store.claimed("upkeep") as mine:
                    if mine:
                        self.sweep()
                        self.count()
                        self.score_again()
            except (Refusal, OSError):
                continue  # the disk is full or away, which every request says
            except Exception as error:  # noqa: BLE001  (whatever one item can cause must not end the thread)
                log_fault(error)

    def sweep(self) -> None:
        """Remove pixels and leases whose time is over, and what a crash left behind, where it is time to look."""
        items, now = self._site.loop.items, time.monotonic()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_SECONDS
            expired = 0
            while not self._stop.is_set() and (number := items.expire(datetime.now(UTC), BATCH)):
                expired += number
            self._site.loop.leases.forget()
            self._expire_results()
            _log("images_expired", expired)
        if now >= self._reconcile_at:
            self._reconcile_at = now + RECONCILE_SECONDS
            _log("images_reconciled", items.reconcile(time.time() - GRACE_SECONDS))

    def count(self) -> None:
        """Take every scan that was committed since into the health of its site."""
        while not self._stop.is_set() and self._site.health.advance():
            pass

    def _expire_results(self) -> None:
        days, done = self._site.settings.result_days, 0
        if days is None:
            return
        eraser = Eraser(self._site.store, self._site.loop.kept)
        before = datetime.now(UTC) - timedelta(days=days)
        while not self._stop.is_set() and (number := eraser.expire(before, BATCH)):
            done += number
        _log("results_expired", done)

    def score_again(self) -> int:
        """Score the waiting items that another package scored, one by one while the engine has nothing else; return how many.

        It ends when a sweep is due, and goes on after it.
        """
        done, until = 0, time.monotonic() + SWEEP_SECONDS
        for name, served in self._site.lineup.current.items():
            sha256, last = served.predictor.sha256, 0
            while rows := self._site.loop.items.stale(name, sha256, last, BATCH):
                last = rows[-1]["id"]
                for row in rows:
                    if (row["image_sha256"], sha256) in self._failed:  # until the next start: trying again would never end
                        continue
                    if self._site.lineup.current[name] is not served:
                        return done
                    outcome = self._site.engine.run_spare(partial(self._one, row, served), self._stop, until)
                    if outcome is None:
                        return done
                    self._site.telemetry.items_rescored.labels(outcome).inc()
                    done += 1
                    if outcome == "failed":
                        self._failed.add((row["image_sha256"], sha256))
        return done

    def _one(self, row: Row, served: Served) -> str:
        """Score one item again; return what became of it."""
        try:
            png = self._site.loop.kept.read(row["image_sha256"])
            if png is None:
                return "failed"
            facts = Facts.model_validate(row["facts"])
            header = header_of(facts, row["sop_instance_uid"] or None) if row["media_type"] == "application/dicom" else None
            source = {"spacing_mm": facts.pixel_spacing_mm, "media_type": row["media_type"], "sha256": row["image_sha256"]}
            self._site.score_again(restore(png, header=header, **source), served, row["site"], row["patient"])
        except Refusal as refusal:
            if refusal.code in GONE:
                self._site.loop.items.withdraw(row["id"])
                return "withdrawn"
            if refusal.code in {"storage_full", "storage_unavailable"}:
                raise
            return "failed"
        except Exception as error:  # noqa: BLE001  (an item that cannot be scored must not keep the others waiting)
            log_fault(error)
            return "failed"
        return "ok"


def _log(event: str, number: int) -> None:
    if number:
        logger().info(event, extra={"fields": {"number": number}})
