"""Leases: one item a reader at a time, among threads, among processes, and over time."""

from __future__ import annotations

import multiprocessing
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import service.leases
from models.errors import Refusal
from service.analysis import Site
from service.leases import Held, Leases
from service.server import Server
from service.store import Store
from tests.service.scans import ALL, ask, scan, take

pytestmark = pytest.mark.dialects


class Clock:
    """The time of the leases, which a test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(service.leases, "time", clock)
    return clock


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """A site with five open items, 1 to 5."""
    site = make_site(**ALL)
    for seed in range(5):
        take(site, scan(seed))
    return site


def model_of(site: Site) -> str:
    return site.predictor(None).sha256


def leases(site: Site, readers: int = 1) -> Leases:
    return Leases(site.store, 15, readers)


def held_by(item: Held | None) -> int | None:
    return item.item_id if item is not None else None


def label(site: Site, item_id: int, reader: str) -> None:
    """Write the row of a label; only who gave it matters here."""
    ask(
        site,
        "INSERT INTO labels (label_id, item_id, result_id, image_sha256, model_sha256, reader, standing, kind, document,"
        " model_was_right, source, created_at)"
        " SELECT CAST(? AS VARCHAR) || id, id, result_id, image_sha256, model_sha256, ?, 'reader', 'classes',"
        " '{}', true, 'api', '2026-01-01 00:00:00' FROM items WHERE id = ?",
        reader,
        reader,
        item_id,
    )


def code(call: Callable[[], Any]) -> str:
    with pytest.raises(Refusal) as caught:
        call()
    return caught.value.code


def test_two_readers_never_have_the_same_item(site: Site) -> None:
    held = [leases(site).take(f"r{turn % 2}", model_of(site), range(1, 6)) for turn in range(6)]
    assert [held_by(item) for item in held] == [1, 2, 3, 4, 5, None]
    assert code(lambda: leases(site).take_named("r1", model_of(site), 1)) == "item_taken"


def race(where: Path | Server, model: str, readers: int, names: list[str], start: Any) -> list[int]:
    """Take everything that can be had, in a thread a reader; return the numbers of the items."""
    store = Store(where)
    got: list[int] = []

    def read(name: str) -> None:
        start.wait(60)
        while (held := Leases(store, 15, readers).take(name, model, range(1, 13))) is not None:
            got.append(held.item_id)

    threads = [threading.Thread(target=read, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()
    return got


def race_in_process(where: Path | Server, model: str, readers: int, names: list[str], start: Any, results: Any) -> None:
    results.put(race(where, model, readers, names, start))


@pytest.mark.parametrize("readers", [1, 2])
def test_threads_of_two_processes_on_one_database(make_site: Callable[..., Site], readers: int) -> None:
    site = make_site(**ALL)
    for seed in range(12):
        take(site, scan(seed))
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(8), context.Queue()
    given = [(site.settings.store, model_of(site), readers, [f"{n}-{i}" for i in range(4)], start, results) for n in "ab"]
    workers = [context.Process(target=race_in_process, args=each) for each in given]
    for worker in workers:
        worker.start()
    got = [number for _ in workers for number in results.get(timeout=60)]
    for worker in workers:
        worker.join(30)
    assert Counter(got) == dict.fromkeys(range(1, 13), readers)
    assert ask(site, "SELECT count(*), count(DISTINCT lease_id) FROM leases") == [(12 * readers, 12 * readers)]


def test_a_lease_in_two_steps_would_be_given_twice(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its transaction, the race above ends otherwise."""
    hold, barrier = Leases._hold, threading.Barrier(2, timeout=60)
    monkeypatch.setattr(Leases, "_hold", lambda *given: (barrier.wait(), hold(*given))[1])
    monkeypatch.setattr(Store, "writing", Store.reading)
    got: list[int | None] = []

    def read(name: str) -> None:
        got.append(held_by(leases(site).take(name, model_of(site), [1])))

    threads = [threading.Thread(target=read, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [1, 1]


def test_double_reading_gives_an_item_to_two_and_to_nobody_twice(site: Site) -> None:
    double = leases(site, readers=2)
    first = double.take("anna", model_of(site), [1])
    assert held_by(double.take("anna", model_of(site), [1])) is None
    assert held_by(double.take("bert", model_of(site), [1])) == 1
    assert held_by(double.take("carl", model_of(site), [1])) is None
    assert first is not None
    label(site, 1, "anna")
    double.give_back("anna", first.lease_id)
    assert held_by(double.take("anna", model_of(site), [1])) is None, "never the same person twice"
    assert held_by(double.take("carl", model_of(site), [1])) is None, "one place is left, and it is Bert's"


def test_adjudication_is_for_one_who_has_not_read_it(site: Site) -> None:
    double = leases(site, readers=2)
    label(site, 1, "anna")
    label(site, 1, "bert")
    ask(site, "UPDATE items SET state = 'adjudicate' WHERE id = 1")
    assert held_by(double.take("anna", model_of(site), [1])) is None
    assert held_by(double.take("carl", model_of(site), [1])) == 1
    assert held_by(double.take("dora", model_of(site), [1])) is None


@pytest.mark.parametrize("state", ["done", "expired", "withdrawn"])
def test_what_does_not_wait_is_not_leased(site: Site, state: str) -> None:
    ask(site, "UPDATE items SET state = ?", state)
    assert leases(site).take("anna", model_of(site), range(1, 6)) is None
    assert code(lambda: leases(site).take_named("anna", model_of(site), 1)) == "item_taken"


def test_what_another_package_scored_is_not_leased(site: Site) -> None:
    assert leases(site).take("anna", "0" * 64, range(1, 6)) is None
    assert code(lambda: leases(site).take_named("anna", "0" * 64, 1)) == "item_taken"


def test_a_lease_ends_in_time(site: Site, clock: Clock) -> None:
    """A reader who vanishes keeps nothing from others for longer than that."""
    held = leases(site).take("anna", model_of(site), [1])
    assert held is not None
    assert held.until == clock.now + 900
    clock.now += 899
    assert leases(site).active() == 1
    assert leases(site).take("bert", model_of(site), [1]) is None
    clock.now += 1
    assert leases(site).active() == 0
    assert held_by(leases(site).take("bert", model_of(site), [1])) == 1
    assert code(lambda: leases(site).renew("anna", held.lease_id)) == "lease_lost"


def test_a_lease_that_ran_out_goes_on_where_nobody_took_the_item(site: Site, clock: Clock) -> None:
    held = leases(site).take("anna", model_of(site), [1])
    assert held is not None
    clock.now += 5000
    assert leases(site).renew("anna", held.lease_id) == Held(1, held.lease_id, clock.now + 900)
    assert leases(site).take("bert", model_of(site), [1]) is None


def test_of_two_places_the_one_that_ran_out_is_given_away(site: Site, clock: Clock) -> None:
    double = leases(site, readers=2)
    anna = double.take("anna", model_of(site), [1])
    clock.now += 1000
    bert = double.take("bert", model_of(site), [1])
    assert anna is not None
    assert bert is not None
    assert double.renew("anna", anna.lease_id).until == clock.now + 900, "there was a place for both"
    clock.now += 901
    assert held_by(double.take("carl", model_of(site), [1])) == 1
    left = {row[0] for row in ask(site, "SELECT lease_id FROM leases")}
    assert len(left & {anna.lease_id, bert.lease_id}) == 1


def test_a_named_item_goes_on_with_the_same_lease(site: Site, clock: Clock) -> None:
    first = leases(site).take_named("anna", model_of(site), 3)
    clock.now += 100
    assert leases(site).take_named("anna", model_of(site), 3) == Held(3, first.lease_id, clock.now + 900)


def test_nobody_uses_anothers_lease(site: Site) -> None:
    held = leases(site).take("anna", model_of(site), [1])
    assert held is not None
    for step in (leases(site).renew, leases(site).give_back):
        assert code(lambda step=step: step("bert", held.lease_id)) == "lease_lost"
        assert code(lambda step=step: step("anna", "0" * 32)) == "lease_lost"
    assert code(lambda: leases(site).skip("bert", held.lease_id, "unsure")) == "lease_lost"
    assert ask(site, "SELECT count(*) FROM skips") == [(0,)]
    assert leases(site).renew("anna", held.lease_id).item_id == 1


def test_returning_and_passing_over(site: Site) -> None:
    one = leases(site)
    held = one.take("anna", model_of(site), [1])
    assert held is not None
    assert one.give_back("anna", held.lease_id) == 1
    assert code(lambda: one.give_back("anna", held.lease_id)) == "lease_lost"
    held = one.take("bert", model_of(site), [1])
    assert held is not None
    assert one.skip("bert", held.lease_id, "unreadable") == 1
    assert ask(site, "SELECT item_id, reader, reason FROM skips") == [(1, "bert", "unreadable")]
    assert site.loop.items.progress(1, "anna") == (0, False, {"unreadable": 1})
    model = model_of(site)
    assert [place.item_id for place in site.loop.worklist.choose(model, "bert", 9)].count(1) == 0
    assert [place.item_id for place in site.loop.worklist.choose(model, "anna", 9)].count(1) == 1


def test_old_leases_are_forgotten(site: Site, clock: Clock) -> None:
    leases(site).take("anna", model_of(site), [1])
    clock.now += service.leases.KEPT_SECONDS
    leases(site).forget()
    assert ask(site, "SELECT count(*) FROM leases") == [(1,)]
    clock.now += 901
    leases(site).forget()
    assert ask(site, "SELECT count(*) FROM leases") == [(0,)]
