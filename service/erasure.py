"""Removing all that there is of images: of a patient, by command, or of what is older than results are kept."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from models.errors import Refusal
from service.arrivals import WAITING, received_reference
from service.audit import Who, note
from service.items import WAITING as OPEN_STATES
from service.kept import Kept
from service.pseudonyms import Whose
from service.store import Store
from service.tables import (
    audit,
    comparisons,
    instances,
    items,
    kept_images,
    labels,
    leases,
    pacs_instances,
    pacs_objects,
    results,
    site_health,
    skips,
    verdicts,
)

BATCH = 200
"""Images a transaction: the service writes in between."""
SERVICE = Who("overread", "service")
SCRUB_SECONDS = 30.0
_NEWEST = sa.select(sa.func.coalesce(sa.func.max(verdicts.c.id), 0)).scalar_subquery()
_COUNTED = sa.update(site_health).where(site_health.c.last_verdict_id > _NEWEST).values(last_verdict_id=_NEWEST)


@dataclass(frozen=True)
class Asked:
    """Whose and which images are to be erased.

    Attributes
    ----------
    patients : tuple of (Whose, bool)
        Pseudonyms, and whether the issuer of the PatientID was given.
    uids : tuple of str
        SOP Instance UIDs.
    images : tuple of str
        Digests of images, which go whoever else has them.
    """

    patients: tuple[tuple[Whose, bool], ...] = ()
    uids: tuple[str, ...] = ()
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """What an erasure will remove.

    Attributes
    ----------
    images : tuple of str
        Digests of the images that go with all that there is of them.
    shared : dict of str to str
        Images that another patient has too, with that patient's pseudonym: they stay, what says that they were this one's goes.
    uids : tuple of str
        SOP Instance UIDs, those asked for among them.
    patients : tuple of str
        Pseudonyms.
    """

    images: tuple[str, ...]
    shared: dict[str, str]
    uids: tuple[str, ...]
    patients: tuple[str, ...]


@dataclass
class Removed:
    """How many rows went, and how many objects of ours an archive still holds."""

    images: int = 0
    results: int = 0
    labels: int = 0
    objects: int = 0


def _parts(values: Collection[str]) -> Iterator[list[str]]:
    ordered = sorted(values)
    yield from (ordered[first : first + BATCH] for first in range(0, len(ordered), BATCH))


class Eraser:
    """Removes from one site's database and kept pixels.

    Parameters
    ----------
    store : Store
    kept : Kept
    """

    def __init__(self, store: Store, kept: Kept) -> None:
        self._store, self._kept = store, kept

    def find(self, asked: Asked) -> Found:
        """Find what an erasure would remove.

        Raises
        ------
        Refusal
            ``data_invalid`` if a PatientID was given without its issuer and images of several issuers have it.
        """
        with self._store.reading() as connection:
            patients = {name for whose, exact in asked.patients for name in self._patients(connection, whose, exact)}
            mine = set(self._instances(connection, instances.c.patient, patients))
            mine |= set(self._instances(connection, instances.c.sop_instance_uid, asked.uids))
            images = {image for _, image, _ in mine} | set(asked.images)
            for part in _parts(patients):
                images |= set(connection.execute(sa.select(items.c.image_sha256).where(items.c.patient.in_(part))).scalars())
            shared: dict[str, str] = {}
            for row in self._instances(connection, instances.c.image_sha256, images):
                if row[2] is not None and row[2] not in patients and row not in mine and row[1] not in asked.images:
                    shared[row[1]] = row[2]
        uids = {uid for uid, _, _ in mine} | set(asked.uids)
        return Found(tuple(sorted(images - shared.keys())), shared, tuple(sorted(uids)), tuple(sorted(patients)))

    @staticmethod
    def _patients(connection: sa.Connection, whose: Whose, exact: bool) -> set[str]:
        if exact:
            return {whose.patient}
        query = sa.select(instances.c.patient).where(instances.c.patient_number == whose.number).distinct()
        found = set(connection.execute(query).scalars())
        if len(found) > 1:
            raise Refusal("data_invalid", "Several issuers have a PatientID that was given: give its issuer, after a tab.")
        return found | {whose.patient}

    @staticmethod
    def _instances(
        connection: sa.Connection, column: sa.Column[Any], values: Collection[str]
    ) -> Iterator[tuple[str, str, str | None]]:
        for part in _parts(values):
            query = sa.select(instances.c.sop_instance_uid, instances.c.image_sha256, instances.c.patient)
            yield from (tuple(row) for row in connection.execute(query.where(column.in_(part))))

    def unknown(self) -> int:
        """Return how many instances can be found by UID alone, since no patient is noted for them."""
        with self._store.reading() as connection:
            query = sa.select(sa.func.count()).select_from(instances).where(instances.c.patient.is_(None))
            return int(connection.execute(query).scalar_one())

    def exported(self, images: Collection[str]) -> list[str]:
        """Return on which days, and by whom, any of these images left in label packages or tasks."""
        found: set[str] = set()
        with self._store.reading() as connection:
            for part in _parts(images):
                query = sa.select(audit.c.at, audit.c.actor).where(audit.c.action == "labels_exported", audit.c.subject.in_(part))
                found |= {f"{row.at:%Y-%m-%d} by {row.actor}" for row in connection.execute(query)}
        return sorted(found)

    def erase(self, found: Found, who: Who) -> Removed:
        """Remove what was found, a batch a transaction, each with its audit rows; killed in between, the rest is found again."""
        removed = Removed()
        with self._store.writing() as connection:
            note(connection, who, "erasure_asked", found.patients or ("",), len(found.images))
        for part in _parts(found.images):
            known = sa.select(results.c.image_sha256).where(results.c.image_sha256.in_(part)).distinct()
            with self._store.writing() as connection:
                there = connection.execute(known).scalars().all()  # a digest that was asked for may be of nothing, or gone before
                _add(removed, self._remove(connection, part))
                removed.images += len(there)
                note(connection, who, "image_erased", there)
        with self._store.writing() as connection:
            for image, other in found.shared.items():
                self._part(connection, image, other, found)
            for uids in _parts(found.uids):
                removed.objects += _forget(connection, sa.false(), uids)
        return removed

    def expire(self, before: datetime, most: int) -> int:
        """Remove up to ``most`` images whose newest scan is older than ``before``; return how many there were.

        Images that somebody should label, or that wait for the archive, stay until that is over.
        """
        newer, theirs = verdicts.alias(), results.alias()
        again = sa.exists().where(
            newer.c.result_id == theirs.c.id,
            theirs.c.image_sha256 == results.c.image_sha256,
            newer.c.created_at >= before,
            sa.not_(newer.c.scored_again),
        )
        wanted = sa.exists().where(items.c.image_sha256 == results.c.image_sha256, items.c.state.in_(OPEN_STATES))
        waiting = sa.exists().where(pacs_instances.c.result_id == results.c.id, pacs_instances.c.state == WAITING)
        query = (
            sa.select(results.c.image_sha256)
            .join(verdicts, verdicts.c.result_id == results.c.id)
            .where(verdicts.c.created_at < before, sa.not_(again), sa.not_(wanted), sa.not_(waiting))
            .limit(most)
        )
        with self._store.reading() as connection:
            due = connection.execute(query).first() is not None
        if not due:  # nearly always, and then nobody is kept from writing
            return 0
        with self._store.writing() as connection:
            images = list(dict.fromkeys(connection.execute(query).scalars()))
            self._remove(connection, images)
            note(connection, SERVICE, "results_expired", number=len(images))
        return len(images)

    def _remove(self, connection: sa.Connection, images: Sequence[str]) -> Removed:
        keys = list(connection.execute(sa.select(results.c.id).where(results.c.image_sha256.in_(images))).scalars())
        uids = connection.execute(sa.select(instances.c.sop_instance_uid).where(instances.c.image_sha256.in_(images))).scalars()
        numbers = list(connection.execute(sa.select(items.c.id).where(items.c.image_sha256.in_(images))).scalars())
        objects = _forget(connection, pacs_instances.c.result_id.in_(keys), list(uids), keys)
        for table, column, values in (
            (comparisons, comparisons.c.result_id, keys),
            (comparisons, comparisons.c.candidate_result_id, keys),
            (leases, leases.c.item_id, numbers),
            (skips, skips.c.item_id, numbers),
        ):
            connection.execute(sa.delete(table).where(column.in_(values)))
        given = connection.execute(sa.delete(labels).where(labels.c.image_sha256.in_(images))).rowcount
        connection.execute(sa.delete(items).where(items.c.id.in_(numbers)))
        connection.execute(sa.delete(kept_images).where(kept_images.c.image_sha256.in_(images)))
        _unjudge(connection, verdicts.c.result_id.in_(keys))
        connection.execute(sa.delete(instances).where(instances.c.image_sha256.in_(images)))
        connection.execute(sa.delete(results).where(results.c.id.in_(keys)))
        for image in images:  # within the transaction, as everywhere: what a row names and is not there counts as expired
            self._kept.remove(image)
        return Removed(results=len(keys), labels=given, objects=objects)

    @staticmethod
    def _part(connection: sa.Connection, image: str, other: str, found: Found) -> None:
        """Take an image from a patient that another one has too."""
        keys = sa.select(results.c.id).where(results.c.image_sha256 == image)
        same = instances.c.image_sha256 == image
        for uids in _parts(found.uids):
            _unjudge(connection, verdicts.c.result_id.in_(keys), verdicts.c.sop_instance_uid.in_(uids))
            connection.execute(sa.delete(instances).where(same, instances.c.sop_instance_uid.in_(uids)))
        theirs = items.c.image_sha256 == image, items.c.patient.in_(found.patients)
        connection.execute(sa.update(items).where(*theirs).values(patient=other))

    def scrub(self) -> bool:
        """Write the database anew, so that nothing removed is left in any of its files; return whether that was done.

        It is not while somebody reads all the time; then it can be tried again.
        """
        end = time.monotonic() + SCRUB_SECONDS
        while time.monotonic() < end:
            try:
                if self._store.rewrite():
                    return True
            except Refusal as refusal:
                if refusal.code != "storage_unavailable":
                    raise
            time.sleep(0.1)
        return False


def _unjudge(connection: sa.Connection, *which: sa.ColumnElement[bool]) -> None:
    """Remove verdicts; SQLite gives the numbers of the newest again, so what comes next must not pass for counted."""
    connection.execute(sa.delete(verdicts).where(*which))
    connection.execute(_COUNTED)


def _forget(connection: sa.Connection, which: sa.ColumnElement[bool], uids: Collection[str], keys: Iterable[str] = ()) -> int:
    """Remove what is known of instances in the archive; return how many objects of ours it holds for them."""
    references = [*uids, *map(received_reference, uids)]
    named = pacs_instances.c.sop_instance_uid.in_(uids) | pacs_instances.c.reference.in_(references)
    numbers = list(connection.execute(sa.select(pacs_instances.c.id).where(which | named)).scalars())
    ours = pacs_objects.c.instance_id.in_(numbers) | pacs_objects.c.result_id.in_(list(keys))
    written = list(connection.execute(sa.select(pacs_objects.c.sop_instance_uid).where(ours)).scalars())
    connection.execute(sa.delete(pacs_objects).where(ours))
    came_back = pacs_instances.c.sop_instance_uid.in_(written) | pacs_instances.c.reference.in_(written)
    connection.execute(sa.delete(pacs_instances).where(pacs_instances.c.id.in_(numbers) | came_back))
    return len(written)


def _add(total: Removed, part: Removed) -> None:
    for name, value in vars(part).items():
        setattr(total, name, getattr(total, name) + value)
