"""Labels in the store's database: append-only; what they decide of an item is written in the same transaction."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa

from models.card import ModelCard
from models.errors import Refusal
from service.answers import card_of
from service.audit import COMMAND, Who, note
from service.items import ADJUDICATE, DONE, WAITING
from service.label_documents import Document, checked_annotation, complete_classes, kind_of, likeness, shown
from service.label_rules import ADJUDICATOR, READER, Decision, Row, decide, in_force
from service.label_schemas import LabelAnswer, LabelIn, LabelRecord, LikenessAnswer, Source
from service.store import Store, Stored, result_id
from service.tables import items, labels, leases, models, results

Lease = Literal["held", "expired", "none"]
ELSEWHERE = frozenset({"import", "label-studio"})
_HIDDEN = {"lease_id", "seconds", "source"}
"""Fields of a request that two sendings of one label may differ in."""


class Labels:
    """The labels of one site.

    Parameters
    ----------
    store : Store
    readers : int
        How many readers label an item.
    """

    def __init__(self, store: Store, readers: int) -> None:
        self._store, self._readers = store, readers

    def add(
        self,
        given: LabelIn,
        reader: str,
        key: str | None = None,
        source: Source | None = None,
        *,
        corrects: bool = False,
        by: Who | None = None,
    ) -> LabelAnswer:
        """Store a label, and what follows for its item, in one transaction.

        Parameters
        ----------
        given : LabelIn
        reader : str
            Who says so.
        key : str or None
            The caller's own name for this label: given again with the same label, nothing is added. Without one, the label
            itself is the key.
        source : str, optional
            Where it comes from, if not from where ``given`` says. What was read elsewhere needs no lease, and meets none.
        corrects : bool
            Whether it replaces whatever stands of this reader. Without a key, nothing is added where that says the same.
        by : Who, optional
            Who stores it, for the audit, if that is not a command in the reader's name.

        Raises
        ------
        Refusal
            ``not_found``, ``label_invalid``, ``stale_result``, ``label_conflict``, ``item_taken``, ``lease_lost``.
        """
        stored, document, right = self.checked(given)
        row = {
            "result_id": stored.result["id"],
            "image_sha256": given.image_sha256,
            "model_sha256": given.model_sha256,
            "reader": reader,
            "kind": kind_of(card_of(stored)),
            "document": document,
            "model_was_right": right,
            "source": source or given.source,
            "seconds": given.seconds,
        }
        with self._store.writing() as connection:
            item = _item(connection, given, stored)
            standing = in_force(_rows(connection, item, stored))
            own = next((each for each in standing if each["reader"] == reader), None)
            if corrects and key is None and own and own["document"] == document:
                return self._again(connection, own, {})
            row["label_id"] = _label_id(given, reader, key, own["label_id"] if own and corrects else "")
            known = _select(connection, labels.c.label_id == row["label_id"])
            if known:
                if key is None and own and own["label_id"] != known[0]["label_id"]:  # it was replaced since
                    raise Refusal("label_conflict", _CONFLICT[False])
                return self._again(connection, known[0], row | ({} if corrects else {"replaces": given.replaces}))
            if item is not None and item["model_sha256"] != given.model_sha256 and not given.shown_earlier:
                raise Refusal("stale_result")
            replaces = own["label_id"] if own and corrects else given.replaces
            if replaces != (own["label_id"] if own else None):
                raise Refusal("label_conflict", _CONFLICT[own is None])
            lease: Lease | None = None
            if item is not None and row["source"] not in ELSEWHERE:
                lease = _lease(connection, item, standing, given.lease_id, reader, self._readers)
            row |= {"item_id": item["id"] if item else None, "replaces": replaces, "created_at": datetime.now(UTC)}
            row["standing"] = own["standing"] if own else ADJUDICATOR if item and item["state"] == ADJUDICATE else READER
            connection.execute(sa.insert(labels).values(**row))
            note(connection, by or Who(reader, COMMAND), "label_added", [given.image_sha256])
            decision = self._decision([*(each for each in standing if each is not own), row], stored)
            state = None if item is None else _settle(connection, item, decision, reader)
        return _answer(row, state, lease, decision)

    def checked(self, given: LabelIn) -> tuple[Stored, Document, bool]:
        """Return the result that the reader was shown, the label as it is stored, and whether the model was right.

        Raises
        ------
        Refusal
            ``not_found`` or ``label_invalid``.
        """
        stored = self._store.find(given.result_id or self._result_of(given))
        if stored is None or (latest := self._store.verdict(stored.result["id"])) is None:
            raise Refusal("not_found", "There is no such result: name the image and the model that were shown.")
        row, card = stored.result, card_of(stored)
        if (row["image_sha256"], row["model_sha256"]) != (given.image_sha256, given.model_sha256):
            raise Refusal("label_invalid", "The result is of another image or of another model.")
        verdict = latest[1].verdict
        if isinstance(card, ModelCard):
            if given.annotation is not None:
                raise Refusal("label_invalid", "This model's images are labelled by classes.")
            if given.classes is None:
                return stored, shown(stored, verdict), True
            document = complete_classes(given.classes, card)
            right = verdict != "refuse" and document == shown(stored, verdict)
            if given.model_was_right and not right:
                raise Refusal("label_invalid", "The model did not say that: it cannot have been right.")
            return stored, document, right
        if given.classes is not None:
            raise Refusal("label_invalid", "This model's images are labelled by an annotation.")
        if given.annotation is None:
            return stored, shown(stored, verdict), True
        return stored, checked_annotation(given.annotation, row["rows"], row["columns"]), given.model_was_right

    def subject(self, image_sha256: str, model_name: str) -> LabelIn | None:
        """Return a label that says nothing yet, of an image's item or else its latest result; None where there is neither.

        It confirms what was shown, until it is told what the image shows.
        """
        of_item = sa.select(items.c.result_id, items.c.model_sha256).where(
            items.c.image_sha256 == image_sha256, items.c.model_name == model_name
        )
        of_result = (
            sa.select(results.c.id, results.c.model_sha256)
            .join(models, models.c.sha256 == results.c.model_sha256)
            .where(results.c.image_sha256 == image_sha256, models.c.name == model_name)
            .order_by(results.c.created_at.desc())
        )
        with self._store.reading() as connection:
            found = connection.execute(of_item).first() or connection.execute(of_result).first()
        if found is None:
            return None
        return LabelIn(result_id=found[0], model_sha256=found[1], image_sha256=image_sha256, model_was_right=True)

    def _result_of(self, given: LabelIn) -> str:
        query = sa.select(items.c.result_id).where(items.c.id == given.item_id, items.c.model_sha256 == given.model_sha256)
        with self._store.reading() as connection:
            current: str | None = connection.execute(query).scalar_one_or_none()
        return current or result_id(given.image_sha256, given.model_sha256)

    def _again(self, connection: sa.Connection, known: Row, row: Row) -> LabelAnswer:
        """Answer a label that is there once more; refuse another one under its key."""
        same = ("result_id", "reader", "document", "replaces")
        if any(name in row and known[name] != row[name] for name in same):
            raise Refusal("label_conflict", "This Idempotency-Key was used for another label.")
        item = connection.execute(sa.select(items).where(items.c.id == known["item_id"])).mappings().first()
        stored = self._store.find(known["result_id"])
        assert stored is not None
        decision = self._decision(in_force(_rows(connection, dict(item) if item else None, stored)), stored)
        return _answer(known, item["state"] if item else None, None, decision)

    def _decision(self, standing: Sequence[Row], stored: Stored) -> Decision:
        rows, columns = stored.result["rows"], stored.result["columns"]
        return decide(standing, self._readers, lambda a, b: likeness(a["kind"], a["document"], b["document"], rows, columns))

    def listed(self, reader: str | None, item_id: int | None = None, result_id: str | None = None) -> list[LabelRecord]:
        """Return the labels of an item, or of a result.

        Parameters
        ----------
        reader : str or None
            Who asks: gets their own labels, and of an item that waits for their adjudication all, without the readers' names.
            None gets all.
        item_id, result_id : int or str, optional
            One of them.

        Raises
        ------
        Refusal
            ``not_found`` if there is no such item or result.
        """
        with self._store.reading() as connection:
            if item_id is not None:
                state = connection.execute(sa.select(items.c.state).where(items.c.id == item_id)).scalar_one_or_none()
                rows = _select(connection, labels.c.item_id == item_id)
            else:
                state = "" if self._store.find(str(result_id)) else None
                rows = _select(connection, labels.c.result_id == result_id)
        if state is None:
            raise Refusal("not_found")
        names = {row["reader"]: row["reader"] for row in rows}
        if reader is not None:
            judges = state == ADJUDICATE and reader not in names
            names = {name: f"reader {number}" for number, name in enumerate(names, start=1)} if judges else {reader: reader}
        standing = {row["label_id"] for row in in_force(rows)}
        return [_record(row, names[row["reader"]], row["label_id"] in standing) for row in rows if row["reader"] in names]


_CONFLICT = {
    True: "It replaces a label that is not in force, or is none of yours for this image.",
    False: "A label of yours stands for this image: say which one this replaces.",
}
"""Whether the reader has no label in force -> what is wrong with ``replaces``."""


def _label_id(given: LabelIn, reader: str, key: str | None, corrected: str) -> str:
    """Return what a label is known by: its reader's key, or what it says and which one it corrects."""
    what = key if key is not None else json.dumps(given.model_dump(mode="json", exclude=_HIDDEN), sort_keys=True) + corrected
    return hashlib.sha256(json.dumps([reader, key is not None, what]).encode()).hexdigest()


def _item(connection: sa.Connection, given: LabelIn, stored: Stored) -> Row | None:
    """Return the item that a label belongs to: the one it names, or that of the image and the model's name, if there is one."""
    same = (items.c.image_sha256 == given.image_sha256, items.c.model_name == stored.model["name"])
    row = connection.execute(sa.select(items).where(*same)).mappings().first()
    if given.item_id is not None and (row is None or row["id"] != given.item_id):
        raise Refusal("not_found", "There is no item of that number for this image and model.")
    return dict(row) if row else None


def _select(connection: sa.Connection, *where: sa.ColumnElement[bool]) -> list[Row]:
    return [dict(row) for row in connection.execute(sa.select(labels).where(*where).order_by(labels.c.id)).mappings()]


def _rows(connection: sa.Connection, item: Row | None, stored: Stored) -> list[Row]:
    """Return all labels of an item, or, without one, of an image by any package of the model's name."""
    if item is not None:
        return _select(connection, labels.c.item_id == item["id"])
    of_name = sa.select(models.c.sha256).where(models.c.name == stored.model["name"])
    same = (labels.c.image_sha256 == stored.result["image_sha256"], labels.c.model_sha256.in_(of_name))
    return _select(connection, labels.c.item_id.is_(None), *same)


def _lease(
    connection: sa.Connection, item: Row, standing: Sequence[Row], lease_id: str | None, reader: str, readers: int
) -> Lease:
    """Return how a reader holds an item; refuse where others hold all there is of it."""
    now, others = time.time(), [row for row in standing if row["reader"] != reader]
    if lease_id is not None:
        holder = connection.execute(sa.select(leases.c.reader).where(leases.c.lease_id == lease_id)).scalar_one_or_none()
        if holder not in (None, reader):
            raise Refusal("lease_lost")
    held = connection.execute(sa.select(leases).where(leases.c.item_id == item["id"])).mappings().all()
    own = next((row for row in held if row["reader"] == reader), None)
    if own is not None and own["until"] > now:
        return "held"
    room = 1 if item["state"] == ADJUDICATE else max(1, readers - len(others))
    correcting = len(others) < len(standing)
    taken = sum(row["until"] > now for row in held if row["reader"] != reader) >= room
    if taken and item["state"] in WAITING and not correcting:
        raise Refusal("item_taken" if lease_id is None else "lease_lost")
    return "none" if lease_id is None and own is None else "expired"


def _settle(connection: sa.Connection, item: Row, decision: Decision, reader: str) -> str:
    """Write what a decision makes of an item, and end its reader's lease; return the item's state."""
    connection.execute(sa.delete(leases).where(leases.c.item_id == item["id"], leases.c.reader == reader))
    if item["state"] not in (*WAITING, DONE):  # the pixels are gone, or the model does not take the image: the label is kept
        return str(item["state"])
    values = {"state": decision.state, "updated_at": datetime.now(UTC)}
    connection.execute(sa.update(items).where(items.c.id == item["id"]).values(**values))
    if decision.state == DONE:
        connection.execute(sa.delete(leases).where(leases.c.item_id == item["id"]))
    return decision.state


def _answer(row: Row, state: Any, lease: Lease | None, decision: Decision) -> LabelAnswer:
    alike = decision.likeness
    return LabelAnswer(
        label_id=row["label_id"],
        item_id=row["item_id"],
        item_state=state,
        standing=row["standing"],
        lease=lease,
        agreement=LikenessAnswer(measure=alike.measure, value=alike.value, agree=alike.agree) if alike else None,
    )


def _record(row: Row, reader: str, holds: bool) -> LabelRecord:
    values = {name: row[name] for name in LabelRecord.model_fields if name in row}
    values |= {"reader": reader, "created_at": row["created_at"].replace(tzinfo=UTC), "in_force": holds}
    return LabelRecord.model_validate(values)
