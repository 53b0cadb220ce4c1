"""What came from the archive or from senders, and what became of it: rows that outlive a crash, and that an operator lists."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa

from service.dialects import insert
from service.places import Place
from service.store import Store
from service.tables import pacs_instances, pacs_objects, pacs_positions

WAITING, DONE, SKIPPED, FAILED = STATES = ("waiting", "done", "skipped", "failed")
"""To be analysed and stored; stored in the archive; not to be analysed, with the reason; given up, with the reason."""
RECEIVED = "received:"
"""How the reference of an instance begins that a sender brought: nobody can fetch it, so it is never due, nor replayed."""
OUTSIDE = frozenset(
    {
        *("own_output", "no_pixel_data", "multi_frame", "region_required", "not_tissue"),
        *("modality_not_accepted", "body_part_not_accepted"),
        *("view_not_accepted", "age_not_accepted", "too_small", "not_asked_for", "not_found"),
    }
)
"""Codes of instances that are not for the model, or gone: skipped. Every other is a failure."""


def received_reference(sop_instance_uid: str) -> str:
    """Return the reference of a received instance: a digest, since what a sender calls one may be no UID, and of any length."""
    return RECEIVED + hashlib.sha256(sop_instance_uid.encode()).hexdigest()[:48]


_RECEIVED = pacs_instances.c.reference.startswith(RECEIVED, autoescape=True)


@dataclass(frozen=True)
class Position:
    """Where in the archive's log the watch is, and what stands there."""

    sequence: int
    anchor: str


@dataclass(frozen=True)
class Arrival:
    """An instance to be analysed. ``attempts`` were begun before."""

    id: int
    place: Place
    attempts: int


@dataclass(frozen=True)
class Object:
    """An object of ours that the archive holds."""

    modality: str
    series_instance_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class Failure:
    """An instance that was given up, as an operator sees it: by our own number, without a UID.

    ``received`` is one that a sender brought, and has to send again.
    """

    id: int
    code: str
    attempts: int
    seen_at: datetime
    updated_at: datetime
    received: bool


class Arrivals:
    """The rows of the watch, in the store's database."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def position(self) -> Position | None:
        """Return where the watch is; None before its first time."""
        with self._store.reading() as connection:
            row = connection.execute(sa.select(pacs_positions)).mappings().first()
        return Position(row["sequence"], row["anchor"]) if row else None

    def note(self, places: Iterable[Place], position: Position, *, again: bool = True) -> int:
        """Commit what was seen and how far, in one transaction; return how many instances are to be analysed for it.

        Parameters
        ----------
        places : iterable of Place
        position : Position
        again : bool
            Whether an instance that was settled is to be looked at again, since the archive says that it has come anew: it
            may have other pixels, or the archive may have lost our results.
        """
        now = datetime.now(UTC)
        number = 0
        with self._store.writing() as connection:
            for place in places:
                start = {"state": WAITING, "code": "", "attempts": 0, "due_at": 0.0, "updated_at": now}
                uids = {"study_uid": place.study_uid, "series_uid": place.series_uid, "sop_instance_uid": place.sop_instance_uid}
                new = insert(connection, pacs_instances).values(reference=place.reference, seen_at=now, **start, **uids)
                if again:
                    settled = pacs_instances.c.state != WAITING
                    new = new.on_conflict_do_update(index_elements=["reference"], set_=start, where=settled)
                else:
                    new = new.on_conflict_do_nothing()
                number += connection.execute(new).rowcount
            values = {"sequence": position.sequence, "anchor": position.anchor, "updated_at": now}
            here = insert(connection, pacs_positions).values(id=1, **values)
            connection.execute(here.on_conflict_do_update(index_elements=["id"], set_=values))
        return number

    def unknown(self, places: Iterable[Place]) -> list[Place]:
        """Return those of which there is no row yet."""
        wanted = list(places)
        known: set[str] = set()
        with self._store.reading() as connection:
            for first in range(0, len(wanted), 500):
                part = [place.reference for place in wanted[first : first + 500]]
                column = pacs_instances.c.reference
                known |= set(connection.execute(sa.select(column).where(column.in_(part))).scalars())
        return [place for place in wanted if place.reference not in known]

    def due(self, limit: int) -> list[Arrival]:
        """Return instances whose time has come, those that wait longest first."""
        table = pacs_instances.c
        query = sa.select(pacs_instances).where(table.state == WAITING, table.due_at <= time.time(), ~_RECEIVED)
        with self._store.reading() as connection:
            rows = connection.execute(query.order_by(table.due_at, table.id).limit(limit)).all()
        return [
            Arrival(row.id, Place(row.reference, row.study_uid, row.series_uid, row.sop_instance_uid), row.attempts)
            for row in rows
        ]

    def receive(self, sop_instance_uid: str) -> int:
        """Note that an instance was received, before anything is done with it; return its row's number."""
        now = datetime.now(UTC)
        reference = received_reference(sop_instance_uid)
        start = {"state": WAITING, "code": "", "due_at": 0.0, "updated_at": now}
        place = {"study_uid": "", "series_uid": "", "sop_instance_uid": ""}
        again = start | {"attempts": sa.case((pacs_instances.c.state == DONE, 1), else_=pacs_instances.c.attempts + 1)}
        with self._store.writing() as connection:
            new = insert(connection, pacs_instances).values(reference=reference, seen_at=now, attempts=1, **start, **place)
            connection.execute(new.on_conflict_do_update(index_elements=["reference"], set_=again))
            row = connection.execute(sa.select(pacs_instances.c.id).where(pacs_instances.c.reference == reference))
            return int(row.scalar_one())

    def abandon(self) -> int:
        """Give up what was received and not answered, since the process that did it is gone; return how many."""
        values = {"state": FAILED, "code": "internal_error", "updated_at": datetime.now(UTC)}
        left = sa.update(pacs_instances).where(pacs_instances.c.state == WAITING, _RECEIVED)
        with self._store.writing() as connection:
            return connection.execute(left.values(values)).rowcount

    def begin(self, number: int) -> None:
        """Count an attempt before it is made: an image that kills the process must not do so for ever."""
        self._change(number, attempts=pacs_instances.c.attempts + 1)

    def release(self, number: int) -> None:
        """Take an attempt back that failed for a reason which is not the instance's; those not tried since go first."""
        self._change(number, attempts=pacs_instances.c.attempts - 1, due_at=time.time())

    def postpone(self, number: int, code: str, seconds: float) -> None:
        """Try an instance again later."""
        self._change(number, code=code, due_at=time.time() + seconds)

    def settle(
        self,
        number: int,
        state: str,
        code: str = "",
        result_id: str | None = None,
        place: Place | None = None,
        objects: Iterable[Object] = (),
    ) -> None:
        """Commit what became of an instance, and the objects that the archive now holds, in one transaction."""
        now = datetime.now(UTC)
        uids = {}
        if place is not None:
            uids = {"study_uid": place.study_uid, "series_uid": place.series_uid, "sop_instance_uid": place.sop_instance_uid}
        with self._store.writing() as connection:
            values = {"state": state, "code": code, "updated_at": now, "result_id": result_id} | uids
            connection.execute(sa.update(pacs_instances).where(pacs_instances.c.id == number).values(values))
            for item in objects:
                row = vars(item) | {"instance_id": number, "result_id": result_id, "stored_at": now}
                connection.execute(insert(connection, pacs_objects).values(row).on_conflict_do_nothing())

    def latest(self, number: int, modality: str, besides: str) -> Object | None:
        """Return the object of a modality that was stored last for an instance, other than the one of that UID."""
        table = pacs_objects.c
        query = sa.select(pacs_objects).where(table.instance_id == number, table.modality == modality)
        query = query.where(table.sop_instance_uid != besides).order_by(table.id.desc()).limit(1)
        with self._store.reading() as connection:
            row = connection.execute(query).first()
        return Object(row.modality, row.series_instance_uid, row.sop_instance_uid) if row else None

    def failures(self) -> list[Failure]:
        """Return every instance that was given up, the oldest first."""
        table = pacs_instances.c
        query = sa.select(table.id, table.code, table.attempts, table.seen_at, table.updated_at, _RECEIVED)
        with self._store.reading() as connection:
            return [Failure(*row) for row in connection.execute(query.where(table.state == FAILED).order_by(table.id))]

    def replay(self, numbers: Iterable[int] | None = None) -> int:
        """Let failed instances be tried again, all or those of these numbers; return how many."""
        chosen = (pacs_instances.c.state == FAILED) & ~_RECEIVED
        if numbers is not None:
            chosen &= pacs_instances.c.id.in_(list(numbers))
        values = {"state": WAITING, "attempts": 0, "due_at": 0.0, "updated_at": datetime.now(UTC)}
        with self._store.writing() as connection:
            return connection.execute(sa.update(pacs_instances).where(chosen).values(values)).rowcount

    def counts(self) -> dict[str, int]:
        """Return how many instances are in each state."""
        query = sa.select(pacs_instances.c.state, sa.func.count()).group_by(pacs_instances.c.state)
        with self._store.reading() as connection:
            return dict.fromkeys(STATES, 0) | {row[0]: row[1] for row in connection.execute(query)}

    def looked(self) -> None:
        """Note that the archive answered, with news or without."""
        with self._store.writing() as connection:
            connection.execute(sa.update(pacs_positions).values(updated_at=datetime.now(UTC)))

    def last_look(self) -> datetime | None:
        """Return when the archive last answered; None before the watch's first time."""
        with self._store.reading() as connection:
            at: datetime | None = connection.execute(sa.select(pacs_positions.c.updated_at)).scalar()
        return at.replace(tzinfo=UTC) if at else None

    def longest_wait(self) -> float:
        """Return for how many seconds the instance has waited that waits longest; 0 where none does."""
        # Not seen_at: an instance that came anew was seen long ago
        query = sa.select(sa.func.min(pacs_instances.c.updated_at)).where(pacs_instances.c.state == WAITING)
        with self._store.reading() as connection:
            first: datetime | None = connection.execute(query).scalar()
        return max(0.0, (datetime.now(UTC) - first.replace(tzinfo=UTC)).total_seconds()) if first else 0.0

    def _change(self, number: int, **values: object) -> None:
        with self._store.writing() as connection:
            connection.execute(sa.update(pacs_instances).where(pacs_instances.c.id == number).values(values))
