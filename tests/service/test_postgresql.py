"""What is PostgreSQL's alone: schema, turns, claims, failures, and what is never told of its address."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import SecretStr

from models.errors import Refusal
from service import database as databases
from service.analysis import Site
from service.backup import backup_main, restore_main
from service.server import Server
from service.settings import read_settings
from service.store import Store
from service.tables import metadata
from tests.postgresql import Cluster

SECRET = "7ac1-never-told"


@pytest.fixture
def server(postgresql: Cluster, database: str) -> Server:
    postgresql.empty(database)
    return Server(SecretStr(postgresql.url(database)), SecretStr(""))


@pytest.fixture
def shared(server: Server) -> Iterator[Store]:
    store = Store(server)
    yield store
    store.close()


def code(call: Callable[[], Any]) -> str:
    with pytest.raises(Refusal) as caught:
        call()
    return caught.value.code


def write(store: Store, name: str = "x") -> None:
    with store.writing() as connection:
        connection.execute(sa.insert(metadata.tables["sessions"]).values(id_sha256=name, token_sha256="t", expires_at=1.0))


def test_migrations_lead_to_the_tables_in_the_code(shared: Store, postgresql: Cluster, database: str) -> None:
    def differences() -> Any:
        with shared.reading() as connection:
            options = {"compare_type": True, "compare_server_default": True}
            return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)

    assert differences() == []
    numbers = "SELECT count(*) FROM information_schema.columns WHERE column_name = 'id' AND data_type = 'bigint'"
    assert postgresql.ask(numbers, database) == [(9,)]
    postgresql.ask("ALTER TABLE items ALTER COLUMN site TYPE VARCHAR(63)", database)
    try:
        assert len(differences()) == 1, "one that differs is seen"
    finally:
        postgresql.ask("ALTER TABLE items ALTER COLUMN site TYPE VARCHAR(64)", database)


def _open(server: Server, barrier: Any) -> None:
    barrier.wait(30)
    Store(server).close()


def test_replicas_that_start_at_once_migrate_once(postgresql: Cluster) -> None:
    name = postgresql.create()
    server = Server(SecretStr(postgresql.url(name)), SecretStr(""))
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    processes = [context.Process(target=_open, args=(server, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    (version,), *others = postgresql.ask("SELECT version_num FROM alembic_version", name)
    assert others == []
    postgresql.ask("UPDATE alembic_version SET version_num = '9999'", name)
    with pytest.raises(Refusal, match="newer version"):
        Store(server)
    assert version < "9999"


def test_commits_are_durable_and_times_are_utc(shared: Store, postgresql: Cluster, database: str, server: Server) -> None:
    postgresql.ask("ALTER ROLE overread SET synchronous_commit = off; ALTER ROLE overread SET timezone = 'Asia/Tokyo'")
    try:
        fresh = Store(server)
        for connecting in (fresh.reading, fresh.writing):
            with connecting() as connection:
                for name, value in (
                    ("synchronous_commit", "on"),
                    ("TimeZone", "UTC"),
                    ("transaction_isolation", "read committed"),
                ):
                    assert connection.exec_driver_sql(f"SHOW {name}").scalar() == value
        fresh.close()
    finally:
        postgresql.ask("ALTER ROLE overread RESET ALL")


def test_a_server_that_does_not_write_to_disk_is_refused(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    # What it says is planted: to switch it off would be to restart it
    monkeypatch.setattr(databases, "_SESSION", databases._SESSION.replace("current_setting('fsync')", "'off'"))
    with pytest.raises(Refusal, match="fsync"):
        Store(server)


def test_one_writes_at_a_time_whoever_waits_too_long_is_told(shared: Store, server: Server, monkeypatch: Any) -> None:
    monkeypatch.setattr(databases, "_SESSION", databases._SESSION.replace("5s", "300ms"))
    impatient = Store(server)
    with shared.writing():
        assert code(lambda: write(impatient)) == "storage_unavailable"
        impatient.check()  # readers go on
    write(impatient)
    impatient.close()


def test_numbers_follow_the_order_of_commits(shared: Store, server: Server) -> None:
    """Who begins later commits later: what is counted by number (service.health) misses nothing."""
    other, began, order = Store(server), threading.Event(), []

    def later() -> None:
        with other.writing():
            order.append("second")

    thread = threading.Thread(target=later)
    with shared.writing():
        thread.start()
        assert not began.wait(0.3)
        order.append("first")
    thread.join(60)
    other.close()
    assert order == ["first", "second"]


def test_a_claim_is_one_processs_until_it_ends(shared: Store, server: Server, postgresql: Cluster) -> None:
    other = Store(server)
    with shared.claimed("watch") as mine, other.claimed("watch") as theirs, other.claimed("receive") as another:
        assert (mine, theirs, another) == (True, False, True)
    with other.claimed("watch") as theirs:
        assert theirs
        postgresql.ask("SELECT pg_terminate_backend(pid, 10000) FROM pg_locks WHERE locktype = 'advisory'")
        with shared.claimed("watch") as mine:
            assert mine, "what died lets it go"
    other.close()


def test_audit_rows_stay(shared: Store) -> None:
    from service.audit import Who, note

    with shared.writing() as connection:
        note(connection, Who("anna", "operator"), "result_read", ["0" * 64])
    for statement in ("UPDATE audit SET actor = 'nobody'", "DELETE FROM audit", "TRUNCATE audit"):
        with pytest.raises(Refusal), shared.writing() as connection:
            connection.exec_driver_sql(statement)
    with shared.reading() as connection:
        assert connection.exec_driver_sql("SELECT actor FROM audit").all() == [("anna",)]


@pytest.mark.parametrize(("state", "expected"), [("53100", "storage_full"), ("58030", "storage_unavailable")])
def test_a_disk_that_is_full_or_fails_is_told(
    shared: Store, postgresql: Cluster, database: str, state: str, expected: str
) -> None:
    raising = f"BEGIN RAISE EXCEPTION 'planted' USING ERRCODE = '{state}'; END"
    postgresql.ask(f"CREATE FUNCTION planted() RETURNS trigger LANGUAGE plpgsql AS $${raising}$$", database)
    postgresql.ask("CREATE TRIGGER planted BEFORE INSERT ON sessions FOR EACH ROW EXECUTE FUNCTION planted()", database)
    try:
        assert code(lambda: write(shared)) == expected
    finally:
        postgresql.ask("DROP FUNCTION planted CASCADE", database)
    write(shared)


@pytest.mark.parametrize("value", ["x" * 65, "nul\0"])
def test_what_is_not_taken_is_not_told_as_a_database_that_is_away(shared: Store, value: str) -> None:
    """Who waited for it to come back would wait for ever."""
    with pytest.raises(sa.exc.DataError):
        write(shared, value)
    write(shared)


def test_the_service_says_that_the_database_is_away_and_comes_back(
    make_site: Callable[..., Site], connect: Callable[..., Any], server: Server, postgresql: Cluster, draw: Any
) -> None:
    caller = connect(make_site(database_url=server.url.get_secret_value()))
    assert caller.get("/readyz").status_code == 200
    postgresql.stop()
    try:
        for answer in (caller.get("/readyz"), caller.predict(draw(1))):
            assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
        assert caller.get("/healthz").status_code == 200
        assert code(lambda: Store(server)) == "storage_unavailable"
    finally:
        postgresql.start()
    assert caller.get("/readyz").status_code == 200
    assert caller.predict(draw(1)).status_code == 200


def test_another_secret_is_refused(make_site: Callable[..., Site], server: Server, tmp_path: Path) -> None:
    url = server.url.get_secret_value()
    make_site(database_url=url, state=tmp_path / "one")
    with pytest.raises(Refusal, match="secret for pseudonyms"):
        make_site(database_url=url, state=tmp_path / "two")
    (tmp_path / "two" / "pseudonym.key").write_bytes((tmp_path / "one" / "pseudonym.key").read_bytes())
    make_site(database_url=url, state=tmp_path / "two")


def test_removed_bytes_leave_the_tables_files(shared: Store, postgresql: Cluster, database: str) -> None:
    def held() -> bool:
        postgresql.ask("CHECKPOINT", database)
        return any(b"erased-canary" in file.read_bytes() for file in (postgresql.data / "base").rglob("*") if file.is_file())

    write(shared, "erased-canary")
    assert held(), "the control"
    with shared.writing() as connection:
        connection.execute(sa.delete(metadata.tables["sessions"]))
    assert shared.rewrite()
    assert not held()


def test_backup_says_that_it_is_not_for_this(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OVERREAD_DATABASE_URL", server.url.get_secret_value())
    for command in (lambda: backup_main(["--out", str(tmp_path / "out")]), lambda: restore_main([str(tmp_path)])):
        assert code(command) == "config_invalid"
    assert list(tmp_path.iterdir()) == []


def test_the_password_comes_from_a_file_and_is_never_told(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(f"{SECRET}\n")
    settings = read_settings(
        {"OVERREAD_DATABASE_URL": "postgresql+psycopg://u@127.0.0.1:1/x", "OVERREAD_DATABASE_PASSWORD_FILE": str(file)}
    )
    where = settings.store
    assert isinstance(where, Server)
    assert databases.Postgresql(where)._url.password == SECRET
    with pytest.raises(Refusal) as caught:
        Store(where)
    told = [repr(where), repr(settings), str(caught.value), repr(caught.value.__cause__)]
    assert SECRET not in "".join(told)


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://u:{SECRET}@h/x",
        f"{SECRET}",
        f"postgresql+psycopg://u:{SECRET}@h:port/x",
    ],
)
def test_an_address_that_is_none_is_refused_without_being_told(url: str) -> None:
    with pytest.raises(Refusal) as caught:
        Store(read_settings({"OVERREAD_DATABASE_URL": url}).store)
    assert caught.value.code == "config_invalid"
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__
