"""What the database cannot take is told by a code, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from models.errors import Refusal
from models.triage import Judgement
from service.store import Store

ACCEPT = Judgement("accept", ("within_limits",))
LIMITS = "1" * 64


def by_reuse(_: bool) -> Judgement:
    return ACCEPT


def count(file: Path, table: str) -> int:
    connection = sqlite3.connect(file)
    try:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    finally:
        connection.close()


def test_a_row_needs_its_model(store: Store, file: Path, row: Any) -> None:
    with pytest.raises(Refusal) as caught:
        store.record(row(1) | {"model_sha256": "f" * 64}, None, LIMITS, by_reuse)
    assert caught.value.code == "storage_unavailable"
    assert count(file, "results") == 0


def test_a_judge_that_fails_leaves_nothing(store: Store, file: Path, row: Any) -> None:
    def fail(_: bool) -> Judgement:
        raise KeyError("planted")

    with pytest.raises(KeyError):
        store.record(row(1), "1.2", LIMITS, fail)
    assert [count(file, table) for table in ("results", "instances", "verdicts")] == [0, 0, 0]
    assert store.record(row(1), "1.2", LIMITS, by_reuse)[0]


def test_a_full_disk_is_told_and_loses_nothing(store: Store, file: Path, row: Any) -> None:
    store.record(row(1), None, LIMITS, by_reuse)
    with store._writer.connect() as connection:  # the pragma holds for this pooled connection, which the writer takes next
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    large = row(2) | {"features": bytes(200_000)}
    with pytest.raises(Refusal) as caught:
        store.record(large, None, LIMITS, by_reuse)
    assert caught.value.code == "storage_full"
    assert store.find(row(1)["id"]) is not None
    assert store.find(row(2)["id"]) is None
    with store._writer.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    assert store.record(large, None, LIMITS, by_reuse)[0]


def test_a_locked_database_is_told(store: Store, file: Path, row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.database.BUSY_SECONDS", 0.1)
    impatient = Store(file)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Refusal) as caught:
        impatient.record(row(1), None, LIMITS, by_reuse)
    assert caught.value.code == "storage_unavailable"
    assert impatient.find("0" * 64) is None  # readers go on
    other.execute("ROLLBACK")
    other.close()
    assert impatient.record(row(1), None, LIMITS, by_reuse)[0]
    impatient.close()


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    file = tmp_path / "overread.sqlite3"
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(Refusal) as caught:
        Store(file)
    assert caught.value.code == "storage_unavailable"
    assert file.read_bytes() == b"no database" * 1000


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refusal) as caught:
        Store(tmp_path / "file" / "state" / "overread.sqlite3")
    assert caught.value.code == "storage_unavailable"


def test_no_room_for_the_lock_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "planted")

    monkeypatch.setattr(os, "open", full)
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(Refusal) as caught:
        Store(tmp_path / "overread.sqlite3")
    assert caught.value.code == "storage_full"


def test_a_database_of_a_newer_version_is_told(store: Store, file: Path) -> None:
    connection = sqlite3.connect(file)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(Refusal) as caught:
        Store(file)
    assert caught.value.code == "storage_unavailable"
    assert "newer" in caught.value.detail
