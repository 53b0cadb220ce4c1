"""Who read or changed what: rows that are only ever added, in the store's database. Triggers refuse to change one.

What changes something notes it in its own transaction; what is read is noted before it is answered. A row holds digests,
pseudonyms and the name of a token or an account: never a UID, nor who the patient is.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa

from models.command import command_parser
from models.errors import Refusal
from service.settings import read_settings
from service.store import Store
from service.tables import audit

COMMAND = "command"
"""In the place of a role: an account of this machine ran a command."""
ACTIONS: dict[str, str] = {
    "result_read": "A stored result was answered. Subject: the image.",
    "image_read": "Kept pixels were answered. Subject: the image.",
    "item_read": "An item of the worklist was answered, with what the model says of it. Subject: the image.",
    "labels_read": "Labels of an image were answered. Subject: the image.",
    "labels_exported": "An image and its labels left in a label package or as a task. Subject: the image.",
    "label_added": "A label was stored. Subject: the image.",
    "package_promoted": "A model package became the current one. Subject: the package.",
    "candidate_changed": "A model package became the candidate, or none is. Subject: the package, or nothing.",
    "package_rolled_back": "A model package became the current one again. Subject: the package.",
    "drift_restarted": "The drift test of a site began anew, which ends its alarm. Subject: the package.",
    "token_created": "A token was made. Subject: the SHA-256 of its name.",
    "token_rotated": "A token was replaced. Subject: the SHA-256 of its name.",
    "token_revoked": "A token was taken away. Subject: the SHA-256 of its name.",
    "signed_in": "A session of the page was opened. Subject: the SHA-256 of the token's name.",
    "erasure_asked": "An erasure was asked for. Subject: the patient's pseudonym, or nothing. Number: images found.",
    "image_erased": "All of an image was erased. Subject: the image.",
    "results_expired": "Results were removed because of their age. Number: images.",
    "backup_made": "A backup was begun.",
    "database_migrated": "The database was copied from SQLite to PostgreSQL. Number: rows.",
    "backup_restored": "This state folder was made from a backup. Subject: the backup's digest.",
}
"""What can be noted, and what a row's subject is then. ``docs/operations.md`` lists them."""


@dataclass(frozen=True)
class Who:
    """Who does something: the name of a token, a person or an account, and the role."""

    name: str
    role: str


def note(connection: sa.Connection, who: Who, action: str, subjects: Iterable[str] = ("",), number: int = 1) -> None:
    """Add a row for each subject, in the caller's transaction.

    Parameters
    ----------
    connection : Connection
    who : Who
    action : str
        A key of :data:`ACTIONS`.
    subjects : iterable of str
        Digests or pseudonyms, 64 hex digits each, or empty.
    number : int
        How many things each row concerns.

    Raises
    ------
    KeyError
        If ``action`` is unknown.
    """
    ACTIONS[action]
    row = {"at": datetime.now(UTC), "actor": who.name[:64], "role": who.role, "action": action, "number": number}
    rows = [row | {"subject": subject} for subject in dict.fromkeys(subjects)]
    if rows:
        connection.execute(sa.insert(audit), rows)


class Audit:
    """The rows of one site."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, who: Who, action: str, images: Iterable[str]) -> None:
        """Commit that somebody is about to see these images, or what is said of them.

        Raises
        ------
        Refusal
            ``storage_*``: what cannot be noted must not be shown.
        """
        images = list(images)
        if images:
            with self._store.writing() as connection:
                note(connection, who, action, images)

    def rows(self, since: datetime | None = None, subject: str | None = None) -> Iterator[str]:
        """Yield rows as text, the earliest first: when, who, role, action, subject, number, separated by tabs."""
        query = sa.select(audit).order_by(audit.c.id)
        if since is not None:
            query = query.where(audit.c.at >= since)
        if subject is not None:
            query = query.where(audit.c.subject == subject)
        with self._store.reading() as connection:
            for row in connection.execute(query):
                yield "\t".join((f"{row.at:%Y-%m-%dT%H:%M:%SZ}", row.actor, row.role, row.action, row.subject, str(row.number)))


def actor() -> str:
    """Return the name of the account that runs a command, or its number where it has no name."""
    number = os.getuid()
    try:
        return pwd.getpwuid(number).pw_name[:64]
    except KeyError:  # usual in containers
        return f"uid {number}"


def operator() -> Who:
    """Return who runs a command."""
    return Who(actor(), COMMAND)


def moment(text: str) -> datetime:
    """Read a day or a time, in UTC unless it says otherwise, for the command line."""
    at = datetime.fromisoformat(text)
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


def main(argv: list[str]) -> int:
    """Run ``overread audit``; returns 0."""
    parser = command_parser(
        "audit",
        "List who read or changed what: when, who, role, action, subject and number, separated by tabs.",
        "overread audit --since 2026-07-01",
    )
    parser.add_argument("--since", type=moment, metavar="TIME", help="only what was noted since, such as 2026-07-01 (UTC)")
    parser.add_argument("--subject", metavar="DIGEST", help="only what concerns this image, package or pseudonym")
    options = parser.parse_args(argv)
    if options.subject is not None and re.fullmatch("[0-9a-f]{64}", options.subject) is None:
        raise Refusal("config_invalid", "--subject has 64 hexadecimal digits, such as an answer's image_sha256.")
    store = Store(read_settings().store)
    try:
        for line in Audit(store).rows(options.since, options.subject):
            print(line)
    finally:
        store.close()
    return 0
