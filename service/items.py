"""Items of the worklist in the store's database: made with the commit of a result, offered, withdrawn, expired."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa

from models.triage import Judgement
from service.dialects import insert
from service.kept import Kept
from service.store import Store, Stored
from service.tables import items, kept_images, labels, leases, models, results, skips, verdicts

OPEN, ADJUDICATE, DONE, EXPIRED, WITHDRAWN = STATES = ("open", "adjudicate", "done", "expired", "withdrawn")
"""``withdrawn``: the model's current package does not take the image."""
WAITING = (OPEN, ADJUDICATE)
"""States of what somebody should label."""
DOUBT, RANDOM = "doubt", "random"

_LIVE = kept_images.c.removed_at.is_(None)
_BYTES = sa.select(sa.func.coalesce(sa.func.sum(kept_images.c.bytes), 0)).where(_LIVE)
_KEPT = sa.select(kept_images.c.image_sha256).where(kept_images.c.image_sha256 == sa.bindparam("image"), _LIVE)
_ITEM = sa.select(items.c.state, items.c.model_sha256).where(
    items.c.image_sha256 == sa.bindparam("image"), items.c.model_name == sa.bindparam("model")
)
_RESULT = {f"scored_{column.name}": column for column in results.c if column.name != "segmentation"}  # which may be large
_OTHERS = verdicts.alias()
_LATEST = sa.select(sa.func.max(_OTHERS.c.id)).where(_OTHERS.c.result_id == items.c.result_id).scalar_subquery()

Row = dict[str, Any]


@dataclass(frozen=True)
class Draft:
    """What an item will be made of, once the verdict is certain.

    Attributes
    ----------
    image_sha256, model_name : str
    rows, columns : int, pixels
    size : int or None, bytes
        Of the PNG that was written for it; None where the pixels were kept before.
    facts : dict
        As :class:`service.loop_schemas.Facts`.
    patient : str
        Pseudonym.
    site : str
        A configured name, or empty.
    always : bool
        Whether there is an item even where the verdict is ``accept``: of the random share, and of what is scored again.
    """

    image_sha256: str
    model_name: str
    rows: int
    columns: int
    size: int | None
    facts: Row
    patient: str
    site: str
    always: bool


@dataclass(frozen=True)
class Known:
    """What there is of an image: whether its pixels are kept, and the state and the package of its item, where there is one."""

    kept: bool
    state: str | None
    model_sha256: str | None


@dataclass(frozen=True)
class Shown:
    """An item as it is answered.

    Attributes
    ----------
    row : dict
        Of ``items``, with what is kept of the image and until when the item is leased.
    stored : Stored
        Its result, without what is stored of a segmentation.
    judgement : Judgement
        The latest verdict of that.
    """

    row: Row
    stored: Stored
    judgement: Judgement


Outcome = Literal["", "lost", "full"]
"""What became of a draft: an item, or none because the pixels are not there, or because there is no room for them."""


class Items:
    """The items and what is kept for them.

    Parameters
    ----------
    store : Store
    kept : Kept
    days : float
        How long pixels are kept.
    most_bytes : int
        How many bytes of them.
    """

    def __init__(self, store: Store, kept: Kept, days: float, most_bytes: int) -> None:
        self._store, self._kept = store, kept
        self._days, self._most_bytes = timedelta(days=days), most_bytes

    def known(self, image_sha256: str, model_name: str) -> Known:
        """Return what there is of an image."""
        with self._store.reading() as connection:
            kept = connection.execute(_KEPT, {"image": image_sha256}).first() is not None
            item = connection.execute(_ITEM, {"image": image_sha256, "model": model_name}).first()
        return Known(kept, *(item or (None, None)))

    def room(self) -> bool:
        """Tell whether there is room for more pixels."""
        with self._store.reading() as connection:
            return int(connection.execute(_BYTES).scalar_one()) < self._most_bytes

    def add(self, connection: sa.Connection, draft: Draft, result: Row, verdict: str) -> Outcome:
        """Make an item of a draft, or give the one that there is its new result; in the transaction that commits the result."""
        if verdict == "accept" and not draft.always:
            return ""
        now = datetime.now(UTC)
        if connection.execute(_KEPT, {"image": draft.image_sha256}).first() is None:
            # Files are removed within transactions only, so what is there now stays
            if draft.size is None or not self._kept.holds(draft.image_sha256):
                return "lost"
            if connection.execute(_BYTES).scalar_one() + draft.size > self._most_bytes:
                return "full"
            values = {"rows": draft.rows, "columns": draft.columns, "bytes": draft.size, "facts": draft.facts}
            values |= {"kept_at": now, "expires_at": now + self._days, "removed_at": None}
            statement = insert(connection, kept_images).values(image_sha256=draft.image_sha256, **values)
            connection.execute(statement.on_conflict_do_update(index_elements=["image_sha256"], set_=values))
        scored = {"result_id": result["id"], "model_sha256": result["model_sha256"], "updated_at": now}
        made = insert(connection, items).values(
            image_sha256=draft.image_sha256,
            model_name=draft.model_name,
            origin=RANDOM if verdict == "accept" else DOUBT,
            site=draft.site,
            patient=draft.patient,
            state=OPEN,
            created_at=now,
            **scored,
        )
        again = sa.case((items.c.state.in_((EXPIRED, WITHDRAWN)), OPEN), else_=items.c.state)
        connection.execute(
            made.on_conflict_do_update(
                index_elements=["image_sha256", "model_name"], set_=scored | {"state": again}, where=items.c.state != DONE
            )
        )
        return ""

    def discard(self, image_sha256: str) -> None:
        """Remove a PNG that was written and that nothing names."""
        with self._store.writing() as connection:
            if connection.execute(_KEPT, {"image": image_sha256}).first() is None:
                self._kept.remove(image_sha256)

    def withdraw(self, item_id: int) -> None:
        """Take an item from the worklist, since the current package refuses the image."""
        with self._store.writing() as connection:
            _close(connection, items.c.id == item_id, WITHDRAWN)

    def expire(self, now: datetime, most: int) -> int:
        """Remove the pixels of up to ``most`` images whose time is over, and close their items; return how many there were."""
        due = sa.select(kept_images.c.image_sha256).where(_LIVE, kept_images.c.expires_at <= now).limit(most)
        with self._store.writing() as connection:
            return self._remove(connection, connection.execute(due).scalars().all(), now)

    def reconcile(self, before: float) -> int:
        """Make the database and the folder say the same after a crash or a hand that removed files.

        Files older than ``before`` (seconds since 1970) that nothing names are removed, younger ones may be about to be
        committed; images whose file is gone count as expired. Returns how many of both there were.
        """
        found = 0
        for image_sha256 in self._kept.older_than(before):
            with self._store.reading() as connection:
                named = connection.execute(_KEPT, {"image": image_sha256}).first() is not None
            if not named:
                self.discard(image_sha256)
                found += 1
        with self._store.reading() as connection:
            live = connection.execute(sa.select(kept_images.c.image_sha256).where(_LIVE)).scalars().all()
        for image_sha256 in live:
            if not self._kept.holds(image_sha256):
                with self._store.writing() as connection:
                    if not self._kept.holds(image_sha256):
                        found += self._remove(connection, [image_sha256], datetime.now(UTC))
        return found

    def _remove(self, connection: sa.Connection, images: Iterable[str], now: datetime) -> int:
        images = list(images)
        if images:
            gone = kept_images.c.image_sha256.in_(images)
            connection.execute(sa.update(kept_images).where(gone).values(removed_at=now))
            _close(connection, items.c.image_sha256.in_(images), EXPIRED)
            for image_sha256 in images:
                self._kept.remove(image_sha256)
        return len(images)

    def counts(self) -> dict[str, int]:
        """Return how many items there are in each state."""
        query = sa.select(items.c.state, sa.func.count()).group_by(items.c.state)
        with self._store.reading() as connection:
            return dict.fromkeys(STATES, 0) | {row[0]: row[1] for row in connection.execute(query)}

    def kept_bytes(self) -> int:
        """Return how many bytes of pixels are kept."""
        with self._store.reading() as connection:
            return int(connection.execute(_BYTES).scalar_one())

    def stale(self, model_name: str, model_sha256: str, after: int, most: int) -> list[Row]:
        """Return items that another package scored, by their number, from the one after ``after`` on."""
        query = (
            sa.select(items.c.id, items.c.image_sha256, items.c.site, items.c.patient, kept_images.c.facts)
            .add_columns(results.c.media_type, verdicts.c.sop_instance_uid)
            .join_from(items, kept_images, kept_images.c.image_sha256 == items.c.image_sha256)
            .join(results, results.c.id == items.c.result_id)
            .join(verdicts, verdicts.c.id == _LATEST)
            .where(items.c.model_name == model_name, items.c.model_sha256 != model_sha256)
            .where(items.c.state.in_(WAITING), items.c.id > after)
            .order_by(items.c.id)
            .limit(most)
        )
        with self._store.reading() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def shown(self, numbers: Iterable[int]) -> dict[int, Shown]:
        """Return some items by their number, in two queries however many there are: the items, and the packages' cards."""
        held = sa.select(sa.func.max(leases.c.until)).where(leases.c.item_id == items.c.id).scalar_subquery()
        query = (
            sa.select(items, held.label("until"), kept_images.c.rows, kept_images.c.columns, kept_images.c.facts)
            .add_columns(verdicts.c.verdict, verdicts.c.reasons, *(column.label(name) for name, column in _RESULT.items()))
            .join_from(items, kept_images, kept_images.c.image_sha256 == items.c.image_sha256)
            .join(results, results.c.id == items.c.result_id)
            .join(verdicts, verdicts.c.id == _LATEST)
            .where(items.c.id.in_(list(numbers)))
        )
        with self._store.reading() as connection:
            rows = [dict(row) for row in connection.execute(query).mappings()]
            cards = sa.select(models).where(models.c.sha256.in_({row["model_sha256"] for row in rows}))
            packages = {row["sha256"]: dict(row) for row in connection.execute(cards).mappings()}
        return {row["id"]: _shown(row, packages[row["model_sha256"]]) for row in rows}

    def origin(self, result_id: str) -> str | None:
        """Return why there is an item of a result; None where there is none."""
        query = sa.select(items.c.origin).where(items.c.result_id == result_id)
        with self._store.reading() as connection:
            return connection.execute(query).scalar()

    def progress(self, item_id: int, reader: str) -> tuple[int, bool, dict[str, int]]:
        """Return how many readers labelled an item, whether this one did, and how many passed it over for each reason."""
        readers = sa.select(labels.c.reader).where(labels.c.item_id == item_id).distinct()
        passed = sa.select(skips.c.reason, sa.func.count(skips.c.reader.distinct())).where(skips.c.item_id == item_id)
        with self._store.reading() as connection:
            given = set(connection.execute(readers).scalars())
            skipped = {row[0]: row[1] for row in connection.execute(passed.group_by(skips.c.reason))}
        return len(given), reader in given, skipped


def _shown(row: Row, package: Row) -> Shown:
    result = {column.name: row.pop(name) for name, column in _RESULT.items()}
    judgement = Judgement(row.pop("verdict"), tuple(row.pop("reasons")))
    return Shown(row, Stored(result, package), judgement)


def _close(connection: sa.Connection, which: sa.ColumnElement[bool], state: str) -> None:
    """Close items that wait for somebody, and end their leases."""
    closed = sa.select(items.c.id).where(which, items.c.state.in_(WAITING))
    numbers = connection.execute(closed).scalars().all()
    connection.execute(sa.delete(leases).where(leases.c.item_id.in_(numbers)))
    connection.execute(sa.update(items).where(items.c.id.in_(numbers)).values(state=state, updated_at=datetime.now(UTC)))
