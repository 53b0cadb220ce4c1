"""``INSERT ... ON CONFLICT``, for which each dialect has its own class, and the statements that every image needs.

Those are compiled once, by SQLAlchemy, and run by the driver: what SQLAlchemy does around a statement is much code, all of which
has left the processor's caches when a network has run, so that a look for one row takes three times as long through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

Insert = sqlite.Insert | postgresql.Insert
_INSERTS: dict[str, Callable[[sa.Table], Insert]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def insert(connection: sa.Connection, table: sa.Table) -> Insert:
    """Return an ``INSERT`` into a table that can say what happens to a row which is there, and how many rows it wrote."""
    # psycopg's cursor forgets the number of rows when it is closed, which an INSERT does
    return _INSERTS[connection.dialect.name](table).execution_options(preserve_rowcount=True)


@contextmanager
def _translated(dialect: sa.Dialect) -> Iterator[None]:
    """Raise what a driver raises as SQLAlchemy does."""
    errors = dialect.loaded_dbapi.Error
    try:
        yield
    except errors as error:
        raise sa.exc.DBAPIError.instance(None, None, error, errors, hide_parameters=True) from error


class _Prepared:
    """A statement as the driver of a dialect takes it.

    Parameters
    ----------
    statement : Insert or Select
    dialect : Dialect
    names : list of str
        Of the columns that an ``INSERT`` gives; others get what the table says. Of a ``SELECT`` none.
    """

    def __init__(self, statement: Insert | sa.Select[Any], dialect: sa.Dialect, names: list[str]) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=names or None)
        processors = {name: bind.type.dialect_impl(dialect).bind_processor(dialect) for name, bind in compiled.binds.items()}
        self._text = str(compiled)
        self._fixed: dict[str, Any] = dict(compiled.params)
        self._processors = {name: process for name, process in processors.items() if process is not None}
        self._order = compiled.positiontup if compiled.positional else None

    def run(self, connection: sa.PoolProxiedConnection, values: Mapping[str, Any]) -> sa.engine.interfaces.DBAPICursor:
        """Run it, and return the driver's cursor."""
        given = {**self._fixed, **values}
        for name, process in self._processors.items():
            given[name] = process(given[name])
        cursor = connection.cursor()
        cursor.execute(self._text, given if self._order is None else [given[name] for name in self._order])
        return cursor


class Upsert:
    """An ``INSERT`` of one row, compiled once for each dialect, and what happens to a row that is there.

    Parameters
    ----------
    table : Table
        None of its columns has a default that Python works out.
    build : callable
        Adds what happens to a row that is there.
    """

    def __init__(self, table: sa.Table, build: Callable[[Insert], Insert]) -> None:
        self._statements = {name: build(made(table)).inline() for name, made in _INSERTS.items()}  # no RETURNING
        self._prepared: dict[tuple[str, ...], _Prepared] = {}

    def run(self, connection: sa.Connection, values: Mapping[str, Any]) -> int:
        """Run it within the connection's transaction; return how many rows were written, 0 or 1."""
        dialect = connection.dialect
        prepared = self._prepared.get((dialect.name, *values))
        if prepared is None:
            prepared = _Prepared(self._statements[dialect.name], dialect, list(values))
            self._prepared[dialect.name, *values] = prepared
        with _translated(dialect), closing(prepared.run(connection.connection, values)) as cursor:
            return cursor.rowcount


class Look:
    """A ``SELECT`` of one text, compiled once for each dialect.

    Parameters
    ----------
    statement : Select
        Of one column whose values drivers give as they are.
    """

    def __init__(self, statement: sa.Select[tuple[str]]) -> None:
        self._statement = statement
        self._prepared: dict[str, _Prepared] = {}

    def first(self, engine: sa.Engine, **values: str) -> str | None:
        """Return the value of the first row, or None where there is no row; by a connection that is in no transaction."""
        with _translated(engine.dialect), closing(engine.raw_connection()) as connection:
            return self._first(connection, engine.dialect, values)

    def first_within(self, connection: sa.Connection, **values: str) -> str | None:
        """Return the same within the connection's transaction."""
        with _translated(connection.dialect):
            return self._first(connection.connection, connection.dialect, values)

    def _first(self, connection: sa.PoolProxiedConnection, dialect: sa.Dialect, values: Mapping[str, str]) -> str | None:
        prepared = self._prepared.get(dialect.name)
        if prepared is None:
            prepared = self._prepared[dialect.name] = _Prepared(self._statement, dialect, [])
        with closing(prepared.run(connection, values)) as cursor:
            row = cursor.fetchone()
        return None if row is None else str(row[0])
