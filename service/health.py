"""What the scans of each site and station look like, package by package, and whether they drift: counted from the store.

The rows hold sums and counts alone, no image and nothing of a patient. A scan is taken in once, in the transaction that says how
far was counted, so that a crash loses and repeats nothing; scans that ``overread watch`` analysed count like those of the server.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

import numpy as np
import sqlalchemy as sa

from models.card import Calibration
from models.command import command_parser
from models.drift import ALARM, REFERENCE, Drift, DriftTest, uniform
from models.errors import Refusal
from service.audit import note, operator
from service.items import RANDOM
from service.settings import read_settings
from service.store import Store
from service.tables import items, labels, models, results, site_health, station_health, verdicts
from service.telemetry import SITE_PERCENTILES

VERDICTS = ("accept", "review", "refuse")
BATCH = 500
DEVIATE = 1.959964  # of a 95% interval

Row = dict[str, Any]


@dataclass(frozen=True)
class Confirmed:
    """What labels of accepted scans drawn at random say: ``wrong`` of ``labelled``, and the 95% interval of that share."""

    labelled: int
    wrong: int
    low: float
    high: float


@dataclass(frozen=True)
class SiteHealth:
    """One site, or one station of it, and a package.

    Attributes
    ----------
    site : str
        A configured name, or empty: scans without one.
    station : str
        A configured name, or empty: all scans of the site.
    model, version, model_sha256 : str
    loss, domain : list of int
        Cumulative counts of the percentiles at :data:`SITE_PERCENTILES`, and of all.
    loss_sum, domain_sum : float
        Sums of the percentiles.
    verdicts : dict of str to int
    drift : Drift
    began_at : datetime
        When the drift test began.
    """

    site: str
    station: str
    model: str
    version: str
    model_sha256: str
    loss: list[int]
    domain: list[int]
    loss_sum: float
    domain_sum: float
    verdicts: dict[str, int]
    drift: Drift
    began_at: datetime


class Health:
    """The rows of all sites, in the store's database. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def advance(self) -> int:
        """Take in the next scans, :data:`BATCH` at most, in the order of their commits; return how many.

        A scan is the first verdict on a result: the same image again, or under other limits, is no new one.
        """
        with self._store.reading() as connection:  # first without the writer's turn: mostly there is nothing
            if not self._next(connection):
                return 0
        with self._store.writing() as connection:
            scans = self._next(connection)
            groups = defaultdict(list)
            for scan in scans:
                groups[scan.site, scan.model_sha256, ""].append(scan)
                if scan.station:
                    groups[scan.site, scan.model_sha256, scan.station].append(scan)
            for key, members in groups.items():
                self._take(connection, *key, members)
        return len(scans)

    @staticmethod
    def _next(connection: sa.Connection) -> list[Any]:
        cursor = sa.select(sa.func.coalesce(sa.func.max(site_health.c.last_verdict_id), 0)).scalar_subquery()
        before = verdicts.alias()
        again = sa.exists().where(before.c.result_id == verdicts.c.result_id, before.c.id < verdicts.c.id)
        scores = (results.c.loss_score, results.c.domain_distance, results.c.loss_percentile, results.c.domain_percentile)
        query = (
            sa.select(verdicts.c.id, verdicts.c.site, verdicts.c.station, verdicts.c.verdict, verdicts.c.result_id)
            .add_columns(results.c.model_sha256, *scores)
            .join_from(verdicts, results, results.c.id == verdicts.c.result_id)
            .where(verdicts.c.id > cursor, ~verdicts.c.scored_again, ~again)
            .order_by(verdicts.c.id)
            .limit(BATCH)
        )
        return list(connection.execute(query))

    @staticmethod
    def _take(connection: sa.Connection, site: str, sha256: str, station: str, scans: list[Any]) -> None:
        table, same = _same(site, sha256, station)
        card = connection.execute(sa.select(models.c.card).where(models.c.sha256 == sha256)).scalar_one()
        calibration = Calibration.model_validate(card["calibration"])
        found = connection.execute(sa.select(table).where(*same)).mappings().first()
        row: Row = dict(found) if found else _first(site, sha256, station, calibration)
        state, test = _drift(row), DriftTest(calibration)
        counts = {name: list(row[name]) for name in ("loss_counts", "domain_counts")}
        given = dict(row["verdicts"])
        for scan in scans:
            for name, value in (("loss", scan.loss_percentile), ("domain", scan.domain_percentile)):
                counts[f"{name}_counts"][bisect_left(SITE_PERCENTILES, value)] += 1
                row[f"{name}_sum"] += value
            given[scan.verdict] += 1
            test.see(state, (scan.loss_score, scan.domain_distance), uniform(scan.result_id))
        row |= counts | _drift_columns(state) | {"verdicts": given}
        row |= {} if station else {"last_verdict_id": scans[-1].id}
        connection.execute(sa.update(table).where(*same).values(row) if found else sa.insert(table).values(row))

    def rows(self, packages: list[str] | None = None) -> list[SiteHealth]:
        """Return the rows of these packages (SHA-256), or of all, by site, station and model."""
        rows = []
        with self._store.reading() as connection:
            for table in (site_health, station_health):
                query = sa.select(table, models.c.name, models.c.version).join(models, models.c.sha256 == table.c.model_sha256)
                if packages is not None:
                    query = query.where(table.c.model_sha256.in_(packages))
                rows += [_row(found) for found in connection.execute(query).mappings()]
        return sorted(rows, key=lambda row: (row.site, row.station, row.model, row.version))

    def confirmed(self, packages: list[str]) -> dict[tuple[str, str], Confirmed]:
        """Return what labels say of accepted scans drawn at random, by site and package; the last label of an image counts."""
        later = labels.alias()
        last = (
            sa.select(sa.func.max(labels.c.id).label("id"))
            .join(items, items.c.id == labels.c.item_id)
            .where(
                items.c.origin == RANDOM,
                labels.c.model_sha256.in_(packages),
                ~sa.exists().where(later.c.replaces == labels.c.label_id),
            )
            .group_by(labels.c.image_sha256, labels.c.model_sha256)
            .subquery()
        )
        right = sa.func.sum(sa.cast(labels.c.model_was_right, sa.Integer))
        query = (
            sa.select(items.c.site, labels.c.model_sha256, sa.func.count(), right)
            .join_from(labels, last, last.c.id == labels.c.id)
            .join(items, items.c.id == labels.c.item_id)
            .group_by(items.c.site, labels.c.model_sha256)
        )
        with self._store.reading() as connection:
            found = list(connection.execute(query))
        if not found:
            return {}
        from models.estimates import wilson  # it brings scipy's statistics, which a start need not wait for

        confirmed = {}
        for site, sha256, labelled, right in found:
            low, high = wilson(1 - right / labelled, labelled, DEVIATE)
            confirmed[site, sha256] = Confirmed(labelled, labelled - right, low, high)
        return confirmed

    def restart(self, site: str, model: str, station: str | None = None) -> int:
        """Begin a drift test anew, with a new reference; return how many tests it was.

        Of a model at a site and at all its stations, or, where it is named, at that station alone.
        """
        begun = []
        with self._store.writing() as connection:
            for table in (site_health, station_health) if station is None else (station_health,):
                query = sa.select(table, models.c.card).join(models, models.c.sha256 == table.c.model_sha256)
                query = query.where(table.c.site == site, models.c.name == model)
                if station is not None:
                    query = query.where(table.c.station == station)
                for found in connection.execute(query).mappings().all():
                    state = Drift.start(Calibration.model_validate(found["card"]["calibration"]))
                    _, same = _same(site, found["model_sha256"], found.get("station", ""))
                    values = _drift_columns(state) | {"drift_began_at": datetime.now(UTC)}
                    connection.execute(sa.update(table).where(*same).values(values))
                    begun.append(found["model_sha256"])
            note(connection, operator(), "drift_restarted", sorted(set(begun)))
        return len(begun)


def _same(site: str, sha256: str, station: str) -> tuple[sa.Table, list[sa.ColumnElement[bool]]]:
    """Return the table of a site or, where there is one, of a station, and what chooses its row."""
    table = station_health if station else site_health
    key = {"site": site, "model_sha256": sha256} | ({"station": station} if station else {})
    return table, [table.c[name] == value for name, value in key.items()]


def _first(site: str, sha256: str, station: str, calibration: Calibration) -> Row:
    none = [0] * (len(SITE_PERCENTILES) + 1)
    row = {"site": site, "model_sha256": sha256, "loss_counts": none, "domain_counts": none, "loss_sum": 0.0, "domain_sum": 0.0}
    row |= {"verdicts": dict.fromkeys(VERDICTS, 0), "drift_began_at": datetime.now(UTC)}
    row |= {"station": station} if station else {}
    return row | _drift_columns(Drift.start(calibration))


def _drift_columns(state: Drift) -> Row:
    loss, domain = (counts.astype("<i4").tobytes() for counts in state.counts)
    columns = {"drift_seen": state.seen, "drift_loss_counts": loss, "drift_domain_counts": domain}
    return columns | {"drift_wealth": state.wealth.tolist(), "drift_alarm_at": state.alarm_at}


def _drift(row: Any) -> Drift:
    loss, domain = (np.frombuffer(row[f"drift_{name}_counts"], "<i4").astype(np.int64) for name in ("loss", "domain"))
    return Drift(row["drift_seen"], (loss, domain), np.array(row["drift_wealth"]), row["drift_alarm_at"])


def _row(found: Any) -> SiteHealth:
    return SiteHealth(
        site=found["site"],
        station=found.get("station", ""),
        model=found["name"],
        version=found["version"],
        model_sha256=found["model_sha256"],
        loss=list(accumulate(found["loss_counts"])),
        domain=list(accumulate(found["domain_counts"])),
        loss_sum=found["loss_sum"],
        domain_sum=found["domain_sum"],
        verdicts=found["verdicts"],
        drift=_drift(found),
        began_at=found["drift_began_at"],
    )


def main(argv: list[str]) -> int:
    """Run ``overread drift``; the exit code is 1 if there is an alarm."""
    parser = command_parser(
        "drift",
        "List, for each site, station and package, whether its scans have drifted from its own earlier ones; or "
        "begin anew, once a change is known and accepted. docs/monitoring.md says what to do before that.",
        "overread drift --restart east --model cxr-pneumonia",
    )
    parser.add_argument("--restart", metavar="SITE", help="begin anew at this site and its stations; '' for scans without a site")
    parser.add_argument("--station", help="at this station of the site alone")
    parser.add_argument("--model", help="of this model; needed with --restart")
    options = parser.parse_args(argv)
    if (options.restart is None) != (options.model is None):
        parser.error("--restart and --model go together")
    if options.station is not None and options.restart is None:
        parser.error("--station goes with --restart")
    store = Store(read_settings().store)
    try:
        health = Health(store)
        if options.restart is not None:
            if not health.restart(options.restart, options.model, options.station):
                raise Refusal("not_found", "No scan of that site or station and model was seen.")
            print(f"the next {REFERENCE} scans are the new reference")
            return 0
        rows = health.rows()
        for row in rows:
            state = row.drift
            told = f"ALARM at scan {state.alarm_at}" if state.alarm_at else "no alarm" if state.ready else "reference under way"
            site = (row.site or "(no site)") + (f" {row.station}" if row.station else "")
            seen = f"{state.seen} scans since {row.began_at:%Y-%m-%d}"
            print(f"{site}\t{row.model} {row.version}\t{seen}\t{state.statistic:.3g} of {ALARM:.0f}\t{told}")
        return int(any(row.drift.alarm_at for row in rows))
    finally:
        store.close()
