"""What to label next: doubt, balance and diversity over the items of one model package, with the random share between.

Doubt, features and predicted class come from the same package for all items of a list: scores of different packages are never
compared.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from models.selection import REASONS, select
from service.items import ADJUDICATE, OPEN, RANDOM, STATES, WAITING
from service.leases import free_for
from service.store import Store
from service.tables import items, labels, leases, results, skips

WHY: dict[str, str] = REASONS | {
    "random_share": "It was drawn at random among the accepted scans: only such labels say how often the model is right.",
    "second_reading": "Another reader has labelled it; it is read twice.",
    "adjudication": "Two readers differ; a third one decides.",
}
"""Reason code -> what it tells a reader. Codes are stable."""

EVERY = 5
"""Every fifth place of a list is of the random share, while there is any of it."""
POOL = 5000
"""Items that are looked at: the most doubtful."""

_COLUMNS = (
    *(items.c[name] for name in ("id", "origin", "site", "patient", "state")),
    *(results.c[name] for name in ("loss_percentile", "probabilities", "features")),
)


@dataclass(frozen=True)
class Place:
    """A place of a worklist: an item and the keys of :data:`WHY` that say why it is there."""

    item_id: int
    why: tuple[str, ...]


class Worklist:
    """Orders the items of one site.

    Parameters
    ----------
    store : Store
    readers : int
        How many readers label an item.
    """

    def __init__(self, store: Store, readers: int) -> None:
        self._store, self._readers = store, readers

    def choose(self, model_sha256: str, reader: str, budget: int) -> list[Place]:
        """Choose what a reader should label next, the best first.

        What readers differ about comes first. Then, of what the package scored and nobody holds, one place in :data:`EVERY` is of
        the random share in the order of its arrival, the others are chosen by :func:`models.selection.select`, with the site
        and the predicted class as classes. One item a patient; none that this reader has labelled or passed over.
        """
        free = free_for(reader, self._readers, time.time())
        passed = sa.exists().where(skips.c.item_id == items.c.id, skips.c.reader == reader)
        given = sa.exists().where(labels.c.item_id == items.c.id)
        labelled = sa.select(labels.c.item_id).where(labels.c.reader == reader, labels.c.item_id.is_not(None))
        own = labelled.union(sa.select(skips.c.item_id).where(skips.c.reader == reader)).subquery()
        query = (
            sa.select(*_COLUMNS, given.label("given"))
            .join_from(items, results, results.c.id == items.c.result_id)
            .where(items.c.model_sha256 == model_sha256, free, ~passed)
            # Within a package the raw score orders those whose percentile is the same
            .order_by(results.c.loss_percentile.desc(), results.c.loss_score.desc(), items.c.id)
        )
        with self._store.reading() as connection:
            done = connection.execute(sa.select(sa.func.count()).select_from(own)).scalar_one()
            doubtful = list(connection.execute(query.where(items.c.origin != RANDOM).limit(POOL)))
            drawn = list(connection.execute(query.where(items.c.origin == RANDOM).limit(POOL)))
        return order(doubtful, sorted(drawn, key=lambda row: row.id), budget, done)

    def counts(self, model_name: str, model_sha256: str) -> dict[str, int]:
        """Return the numbers of a :class:`service.loop_schemas.Worklist`."""
        scored = (items.c.model_sha256 == model_sha256).label("scored")
        held = sa.exists().where(leases.c.item_id == items.c.id, leases.c.until > time.time()).label("held")
        each = sa.select(items.c.state, scored, held).where(items.c.model_name == model_name).subquery()
        query = sa.select(each, sa.func.count()).group_by(*each.c)
        with self._store.reading() as connection:
            rows = connection.execute(query).all()
        counts = dict.fromkeys((*STATES, "leased", "waiting_for_scores"), 0)
        for state, current, leased, number in rows:
            if state in WAITING and not current:
                counts["waiting_for_scores"] += number
                continue
            counts[state] += number
            counts["leased"] += number if leased and state in WAITING else 0
        return counts


def order(doubtful: list[Any], drawn: list[Any], budget: int, done: int) -> list[Place]:
    """Put a list together.

    Parameters
    ----------
    doubtful, drawn : list of rows
        The most doubtful first; of the random share the oldest first.
    budget : int, >= 1
    done : int
        How many the reader has labelled or passed over: the random share's places are counted on from there, so that a reader
        who takes one item after the other meets it as often as one who takes a list.
    """
    places: list[Place] = []
    patients: set[str] = set()

    def take(rows: list[Any], most: int) -> list[Any]:
        chosen: list[Any] = []
        for row in rows:
            if len(chosen) < most and row.patient not in patients:
                patients.add(row.patient)
                chosen.append(row)
        return chosen

    differing = take([row for row in [*doubtful, *drawn] if row.state == ADJUDICATE], budget)
    places = [Place(row.id, ("adjudication",)) for row in differing]
    left = budget - len(places)
    fixed = sum((done + turn) % EVERY == EVERY - 1 for turn in range(left))
    drawn = [row for row in drawn if row.state == OPEN]
    random = take(drawn, fixed)
    pool = [row for row in doubtful if row.state == OPEN and row.patient not in patients]
    best = _select(pool, left - len(random)) if pool and left > len(random) else []
    patients |= {row.patient for row, _ in best}
    random += take(drawn, left - len(random) - len(best))  # where there is too little doubt, all the rest
    turns = iter(best)
    others = iter([(row, ("random_share",)) for row in random])
    for turn in range(left):
        first, second = (others, turns) if (done + turn) % EVERY == EVERY - 1 else (turns, others)
        entry = next(first, None) or next(second, None)
        if entry is None:
            break
        row, why = entry
        places.append(Place(row.id, (*why, "second_reading") if row.given else why))
    return places


def _select(pool: list[Any], budget: int) -> list[tuple[Any, tuple[str, ...]]]:
    names = [(row.site, max(row.probabilities, key=row.probabilities.__getitem__, default="")) for row in pool]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    patients = {row.patient: number for number, row in enumerate(pool)}
    features: NDArray[np.float32] = np.stack([np.frombuffer(row.features, dtype="<f4") for row in pool])
    choices = select(
        np.array([row.loss_percentile for row in pool]),
        np.array([numbers[name] for name in names], dtype=np.int64),
        features,
        budget,
        np.array([patients[row.patient] for row in pool]),
    )
    return [(pool[choice.index], choice.reasons) for choice in choices]
