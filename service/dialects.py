"""``INSERT ... ON CONFLICT`` for the dialect of a connection: the statement is the same, but each dialect has its own class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

Insert = sqlite.Insert | postgresql.Insert
_INSERTS: dict[str, Callable[[sa.Table], Insert]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def insert(connection: sa.Connection, table: sa.Table) -> Insert:
    """Return an ``INSERT`` into a table that can say what happens to a row which is there, and how many rows it wrote."""
    return _made(connection.dialect.name, table)


def _made(dialect: str, table: sa.Table) -> Insert:
    # psycopg's cursor forgets the number of rows when it is closed, which an INSERT does
    return _INSERTS[dialect](table).execution_options(preserve_rowcount=True)


class Upsert:
    """A statement that is built once for each dialect: building it costs more than running it.

    Parameters
    ----------
    table : Table
    build : callable
        Adds what happens to a row that is there.
    """

    def __init__(self, table: sa.Table, build: Callable[[Insert], Insert]) -> None:
        self._statements = {name: build(_made(name, table)) for name in _INSERTS}

    def run(self, connection: sa.Connection, values: Mapping[str, Any]) -> int:
        """Run it with one row; return how many rows were written, 0 or 1."""
        return connection.execute(self._statements[connection.dialect.name], values).rowcount
