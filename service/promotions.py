"""Which package of a model name is current, which one is its candidate, and who decided it: rows that are only ever added.

The last row of a name and role is in force, so there can be no two current packages, whatever is killed when. A row is
committed after its package lies whole under ``state/packages`` (:mod:`service.packages`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa

from models.errors import Refusal
from service.audit import COMMAND, Who, note
from service.store import Store
from service.tables import promotions

Role = Literal["current", "candidate"]
NO_PACKAGE = ""
"""In the place of a package's digest: there is no candidate any more."""
TAKEN_BACK = "taken_back"
"""Member of ``promotions.report`` of a rollback: the number of the promotion that it takes back."""
SETTINGS_ACTOR, SETTINGS_REASON = "settings", "What the settings name, as it was before the first promotion."

_LAST = sa.select(sa.func.coalesce(sa.func.max(promotions.c.id), 0))
_ALL = sa.select(promotions).order_by(promotions.c.id)


@dataclass(frozen=True)
class Promotion:
    """A row: what was decided about a model name, by whom, when and why.

    Attributes
    ----------
    id : int
        Larger is later.
    model_name : str
    model_sha256 : str
        Of the package; :data:`NO_PACKAGE` where a candidate was withdrawn.
    role : "current" or "candidate"
    actor, reason : str
    report : dict or None
        The comparison that allowed it; of a rollback, what it takes back.
    created_at : datetime
    """

    id: int
    model_name: str
    model_sha256: str
    role: Role
    actor: str
    reason: str
    report: dict[str, Any] | None
    created_at: datetime

    @property
    def taken_back(self) -> int | None:
        """Number of the promotion that this row takes back; None if it is no rollback."""
        return (self.report or {}).get(TAKEN_BACK)


@dataclass(frozen=True)
class Decision:
    """A row that is to be added."""

    model_name: str
    model_sha256: str
    role: Role
    actor: str
    reason: str
    report: dict[str, Any] | None = None

    @property
    def action(self) -> str:
        """What it is to the audit."""
        if self.role == "candidate":
            return "candidate_changed"
        return "package_rolled_back" if TAKEN_BACK in (self.report or {}) else "package_promoted"


def in_force(rows: list[Promotion], role: Role) -> dict[str, str]:
    """Return the package of each model name in this role; names without one are not in it."""
    last = {row.model_name: row.model_sha256 for row in rows if row.role == role}
    return {name: sha256 for name, sha256 in last.items() if sha256 != NO_PACKAGE}


def standing(rows: list[Promotion], name: str) -> list[Promotion]:
    """Return the promotions of a name that were not taken back, in order: the last is current, the one before it is previous.

    A rollback takes back the last of them and is none itself: two rollbacks go back two steps, rather than there and back.
    """
    found: list[Promotion] = []
    for row in rows:
        if row.model_name == name and row.role == "current":
            if row.taken_back is None:
                found.append(row)
            else:
                found = [earlier for earlier in found if earlier.id != row.taken_back]
    return found


class Promotions:
    """The rows, in the store's database."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def last(self) -> int:
        """Return the number of the last row, 0 if there is none: whoever follows asks this, again and again."""
        with self._store.reading() as connection:
            number: int = connection.execute(_LAST).scalar_one()
        return number

    def rows(self) -> list[Promotion]:
        """Return every row, in order."""
        with self._store.reading() as connection:
            return [_row(row) for row in connection.execute(_ALL).mappings()]

    def add(self, decisions: list[Decision], after: int) -> int:
        """Commit rows in one transaction, and return the last one's number.

        Parameters
        ----------
        decisions : list of Decision
        after : int
            What :meth:`last` said when they were decided.

        Raises
        ------
        Refusal
            ``output_exists`` if another decision was committed meanwhile, ``storage_*`` as the store says.
        """
        now = datetime.now(UTC)
        with self._store.writing() as connection:
            if connection.execute(_LAST).scalar_one() != after:
                raise Refusal("output_exists", "Another promotion was made at the same time: look at it, and try again.")
            for decision in decisions:
                connection.execute(sa.insert(promotions), vars(decision) | {"created_at": now})
                if decision.actor != SETTINGS_ACTOR:  # that row says what was there before
                    note(connection, Who(decision.actor, COMMAND), decision.action, [decision.model_sha256])
            number: int = connection.execute(_LAST).scalar_one()
        return number


def _row(row: Any) -> Promotion:
    return Promotion(**(dict(row) | {"created_at": row["created_at"].replace(tzinfo=UTC)}))
