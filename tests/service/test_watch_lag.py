"""How far behind the archive the watch is, and when the archive last answered: what the alerts look at."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from service import watch as module
from service.arrivals import DONE, Arrivals, Position
from service.measured import measure_archive
from service.places import Place
from service.store import Store
from service.tables import pacs_instances, pacs_positions

pytestmark = pytest.mark.dialects


def age(store: Store, table: sa.Table, seconds: float) -> None:
    with store.writing() as connection:
        connection.execute(sa.update(table).values(updated_at=datetime.now(UTC) - timedelta(seconds=seconds)))


def test_the_longest_wait_is_of_what_waits(store: Store) -> None:
    arrivals = Arrivals(store)
    assert arrivals.longest_wait() == 0
    arrivals.note([Place("a")], Position(1, ""))
    age(store, pacs_instances, 1000)
    arrivals.note([Place("b")], Position(2, ""))
    assert arrivals.longest_wait() == pytest.approx(1000, abs=30)
    first = arrivals.due(2)[0]
    arrivals.settle(first.id, DONE)
    assert arrivals.longest_wait() < 30
    arrivals.note([Place("a")], Position(3, ""))  # it came anew: it did not wait while it was done
    assert arrivals.longest_wait() < 30


def test_a_look_without_news_is_noted(start: Any, archive: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = start(pacs_history=False)
    site = watch._site
    arrivals = Arrivals(site.store)
    assert arrivals.last_look() is None
    watch.step()
    age(site.store, pacs_positions, 1000)
    watch.step()
    assert _ago(arrivals) > 900, "not at each look: each is a write to the disk"
    monkeypatch.setattr(module, "LOOK_SECONDS", 0)
    watch.step()
    assert _ago(arrivals) < 30
    age(site.store, pacs_positions, 1000)
    monkeypatch.setattr(archive, "changes", _away)
    monkeypatch.setattr(archive, "last_change", _away)
    with pytest.raises(ConnectionError):
        watch.step()
    assert _ago(arrivals) > 900, "an archive that is away gave no answer"
    measure_archive(site)
    text = site.telemetry.exposition()[0].decode()
    value = next(line for line in text.splitlines() if line.startswith("overread_pacs_last_look_timestamp_seconds"))
    assert datetime.now(UTC).timestamp() - float(value.split()[1]) > 900


def _away(*_: Any) -> None:
    raise ConnectionError


def _ago(arrivals: Arrivals) -> float:
    at = arrivals.last_look()
    assert at is not None
    return (datetime.now(UTC) - at).total_seconds()
