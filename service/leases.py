"""Leases: an item is a reader's for a time. Every step is one transaction, so that no two readers can take the same place."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa

from models.errors import Refusal
from service.dialects import insert
from service.items import ADJUDICATE, WAITING
from service.store import Store
from service.tables import items, labels, leases, skips

KEPT_SECONDS = 24 * 3600.0
"""How long a lease that ran out is remembered: its reader's label is taken as long as nobody else took the item."""


@dataclass(frozen=True)
class Held:
    """A lease: of which item, and until when (seconds since 1970)."""

    item_id: int
    lease_id: str
    until: float


def places(readers: int) -> sa.ColumnElement[int]:
    """Return how many readers may hold an item at once: those whose label it still lacks, and one to adjudicate."""
    given = sa.select(sa.func.count(labels.c.reader.distinct())).where(labels.c.item_id == items.c.id).scalar_subquery()
    return sa.case((items.c.state == ADJUDICATE, 1), (given < readers, readers - given), else_=1)


def free_for(reader: str, readers: int, now: float) -> sa.ColumnElement[bool]:
    """Return the condition that an item waits, has a place left, and is not this reader's or labelled by this reader."""
    active = sa.select(leases.c.reader).where(leases.c.item_id == items.c.id, leases.c.until > now)
    taken = sa.select(sa.func.count()).select_from(active.correlate(items).subquery()).scalar_subquery()
    mine = sa.exists().where(leases.c.item_id == items.c.id, leases.c.until > now, leases.c.reader == reader)
    return sa.and_(items.c.state.in_(WAITING), taken < places(readers), ~mine, ~labelled_by(reader))


def labelled_by(reader: str) -> sa.ColumnElement[bool]:
    """Return the condition that a reader labelled an item."""
    return sa.exists().where(labels.c.item_id == items.c.id, labels.c.reader == reader)


class Leases:
    """The leases of one site.

    Parameters
    ----------
    store : Store
    minutes : float
        How long a lease lasts.
    readers : int
        How many readers label an item.
    """

    def __init__(self, store: Store, minutes: float, readers: int) -> None:
        self._store, self._seconds, self._readers = store, 60 * minutes, readers

    def take(self, reader: str, model_sha256: str, numbers: Iterable[int]) -> Held | None:
        """Lease the first of some items that is free; None where none is."""
        with self._store.writing() as connection:
            now = time.time()
            free = sa.and_(free_for(reader, self._readers, now), items.c.model_sha256 == model_sha256)
            for number in numbers:
                if connection.execute(sa.select(items.c.id).where(items.c.id == number, free)).first() is not None:
                    return self._hold(connection, reader, number, now)
        return None

    def take_named(self, reader: str, model_sha256: str, number: int) -> Held:
        """Lease one item; a reader who holds it already goes on with the same lease.

        Raises
        ------
        Refusal
            ``item_taken`` if it is somebody else's, is not to be labelled by this reader, or waits to be scored again.
        """
        with self._store.writing() as connection:
            now = time.time()
            own = sa.select(leases.c.lease_id).where(leases.c.item_id == number, leases.c.reader == reader, leases.c.until > now)
            lease_id = connection.execute(own).scalar_one_or_none()
            if lease_id is not None:
                return self._prolong(connection, lease_id, number, now)
            free = sa.and_(free_for(reader, self._readers, now), items.c.model_sha256 == model_sha256)
            if connection.execute(sa.select(items.c.id).where(items.c.id == number, free)).first() is None:
                raise Refusal("item_taken")
            return self._hold(connection, reader, number, now)

    def _hold(self, connection: sa.Connection, reader: str, number: int, now: float) -> Held:
        room = connection.execute(sa.select(places(self._readers)).where(items.c.id == number)).scalar_one()
        others = sa.select(leases.c.lease_id, leases.c.until).where(leases.c.item_id == number, leases.c.reader != reader)
        held = connection.execute(others.order_by(leases.c.until)).all()
        # A lease that ran out is its reader's still, until somebody needs its place
        for lease_id in [row.lease_id for row in held if row.until <= now][: max(0, len(held) - room + 1)]:
            connection.execute(sa.delete(leases).where(leases.c.lease_id == lease_id))
        lease = Held(number, secrets.token_hex(16), now + self._seconds)
        values = {"lease_id": lease.lease_id, "until": lease.until}
        statement = insert(connection, leases).values(item_id=number, reader=reader, **values)
        connection.execute(statement.on_conflict_do_update(index_elements=["item_id", "reader"], set_=values))
        return lease

    def _prolong(self, connection: sa.Connection, lease_id: str, number: int, now: float) -> Held:
        until = now + self._seconds
        connection.execute(sa.update(leases).where(leases.c.lease_id == lease_id).values(until=until))
        return Held(number, lease_id, until)

    def renew(self, reader: str, lease_id: str) -> Held:
        """Prolong a lease, also one that ran out, if nobody took the item meanwhile.

        Raises
        ------
        Refusal
            ``lease_lost`` if it is not this reader's, or not any more.
        """
        with self._store.writing() as connection:
            return self._prolong(connection, lease_id, _item_of(connection, reader, lease_id), time.time())

    def give_back(self, reader: str, lease_id: str) -> int:
        """End a lease; return the item's number.

        Raises
        ------
        Refusal
            ``lease_lost``, as :meth:`renew`.
        """
        with self._store.writing() as connection:
            number = _item_of(connection, reader, lease_id)
            connection.execute(sa.delete(leases).where(leases.c.lease_id == lease_id))
        return number

    def skip(self, reader: str, lease_id: str, reason: str) -> int:
        """End a lease, and note why its reader will not label the item; return the item's number.

        Raises
        ------
        Refusal
            ``lease_lost``, as :meth:`renew`.
        """
        with self._store.writing() as connection:
            number = _item_of(connection, reader, lease_id)
            connection.execute(sa.delete(leases).where(leases.c.lease_id == lease_id))
            note = {"item_id": number, "reader": reader, "reason": reason, "created_at": datetime.now(UTC)}
            connection.execute(sa.insert(skips).values(**note))
        return number

    def active(self) -> int:
        """Return how many leases there are."""
        with self._store.reading() as connection:
            query = sa.select(sa.func.count()).select_from(leases).where(leases.c.until > time.time())
            return int(connection.execute(query).scalar_one())

    def forget(self) -> None:
        """Remove leases that ran out long ago."""
        with self._store.writing() as connection:
            connection.execute(sa.delete(leases).where(leases.c.until <= time.time() - KEPT_SECONDS))


def _item_of(connection: sa.Connection, reader: str, lease_id: str) -> int:
    own = sa.select(leases.c.item_id).where(leases.c.lease_id == lease_id, leases.c.reader == reader)
    number = connection.execute(own).scalar_one_or_none()
    if number is None:
        raise Refusal("lease_lost")
    return int(number)
