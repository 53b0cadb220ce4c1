"""Where the database is and how it is opened: SQLite in the state folder, or PostgreSQL. What differs between them stands here.

On both, one transaction at a time writes, so that numbers of rows follow the order of commits (docs/adr/0010).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from models.errors import Refusal
from service.server import Server
from service.tables import metadata

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 5
"""How long a transaction waits for its turn."""
FROZEN_SECONDS = 30
"""After which PostgreSQL ends a transaction in which nothing happens: a replica that froze must not keep the others waiting."""
MIGRATION_SECONDS = 600
_FULL = frozenset({"SQLITE_FULL", "53100"})
"""Names and SQLSTATEs of a disk without room."""
_CONNECT = {
    "connect_timeout": "5",
    "application_name": "overread",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
}
"""libpq's parameters, where the address does not give them: a server that went away is noticed."""
_SESSION = f"""
SELECT current_setting('fsync'), set_config('TimeZone', 'UTC', false), set_config('lock_timeout', '{BUSY_SECONDS}s', false),
  set_config('idle_in_transaction_session_timeout', '{FROZEN_SECONDS}s', false),
  CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', false) END
"""


@contextmanager
def coded() -> Iterator[None]:
    """Give a failure of the database or the disk a code: nothing was committed, so the caller may send the image again.

    A value that the database does not take is a fault of ours (it should have been refused before) and passes as such: tried
    again it fails again, and who waits for the database to come back would wait for ever.
    """
    try:
        yield
    except sa.exc.DataError:
        raise
    except sa.exc.DBAPIError as error:
        names = {getattr(error.orig, "sqlite_errorname", ""), getattr(error.orig, "sqlstate", "")}
        raise Refusal("storage_full" if names & _FULL else "storage_unavailable") from error
    except sa.exc.TimeoutError as error:
        raise Refusal("storage_unavailable") from error
    except OSError as error:
        raise Refusal("storage_full" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "storage_unavailable") from error


def newest() -> str:
    """Return the number of the newest migration."""
    return max(file.name for file in MIGRATIONS.glob("versions/[0-9]*.py")).partition("_")[0]


def _upgrade(connection: sa.Connection) -> None:
    """Migrate, unless there is nothing to do: looking is quick, and alembic takes a quarter of a second to import."""
    known = sa.inspect(connection).has_table("alembic_version")
    if known and connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all() == [newest()]:
        return
    import alembic.command
    import alembic.config
    import alembic.util

    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    try:
        alembic.command.upgrade(config, "head")
    except alembic.util.CommandError as error:
        raise Refusal("storage_unavailable", "The database was written by a newer version.") from error


class Sqlite:
    """A file in WAL mode with ``synchronous=FULL``; workers of one machine may share it.

    Parameters
    ----------
    file : Path
        Created, with its folder, when missing.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.reader, self.writer = self._engine(), self._engine()
        sa.event.listen(self.writer, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))

    def _engine(self) -> sa.Engine:
        # Every transaction ends with its block, so connections need no second rollback when they go back to the pool.
        options = {"pool_size": 32, "max_overflow": 32, "pool_reset_on_return": None, "hide_parameters": True}
        engine = sa.create_engine(f"sqlite:///{self._file}", connect_args={"timeout": BUSY_SECONDS}, **options)

        @sa.event.listens_for(engine, "connect")
        def _connect(connection: sqlite3.Connection, _: object) -> None:
            # Transactions are begun by us; what is only read is one statement, or rows that never change.
            connection.isolation_level = None
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
                connection.execute(f"PRAGMA {pragma}")

        return engine

    def migrate(self) -> None:
        """Bring the schema to the newest; of several processes that start at once, one does."""
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file.touch(mode=0o600)  # SQLite gives its other files the same mode
        self._file.chmod(0o600)
        lock = os.open(self._file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with self.writer.begin() as connection:
                _upgrade(connection)
        finally:
            os.close(lock)

    @contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Yield whether no other process has claimed that name; a process that dies lets it go."""
        with coded():
            lock = os.open(self._file.parent / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine = True
            except BlockingIOError:
                mine = False
            yield mine
        finally:
            os.close(lock)

    def rewrite(self) -> bool:
        """Write the database anew, so that nothing removed is left in its files; False where somebody reads all the time."""
        with self.reader.begin() as connection:  # a statement is a transaction of its own here
            connection.exec_driver_sql("VACUUM")
            return not connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0]


class Postgresql:
    """A database of a PostgreSQL server; processes of several machines may share it.

    Parameters
    ----------
    server : Server

    Raises
    ------
    Refusal
        ``config_invalid`` for an address that is none, or without the driver.
    """

    def __init__(self, server: Server) -> None:
        try:
            url = sa.make_url(server.url.get_secret_value())
        except (sa.exc.ArgumentError, ValueError):
            raise Refusal("config_invalid", "OVERREAD_DATABASE_URL is no address of a database.") from None
        if password := server.password.get_secret_value():
            url = url.set(password=password)
        missing = {name: value for name, value in _CONNECT.items() if name not in url.query}
        self._url = url.set(drivername="postgresql+psycopg").update_query_dict(missing)
        # Readers' statements stand for themselves, as with SQLite; the snapshot of a writer's must not be older than its turn.
        self.reader = self._engine(isolation_level="AUTOCOMMIT", pool_size=4, max_overflow=28)
        self.writer = self._engine(isolation_level="READ COMMITTED", pool_size=1, max_overflow=1)
        sa.event.listen(self.writer, "begin", lambda connection: _lock(connection, "pg_advisory_xact_lock", "writer"))

    def _engine(self, **options: Any) -> sa.Engine:
        try:
            options = {"pool_pre_ping": True, "pool_timeout": BUSY_SECONDS, "hide_parameters": True} | options
            engine = sa.create_engine(self._url, **options)
        except ImportError as error:
            raise Refusal("config_invalid", "OVERREAD_DATABASE_URL needs psycopg: pip install -e '.[postgresql]'.") from error

        @sa.event.listens_for(engine, "connect")
        def _connect(connection: Any, _: object) -> None:
            fsync = connection.execute(_SESSION).fetchone()[0]
            connection.commit()
            if fsync != "on":
                connection.close()
                raise Refusal("config_invalid", "The database's server has fsync off: what it confirms could be lost.")

        return engine

    def migrate(self) -> None:
        """Bring the schema to the newest; of several replicas that start at once, one does, and the others wait."""
        with self.writer.connect() as connection:
            raw = connection.connection.dbapi_connection
            assert raw is not None
            raw.execute(f"SET lock_timeout = '{MIGRATION_SECONDS}s'")
            raw.commit()
            try:
                with connection.begin():
                    _upgrade(connection)
            finally:
                connection.invalidate()  # the next one waits no longer than others do

    @contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Yield whether no other process has claimed that name; a process that dies, or loses its connection, lets it go."""
        with coded():
            connection = self.reader.connect()
        mine = False
        try:
            with coded():
                mine = _lock(connection, "pg_try_advisory_lock", name)
            yield mine
        finally:
            try:
                if mine:
                    _lock(connection, "pg_advisory_unlock", name)
            except sa.exc.DBAPIError:
                connection.invalidate()  # the claim ended with its connection
            finally:
                connection.close()

    def rewrite(self) -> bool:
        """Write every table anew, so that nothing removed is left in their files."""
        with self.reader.begin() as connection:  # a statement is a transaction of its own here
            for table in metadata.sorted_tables:
                connection.exec_driver_sql(f"VACUUM (FULL) {table.name}")
        return True


def _lock(connection: sa.Connection, function: str, name: str) -> bool:
    key = int.from_bytes(hashlib.sha256(f"overread {name}".encode()).digest()[:8], signed=True)
    return bool(connection.exec_driver_sql(f"SELECT {function}(%s)", (key,)).scalar_one())


def file_of(where: Path | Server) -> Path:
    """Return SQLite's file.

    Raises
    ------
    Refusal
        ``config_invalid`` where the database is a server's.
    """
    if isinstance(where, Path):
        return where
    raise Refusal("config_invalid", "OVERREAD_DATABASE_URL is set; docs/postgresql.md says how this is done with PostgreSQL.")


def database_at(where: Path | Server) -> Sqlite | Postgresql:
    """Return the database of a file, or of a server."""
    return Sqlite(where) if isinstance(where, Path) else Postgresql(where)
