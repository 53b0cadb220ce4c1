"""A site's SQLite database arrives in PostgreSQL as a whole, row by row the same, or not at all."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from models.errors import Refusal
from service import migrate_database
from service.analysis import Site
from service.leases import Leases
from service.migrate_database import main
from service.server import Server
from service.store import Store
from service.tables import audit, metadata, verdicts
from tests.postgresql import Cluster
from tests.service.scans import ALL, ask, scan, take


@pytest.fixture
def old(make_site: Callable[..., Site]) -> Site:
    """A site with scans, items, a lease and an audit, in SQLite."""
    site = make_site(**ALL)
    for seed in range(3):
        take(site, scan(seed))
    assert Leases(site.store, 15, 1).take("anna", site.predictor(None).sha256, [2]) is not None
    return site


@pytest.fixture
def target(postgresql: Cluster, database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    postgresql.empty(database)
    monkeypatch.setenv("OVERREAD_DATABASE_URL", postgresql.url(database))
    store = Store(Server(SecretStr(postgresql.url(database)), SecretStr("")))
    yield store
    store.close()


def everything(store: Store) -> dict[str, set[str]]:
    """Return every row of every table but the audit, as text; times without their zone."""
    with store.reading() as connection:
        return {
            table.name: {str(row).replace(", tzinfo=datetime.timezone.utc", "") for row in connection.execute(sa.select(table))}
            for table in metadata.sorted_tables
            if table is not audit
        }


def test_every_row_arrives(old: Site, target: Store, capsys: Any) -> None:
    before = everything(old.store)
    assert {name for name, rows in before.items() if rows} >= {
        "results",
        "verdicts",
        "items",
        "leases",
        "kept_images",
        "site_keys",
    }
    assert main(["--from", str(old.settings.state)]) == 0
    assert everything(target) == before
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{sum(map(len, before.values()))} rows are in PostgreSQL")
    with target.reading() as connection:
        assert connection.execute(sa.select(audit.c.action)).scalars().all() == ["database_migrated"]


def test_the_site_goes_on_there(
    old: Site, target: Store, make_site: Callable[..., Site], postgresql: Cluster, database: str
) -> None:
    body = scan(6)
    first = take(old, body)
    main(["--from", str(old.settings.state)])
    moved = make_site(database_url=postgresql.url(database), **ALL)
    assert take(moved, body).stored.result["id"] == first.stored.result["id"]
    with target.reading() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(verdicts)).scalar_one() == 4, "it was known"
    take(moved, scan(7))  # numbers go on where they were
    assert moved.loop.leases.take("bert", moved.predictor(None).sha256, [2, 1]).item_id == 1  # type: ignore[union-attr]


def test_one_that_holds_rows_is_refused_and_left_alone(old: Site, target: Store) -> None:
    main(["--from", str(old.settings.state)])
    before = everything(target)
    take(old, scan(8))
    with pytest.raises(Refusal, match="output_exists"):
        main(["--from", str(old.settings.state)])
    assert everything(target) == before


def test_what_postgresql_does_not_take_is_told_and_nothing_kept(old: Site, target: Store) -> None:
    ask(old, "UPDATE instances SET sop_instance_uid = ?", "1." * 60)
    with pytest.raises(Refusal, match=r"data_invalid.*instances"):
        main(["--from", str(old.settings.state)])
    assert not any(everything(target).values())


def test_a_row_that_changes_on_its_way_is_seen(old: Site, target: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = migrate_database._copy

    def changing(table: sa.Table, reading: sa.Connection, writing: sa.Connection) -> Any:
        digest = copy(table, reading, writing)
        if table is verdicts:
            writing.execute(sa.update(verdicts).where(verdicts.c.id == 2).values(verdict="accept", reasons=["planted"]))
        return digest

    monkeypatch.setattr(migrate_database, "_copy", changing)
    with pytest.raises(Refusal, match="verdicts did not arrive"):
        main(["--from", str(old.settings.state)])
    assert not any(everything(target).values())


def _die_after(table: str, state: Path) -> None:
    copy = migrate_database._copy

    def dying(*given: Any) -> Any:
        digest = copy(*given)
        if given[0].name == table:
            os._exit(9)
        return digest

    migrate_database._copy = dying
    main(["--from", str(state)])


def test_killed_half_way_it_can_be_made_again(old: Site, target: Store) -> None:
    before = everything(old.store)
    process = multiprocessing.get_context("fork").Process(target=_die_after, args=("verdicts", old.settings.state))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert not any(everything(target).values())
    assert main(["--from", str(old.settings.state)]) == 0
    assert everything(target) == before


def test_without_an_address_or_a_database_it_is_refused(target: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refusal, match="no SQLite database"):
        main(["--from", str(tmp_path)])
    monkeypatch.delenv("OVERREAD_DATABASE_URL")
    with pytest.raises(Refusal, match="not set"):
        main(["--from", str(tmp_path)])
