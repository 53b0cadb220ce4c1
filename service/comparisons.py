"""What a candidate would have said beside what was answered: rows, and their sums."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from models.triage import Verdict
from service.dialects import Upsert
from service.store import Store
from service.tables import comparisons, items, labels, results, verdicts

_ADD_RESULT, _ADD = (Upsert(table, lambda made: made.on_conflict_do_nothing()) for table in (results, comparisons))
_THEIRS = results.alias("candidate_results")
_SITE = (
    sa.select(verdicts.c.site).where(verdicts.c.result_id == sa.bindparam("key")).order_by(verdicts.c.id.desc()).limit(1)
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """The verdicts on one image: what was answered, and what the candidate would have been."""

    verdict: Verdict
    candidate_verdict: Verdict
    same_findings: bool


@dataclass(frozen=True)
class Sum:
    """Comparisons of one site and one pair of verdicts: how many, and the sums of the predicted losses."""

    site: str
    verdict: Verdict
    candidate_verdict: Verdict
    number: int
    same_findings: int
    current_loss: float
    candidate_loss: float


@dataclass(frozen=True)
class Labelled:
    """A label of an image that both packages predicted; those of one image follow each other, the earliest first.

    Attributes
    ----------
    image_sha256, patient : str
        ``patient`` is a pseudonym, or the image where there is no item.
    standing : str
        "reader" or "adjudicator".
    document : dict
        As it was given.
    probabilities, candidate_probabilities : dict of str to float
    verdict, candidate_verdict : str
    """

    image_sha256: str
    patient: str
    standing: str
    document: dict[str, Any]
    probabilities: dict[str, float]
    candidate_probabilities: dict[str, float]
    verdict: Verdict
    candidate_verdict: Verdict


class Comparisons:
    """The rows, in the store's database."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def known(self, result_id: str, candidate_result_id: str) -> bool:
        """Tell whether two results were compared."""
        same = (comparisons.c.result_id == result_id, comparisons.c.candidate_result_id == candidate_result_id)
        with self._store.reading() as connection:
            return connection.execute(sa.select(comparisons.c.site).where(*same)).first() is not None

    def add(self, model_name: str, result_id: str, row: dict[str, Any], pair: Pair) -> bool:
        """Commit a candidate's result and the comparison in one transaction; tell whether it is new.

        The candidate's result gets no verdict: without one, no answer can be made of it. Where the result that was answered was
        erased meanwhile, nothing is committed: the image must not come back.
        """
        now = datetime.now(UTC)
        with self._store.writing() as connection:
            site = connection.execute(_SITE, {"key": result_id}).scalar_one_or_none()
            if site is None:
                return False
            _ADD_RESULT.run(connection, {"created_at": now} | row)
            key = {"result_id": result_id, "candidate_result_id": row["id"], "model_name": model_name, "site": site}
            return _ADD.run(connection, key | vars(pair) | {"created_at": now}) == 1

    def sums(self, current_sha256: str, candidate_sha256: str) -> list[Sum]:
        """Return the sums of the comparisons of two packages."""
        key = (comparisons.c.site, comparisons.c.verdict, comparisons.c.candidate_verdict)
        query = (
            _between(sa.select(*key), current_sha256, candidate_sha256)
            .add_columns(
                sa.func.count(),
                sa.func.sum(sa.cast(comparisons.c.same_findings, sa.Integer)),
                sa.func.sum(results.c.predicted_loss),
                sa.func.sum(_THEIRS.c.predicted_loss),
            )
            .group_by(*key)
            .order_by(*key)
        )
        with self._store.reading() as connection:
            return [Sum(*row) for row in connection.execute(query)]

    def labelled(self, current_sha256: str, candidate_sha256: str) -> Iterator[Labelled]:
        """Yield the labels in force, by classes, of whole images that both packages predicted."""
        later = labels.alias()
        given = sa.select(
            labels.c.image_sha256,
            sa.func.coalesce(items.c.patient, labels.c.image_sha256),
            labels.c.standing,
            labels.c.document,
            results.c.probabilities,
            _THEIRS.c.probabilities,
            comparisons.c.verdict,
            comparisons.c.candidate_verdict,
        )
        query = (
            _between(given, current_sha256, candidate_sha256)
            .join(labels, labels.c.image_sha256 == results.c.image_sha256)
            .outerjoin(items, items.c.id == labels.c.item_id)
            .where(labels.c.kind == "classes", ~sa.exists().where(later.c.replaces == labels.c.label_id))
            .order_by(labels.c.image_sha256, labels.c.id)
        )
        with self._store.reading() as connection:
            for row in connection.execute(query):
                yield Labelled(*row)


def _between(query: sa.Select[Any], current_sha256: str, candidate_sha256: str) -> sa.Select[Any]:
    return (
        query.select_from(comparisons)
        .join(results, results.c.id == comparisons.c.result_id)
        .join(_THEIRS, _THEIRS.c.id == comparisons.c.candidate_result_id)
        .where(results.c.model_sha256 == current_sha256, _THEIRS.c.model_sha256 == candidate_sha256)
    )
