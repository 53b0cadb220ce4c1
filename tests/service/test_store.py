"""The database: once, in order, or a coded failure with nothing lost."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import numpy as np
import pytest
import sqlalchemy as sa

from models.predictor import Predictor
from models.triage import Judgement
from service.database import MIGRATIONS
from service.server import Server
from service.store import Store, Stored, result_id
from service.tables import metadata
from tests.service.scans import ask as ask_site
from tests.service.scans import scan

pytestmark = pytest.mark.dialects

ACCEPT = Judgement("accept", ("within_limits",))
REVIEW = Judgement("review", ("uid_reused",))
LIMITS = "1" * 64
OTHER_LIMITS = "2" * 64


def by_reuse(reused: bool) -> Judgement:
    return REVIEW if reused else ACCEPT


def ask(file: Path, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(file)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def everything(store: Store, table: str) -> list[tuple[Any, ...]]:
    with store.reading() as connection:
        return [tuple(row) for row in connection.execute(sa.select(metadata.tables[table]))]


def count(store: Store, table: str) -> int:
    return len(everything(store, table))


def test_recording_twice_is_recording_once(store: Store, row: Any) -> None:
    assert store.record(row(1), None, LIMITS, by_reuse) == (True, ACCEPT)
    before = everything(store, "results")
    assert store.record(row(1) | {"predicted_loss": 9.0}, None, LIMITS, by_reuse) == (False, ACCEPT)
    assert everything(store, "results") == before
    assert count(store, "verdicts") == 1


def test_what_is_read_is_what_was_recorded(store: Store, row: Any, predictor: Predictor) -> None:
    written = row(2)
    store.record(written, "1.2.3", LIMITS, by_reuse)
    stored = store.find(written["id"])
    assert stored is not None
    assert {name: stored.result[name] for name in written} == written
    assert stored.model["card"] == predictor.card.model_dump(mode="json")
    assert stored.prediction.features.dtype == np.float32
    assert stored.prediction.features.tobytes() == written["features"]
    assert store.verdict(written["id"]) == ("1.2.3", ACCEPT)
    assert store.find("0" * 64) is None
    assert store.verdict("0" * 64) is None


def test_the_key_needs_image_and_model() -> None:
    assert len({result_id("a", "b"), result_id("b", "a"), result_id("a", "c"), result_id("c", "b")}) == 4
    regions = [(0, 0, 1, 2), (0, 0, 12, 3), (0, 0, 1, 23), (0, 1, 2, 3)]
    assert len({result_id("a", "b"), *(result_id("a", "b", region) for region in regions)}) == 5
    # What was stored before there were regions is still found
    assert result_id("a", "b") == hashlib.sha256(b"a:b").hexdigest()


def test_threads_make_one_row(store: Store, row: Any) -> None:
    written = row(3)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: store.record(written, "1.2", LIMITS, by_reuse)[0], range(40)))
    assert sum(found) == 1
    assert [count(store, table) for table in ("results", "instances", "verdicts")] == [1, 1, 1]


def _record_in_process(where: Path | Server, rows: list[dict[str, Any]], barrier: Any, answers: Any) -> None:
    store = Store(where)
    barrier.wait(30)
    answers.put([store.record(item, None, LIMITS, by_reuse)[0] for item in rows])
    store.close()


def test_processes_on_one_database_make_each_row_once(store: Store, where: Path | Server, row: Any) -> None:
    rows = [row(seed) for seed in range(10, 22)]
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(3), context.Queue()
    workers = [context.Process(target=_record_in_process, args=(where, rows, barrier, answers)) for _ in range(3)]
    for worker in workers:
        worker.start()
    made = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert [sum(column) for column in zip(*made, strict=True)] == [1] * len(rows)
    assert count(store, "results") == len(rows)


def _open_in_process(file: Path, barrier: Any) -> None:
    barrier.wait(30)
    Store(file).close()


def test_processes_that_start_at_once_migrate_once(file: Path) -> None:
    file.parent.mkdir()
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    workers = [context.Process(target=_open_in_process, args=(file, barrier)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert ask(file, "SELECT version_num FROM alembic_version") == [("0011",)]


def old_schema(file: Path) -> None:
    """Make a database of the first schema, as a service before segmentations left it."""
    file.parent.mkdir(exist_ok=True)
    engine = sa.create_engine(f"sqlite:///{file}")
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "0001")
    engine.dispose()


def test_an_old_database_keeps_its_results(file: Path, row: Any, predictor: Predictor) -> None:
    old_schema(file)
    written = row(4)
    assert written.pop("segmentation") is None
    connection = sqlite3.connect(file)
    card = predictor.card
    connection.execute(
        "INSERT INTO models VALUES (?, ?, ?, ?, '2026-01-01')",
        (predictor.sha256, card.name, card.version, card.model_dump_json()),
    )
    values = [json.dumps(value) if isinstance(value, dict | list) else value for value in written.values()]
    names = ", ".join(f'"{name}"' for name in written)
    marks = ", ".join("?" * len(values))
    connection.execute(f"INSERT INTO results ({names}, created_at) VALUES ({marks}, '2026-01-01')", values)
    connection.commit()
    with pytest.raises(sqlite3.OperationalError, match="no such column"):
        connection.execute("SELECT segmentation FROM results")
    connection.close()
    store = Store(file)
    found = store.find(written["id"])
    assert found is not None
    assert {name: found.result[name] for name in written} == written
    assert found.result["segmentation"] is None
    assert store.record(row(4), None, LIMITS, by_reuse) == (False, ACCEPT)
    store.close()
    assert ask(file, "SELECT version_num FROM alembic_version") == [("0011",)]


def test_opening_again_changes_nothing(store: Store, file: Path, row: Any) -> None:
    store.record(row(4), None, LIMITS, by_reuse)
    schema = ask(file, "SELECT sql FROM sqlite_master ORDER BY name")
    again = Store(file)
    assert ask(file, "SELECT sql FROM sqlite_master ORDER BY name") == schema
    assert again.find(row(4)["id"]) is not None
    again.close()


def test_migrations_lead_to_the_tables_in_the_code(store: Store, file: Path, tmp_path: Path) -> None:
    from_code = tmp_path / "code.sqlite3"
    engine = sa.create_engine(f"sqlite:///{from_code}")
    metadata.create_all(engine)
    engine.dispose()

    def shape(database: Path) -> dict[str, Any]:
        names = [name for (name,) in ask(database, "SELECT name FROM sqlite_master WHERE type = 'table'")]
        names = sorted(set(names) - {"alembic_version", "sqlite_sequence"})
        return {
            name: [
                [column[1:] for column in ask(database, f"PRAGMA table_info({name})")],
                sorted(key[2:5] for key in ask(database, f"PRAGMA foreign_key_list({name})")),
                sorted(index[1:4] for index in ask(database, f"PRAGMA index_list({name})")),
            ]
            for name in names
        }

    assert shape(file) == shape(from_code)
    assert set(shape(file)) == {
        *("models", "results", "instances", "verdicts"),
        *("pacs_positions", "pacs_instances", "pacs_objects"),
        *("kept_images", "items", "leases", "skips", "labels", "promotions", "comparisons"),
        *("site_keys", "sessions", "audit", "site_health", "station_health"),
    }


def test_a_uid_with_other_pixels_is_reused(store: Store, row: Any) -> None:
    first, second = row(5), row(6)
    assert store.record(first, "1.2.3", LIMITS, by_reuse) == (True, ACCEPT)
    assert store.record(second, "1.2.3", LIMITS, by_reuse) == (True, REVIEW)
    # Sent again, each keeps what it was: the first is not blamed for the second.
    assert store.record(first, "1.2.3", LIMITS, by_reuse) == (False, ACCEPT)
    assert store.record(second, "1.2.3", LIMITS, by_reuse) == (False, REVIEW)


def test_a_uid_that_no_database_keeps_is_refused(make_site: Any, connect: Any) -> None:
    site, uid = make_site(), b"1.2.826.0.1.3680043.424242.777"
    body = scan(1, SOPInstanceUID=uid.decode())
    answer = connect(site).predict(body.replace(uid, uid[:-2] + b"\0" + uid[-1:]), "application/dicom")
    assert (answer.status_code, answer.json()["code"]) == (400, "inconsistent_image")
    assert ask_site(site, "SELECT count(*) FROM results") == [(0,)]
    padded = connect(site).predict(body.replace(uid, uid[:-1] + b"\0"), "application/dicom")
    assert padded.json()["sop_instance_uid"] == uid[:-1].decode(), "one of an odd length ends with a NUL"


def test_pixels_under_another_uid_are_not_reused(store: Store, row: Any) -> None:
    first = row(7)
    store.record(first, "1.2.3", LIMITS, by_reuse)
    assert store.record(first, "1.2.4", LIMITS, by_reuse) == (False, ACCEPT)
    assert store.record(first, None, LIMITS, by_reuse) == (False, ACCEPT)
    assert [count(store, table) for table in ("results", "instances", "verdicts")] == [1, 2, 3]
    assert store.verdict(first["id"], "1.2.3", LIMITS) == ("1.2.3", ACCEPT)


def test_other_limits_add_a_verdict_and_keep_the_old(store: Store, row: Any) -> None:
    written = row(8)
    store.record(written, "1.2", LIMITS, by_reuse)
    changed = Judgement("review", ("predicted_loss_high",))
    assert store.record(written, "1.2", OTHER_LIMITS, lambda _: changed) == (False, changed)
    assert store.verdict(written["id"]) == ("1.2", changed)
    assert store.verdict(written["id"], "1.2", LIMITS) == ("1.2", ACCEPT)
    assert store.verdict(written["id"], "1.2", "3" * 64) is None
    assert count(store, "verdicts") == 2


def test_the_stored_verdict_wins_over_a_new_one(store: Store, row: Any) -> None:
    """Two callers at once may judge differently (one saw the UID reused); what is answered is what is stored."""
    written = row(9)
    store.record(written, "1.2", LIMITS, lambda _: ACCEPT)
    assert store.record(written, "1.2", LIMITS, lambda _: REVIEW)[1] == ACCEPT


def test_every_commit_is_synchronous(store: Store, file: Path) -> None:
    with store._writer.connect() as connection:
        for pragma, value in (("synchronous", 2), ("journal_mode", "wal"), ("foreign_keys", 1)):
            assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar() == value


def test_nobody_else_can_read_the_files(file: Path, predictor: Predictor, row: Any) -> None:
    before = os.umask(0)
    try:
        store = Store(file)
        store.register(predictor)
        store.record(row(1), None, LIMITS, by_reuse)
        modes = {path.name: path.stat().st_mode & 0o777 for path in file.parent.iterdir()}
        store.close()
    finally:
        os.umask(before)
    assert len(modes) == 4
    assert set(modes.values()) == {0o600}
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_stored_is_what_a_row_and_a_model_say(row: Any) -> None:
    prediction = Stored(row(1), {}).prediction
    assert prediction.heatmap is None
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
