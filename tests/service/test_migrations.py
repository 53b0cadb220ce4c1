"""Old databases open, whichever version left them, and a migration that was killed goes on (row 25 of docs/reliability.md)."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import pytest
import sqlalchemy as sa
from alembic.operations import Operations
from alembic.script import ScriptDirectory

from models.errors import Refusal
from service.database import MIGRATIONS
from service.store import Store

CARD = '{"name": "tiny"}'


def revisions() -> list[str]:
    """Return every revision, the first one first."""
    found = ScriptDirectory(str(MIGRATIONS)).walk_revisions()
    return [script.revision for script in found][::-1]


ALL = revisions()


@contextmanager
def connected(file: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(file, timeout=30)) as connection:
        yield connection
        connection.commit()


def left_by(file: Path, revision: str) -> list[tuple[Any, ...]]:
    """Make a database as the version of a revision left it, with a result in it; return the result's row."""
    file.parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(f"sqlite:///{file}")
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, revision)
    engine.dispose()
    with connected(file) as connection:
        connection.execute("INSERT INTO models VALUES ('m', 'tiny', '1.0.0', ?, '2026-01-01')", (CARD,))
        names = "id, image_sha256, model_sha256, provider, media_type, rows, columns, probabilities, loss_score, predicted_loss"
        names += ", loss_percentile, domain_distance, domain_percentile, entropy, features, notes, created_at"
        values = "'r', 'i', 'm', 'CPU', 'image/png', 1, 1, '{}', 1, 1, 1, 1, 1, 1, x'00000000', '[]', '2026-01-01'"
        connection.execute(f"INSERT INTO results ({names}) VALUES ({values})")
        connection.execute(
            "INSERT INTO instances (sop_instance_uid, image_sha256, first_seen_at) VALUES ('1.2', 'i', '2026-01-01')"
        )
        verdict = "result_id, sop_instance_uid, triage_sha256, verdict, reasons, created_at"
        connection.execute(f"INSERT INTO verdicts ({verdict}) VALUES ('r', '1.2', 't', 'accept', '[]', '2026-01-01')")
    return rows(file)


def rows(file: Path) -> list[tuple[Any, ...]]:
    """Return what every version knows of the results."""
    known = "r.id, r.image_sha256, r.predicted_loss, i.sop_instance_uid, v.verdict, v.created_at"
    joined = "results r JOIN instances i ON i.image_sha256 = r.image_sha256 JOIN verdicts v ON v.result_id = r.id"
    with connected(file) as connection:
        return connection.execute(f"SELECT {known} FROM {joined}").fetchall()


def version(file: Path) -> str:
    with connected(file) as connection:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


@pytest.mark.parametrize("revision", ALL)
def test_a_database_of_each_version_opens(tmp_path: Path, revision: str) -> None:
    file = tmp_path / "overread.sqlite3"
    before = left_by(file, revision)
    assert len(before) == 1
    store = Store(file)
    assert store.verdict("r") is not None
    found = store.find("r")
    assert found is not None
    assert found.model["card"] == {"name": "tiny"}
    store.close()
    assert rows(file) == before
    assert version(file) == ALL[-1]


def test_one_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "overread.sqlite3"
    left_by(file, ALL[-1])
    with connected(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(Refusal, match="newer version"):
        Store(file)
    assert version(file) == "9999"


def _die_at(file: Path, step: int) -> None:
    """Open a database, and be killed at the n-th operation of its migrations."""
    done = 0
    invoke = Operations.invoke

    def counted(self: Operations, operation: Any) -> Any:
        nonlocal done
        done += 1
        if done == step:
            os._exit(9)
        return invoke(self, operation)

    Operations.invoke = counted  # type: ignore[method-assign]
    Store(file).close()
    os._exit(0)


def test_a_killed_migration_goes_on(tmp_path: Path) -> None:
    """Killed at every operation of the way from the first version to this one."""
    context, step, killed = multiprocessing.get_context("fork"), 0, 0
    while True:
        step += 1
        file = tmp_path / str(step) / "overread.sqlite3"
        before = left_by(file, ALL[0])
        process = context.Process(target=_die_at, args=(file, step))
        process.start()
        process.join(60)
        if process.exitcode == 0:
            break
        killed += process.exitcode == 9
        assert version(file) in ALL, "a version is there as a whole or not at all"
        Store(file).close()
        assert version(file) == ALL[-1]
        assert rows(file) == before
        with connected(file) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert killed == step - 1 >= 15, "the kill is felt at each operation"
