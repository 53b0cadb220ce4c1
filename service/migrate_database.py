"""``overread migrate-database``: a site's SQLite database into an empty PostgreSQL one, as a whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from models.command import command_parser
from models.errors import Refusal
from service.audit import note, operator
from service.settings import read_settings
from service.store import Store
from service.tables import metadata

BATCH = 500
"""Rows a statement."""


def _plain(value: Any) -> Any:
    """Return a column's value as both databases give it."""
    if isinstance(value, datetime):  # SQLite has no time zones: all is UTC
        return (value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    return value.hex() if isinstance(value, bytes) else value


class Digest:
    """Number and digest of a table's rows, in whatever order they come: databases sort text differently."""

    def __init__(self) -> None:
        self.rows, self._sum = 0, 0

    def add(self, rows: Iterable[sa.RowMapping]) -> None:
        """Take rows in."""
        for row in rows:
            text = json.dumps({name: _plain(value) for name, value in row.items()}, sort_keys=True)
            self._sum += int.from_bytes(hashlib.sha256(text.encode()).digest())
            self.rows += 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Digest) and (self.rows, self._sum) == (other.rows, other._sum)

    __hash__ = None  # type: ignore[assignment]  # it changes


def migrate_database(source: Store, target: Store) -> int:
    """Copy every row in one transaction, and compare what arrived before it is committed; return how many there were.

    Parameters
    ----------
    source : Store
        SQLite. Nobody writes to it meanwhile.
    target : Store
        PostgreSQL, without a row.

    Raises
    ------
    Refusal
        ``output_exists`` if the target holds rows, ``data_invalid`` for a row that PostgreSQL does not take,
        ``storage_unavailable`` also where what arrived is not what was read. The target is then as it was.
    """
    total = 0
    with source.writing() as reading, target.writing() as writing:
        for table in metadata.sorted_tables:
            if writing.execute(sa.select(table).limit(1)).first() is not None:
                raise Refusal("output_exists", "The PostgreSQL database holds rows already: name an empty one.")
        for table in metadata.sorted_tables:  # those that others refer to come first
            copied = _copy(table, reading, writing)
            arrived = Digest()
            for rows in _read(table, writing):
                arrived.add(rows)
            if copied != arrived:
                raise Refusal("storage_unavailable", f"{table.name} did not arrive as it was read; nothing was kept.")
            total += copied.rows
        for table in metadata.sorted_tables:
            if "id" in table.c and isinstance(table.c.id.type, sa.Integer):
                last = sa.select(sa.func.max(table.c.id)).scalar_subquery()
                writing.execute(sa.select(sa.func.setval(sa.func.pg_get_serial_sequence(table.name, "id"), last)))
        note(writing, operator(), "database_migrated", number=total)
    return total


def _read(table: sa.Table, connection: sa.Connection) -> Iterable[list[sa.RowMapping]]:
    query = sa.select(table).order_by(*table.primary_key).execution_options(yield_per=BATCH)
    for rows in connection.execute(query).mappings().partitions():
        yield list(rows)


def _copy(table: sa.Table, reading: sa.Connection, writing: sa.Connection) -> Digest:
    digest = Digest()
    for rows in _read(table, reading):
        digest.add(rows)
        try:
            writing.execute(sa.insert(table), [dict(row) for row in rows])
        except sa.exc.DataError as error:
            raise Refusal("data_invalid", f"PostgreSQL does not take a row of {table.name}; nothing was kept.") from error
    return digest


def main(argv: list[str]) -> int:
    """Run ``overread migrate-database``; returns 0."""
    parser = command_parser(
        "migrate-database",
        "Copy the SQLite database of a state folder into the empty PostgreSQL database of OVERREAD_DATABASE_URL, all of it or "
        "nothing. Stop the service first. The state folder stays in use for everything else.",
        "overread migrate-database --from /var/lib/overread",
    )
    parser.add_argument("--from", dest="state", type=Path, required=True, metavar="FOLDER", help="the state folder")
    options = parser.parse_args(argv)
    settings = read_settings()
    if settings.store == settings.database:
        raise Refusal("config_invalid", "OVERREAD_DATABASE_URL says where to; it is not set.")
    file = settings.model_copy(update={"state": options.state}).database
    if not file.exists():
        raise Refusal("config_invalid", "There is no SQLite database in that folder.")
    source = Store(file)
    try:
        target = Store(settings.store)
        try:
            number = migrate_database(source, target)
        finally:
            target.close()
    finally:
        source.close()
    print(f"{number} rows are in PostgreSQL, each table compared. The SQLite file is not used any more.")
    return 0
