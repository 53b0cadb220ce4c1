"""A PostgreSQL server of the tests' own: a cluster in a temporary folder, on a Unix socket, as an account that is not root."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from service.tables import metadata
from tests.conftest import require

PORT = 5432
"""Of the socket's name alone: nothing listens on a network."""


def binaries() -> Path:
    """Return the folder of PostgreSQL's commands: Debian's are not on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    require("initdb")
    return Path(str(shutil.which("initdb"))).parent


class Cluster:
    """A server whose databases come and go with the tests.

    Parameters
    ----------
    folder : Path
        Empty, and its path short: a socket's has 107 characters at most.
    """

    def __init__(self, folder: Path) -> None:
        self._bin, self._folder, self._numbers = binaries(), folder, itertools.count()
        self.data = folder / "data"
        if os.getuid() == 0:  # which PostgreSQL refuses to run as
            shutil.chown(folder, "postgres")
        self._run("initdb", "--auth=trust", "--username=overread", "--encoding=UTF8", "--no-sync", "-D", str(self.data))

    def _run(self, command: str, *arguments: str) -> None:
        account = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        full = [*account, str(self._bin / command), *arguments]
        done = subprocess.run(full, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False)
        assert done.returncode == 0, done.stdout.decode()[-2000:]

    def start(self) -> None:
        """Start it; it is ready when this returns."""
        options = f"-k {self._folder} -p {PORT} -c listen_addresses='' -c shared_buffers=32MB -c max_connections=200"
        self._run("pg_ctl", "start", "-w", "-D", str(self.data), "-l", str(self._folder / "log"), "-o", options)

    def stop(self) -> None:
        """Stop it, and throw out whoever is connected."""
        self._run("pg_ctl", "stop", "-w", "-m", "fast", "-D", str(self.data))

    def url(self, name: str) -> str:
        """Return the address of a database."""
        return f"postgresql+psycopg://overread@/{name}?host={self._folder}&port={PORT}"

    def ask(self, sql: str, name: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement by itself; return its rows."""
        with psycopg.connect(host=str(self._folder), port=PORT, user="overread", dbname=name, autocommit=True) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def create(self) -> str:
        """Make a database; return its name."""
        name = f"site_{next(self._numbers)}"
        self.ask(f"CREATE DATABASE {name}")
        return name

    def empty(self, name: str) -> None:
        """Remove every row of a database but the version of its schema, and number rows from 1 again."""
        tables = [table.name for table in metadata.sorted_tables]
        steps = [f"DELETE FROM {table}" for table in tables]
        steps += ["SELECT setval(format('%I', sequencename)::regclass, 1, false) FROM pg_sequences"]
        # Neither foreign keys nor the audit's trigger are asked
        self.ask("SET session_replication_role = replica; " + "; ".join(steps), name)


@contextmanager
def running() -> Iterator[Cluster]:
    """Run a server."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        cluster = Cluster(folder)
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder)
