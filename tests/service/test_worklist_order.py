"""What to label next: doubt, balance, one a patient, and the random share between."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.analysis import Site
from service.worklist import EVERY, WHY, Place, order
from tests.service.scans import ALL, NONE, ask, scan, take

pytestmark = pytest.mark.dialects

NUMBERS = count(1)


@dataclass(frozen=True)
class Row:
    """What :func:`order` reads of an item; each is its own patient, where none is named."""

    loss_percentile: float = 50.0
    site: str = ""
    patient: str = ""
    state: str = "open"
    given: bool = False
    probabilities: dict[str, float] = field(default_factory=lambda: {"normal": 0.4, "pneumonia": 0.6})
    features: bytes = np.zeros(2, "<f4").tobytes()
    id: int = field(default_factory=lambda: next(NUMBERS))

    def __post_init__(self) -> None:
        object.__setattr__(self, "patient", self.patient or f"own-{self.id}")


def doubtful(*percentiles: float, **options: Any) -> list[Row]:
    return [Row(percentile, **options) for percentile in percentiles]


def drawn(number: int, **options: Any) -> list[Row]:
    return [Row(10.0, **options) for _ in range(number)]


def numbers(places: Iterable[Place]) -> list[int]:
    return [place.item_id for place in places]


def test_the_most_doubtful_first() -> None:
    rows = doubtful(90, 80, 70)
    assert numbers(order(rows, [], 2, 0)) == [rows[0].id, rows[1].id]
    assert [place.why for place in order(rows, [], 2, 0)] == [("doubtful",), ("doubtful",)]


def test_one_of_a_patient() -> None:
    rows = doubtful(90, 80, patient="one") + doubtful(70)
    assert numbers(order(rows, [], 9, 0)) == [rows[0].id, rows[2].id]
    (random,) = drawn(1, patient="one")
    assert numbers(order(rows, [random], 2, 0)) == [rows[0].id, rows[2].id], "no place of these two is the random share's"
    assert numbers(order(rows, [random], 5, 0)) == [rows[2].id, random.id]


def test_sites_and_predicted_classes_take_turns() -> None:
    normal = {"normal": 0.7, "pneumonia": 0.3}
    rows = (
        doubtful(99, 98, 97, 96, site="east")
        + doubtful(60, 59, site="west")
        + doubtful(50, 49, site="east", probabilities=normal)
    )
    chosen = {row.id: row for row in rows}
    first = [chosen[number] for number in numbers(order(rows, [], 6, 0))[:3]]
    assert {(row.site, max(row.probabilities, key=row.probabilities.__getitem__)) for row in first} == {
        ("east", "pneumonia"),
        ("west", "pneumonia"),
        ("east", "normal"),
    }
    assert {why for place in order(rows, [], 6, 0) for why in place.why} <= set(WHY)
    assert "balance" in {why for place in order(rows, [], 6, 0) for why in place.why}


def test_what_is_different_is_chosen_among_the_like() -> None:
    alike, other = np.zeros(2, "<f4").tobytes(), np.full(2, 9, "<f4").tobytes()
    rows = [Row(90, features=alike), Row(89, features=alike), Row(88, features=alike), Row(87, features=other)]
    places = order(rows, [], 2, 0)
    assert numbers(places) == [rows[0].id, rows[3].id]
    assert places[1].why == ("different",)


def test_every_fifth_place_is_of_the_random_share() -> None:
    rows, random = doubtful(*range(99, 60, -1)), drawn(20)
    places = order(rows, random, 15, 0)
    held = [number for number, place in enumerate(places, 1) if place.why == ("random_share",)]
    assert held == [EVERY, 2 * EVERY, 3 * EVERY]
    assert [places[turn - 1].item_id for turn in held] == [row.id for row in random[:3]], "the oldest first"


def test_a_reader_who_takes_one_after_the_other_meets_the_random_share_too() -> None:
    rows, random = doubtful(*range(99, 60, -1)), drawn(20)
    firsts = [order(rows, random, 1, done)[0].why for done in range(10)]
    assert [number for number, why in enumerate(firsts, 1) if why == ("random_share",)] == [EVERY, 2 * EVERY]


def test_what_one_side_lacks_the_other_fills() -> None:
    rows, random = doubtful(90, 80), drawn(6)
    assert len(order(rows, random, 6, 0)) == 6
    assert len(order(rows, [], 6, 0)) == 2
    assert numbers(order([], random, 6, 0)) == [row.id for row in random]
    assert order([], [], 6, 0) == []


def test_what_readers_differ_about_comes_first() -> None:
    rows = doubtful(90) + doubtful(20, state="adjudicate") + [Row(80, given=True)]
    random = drawn(1, state="adjudicate") + drawn(1, given=True)
    assert [(place.item_id, place.why) for place in order(rows, random, 9, 0)] == [
        (rows[1].id, ("adjudication",)),
        (random[0].id, ("adjudication",)),
        (rows[0].id, ("doubtful",)),
        (rows[2].id, ("doubtful", "second_reading")),
        (random[1].id, ("random_share", "second_reading")),
    ]
    assert len(order(rows, random, 1, 0)) == 1


def test_many_lists_hold_what_they_must() -> None:
    """Whatever there is, a list is as long as it can be, and holds no item and no patient twice."""
    random = np.random.default_rng(0)
    for turn in range(300):
        rows = [
            Row(
                float(random.uniform(0, 100)),
                str(random.integers(3)),
                f"p{random.integers(12)}",
                ("open", "adjudicate")[int(random.random() < 0.1)],
            )
            for _ in range(random.integers(0, 15))
        ]
        rows.sort(key=lambda row: -row.loss_percentile)
        others = drawn(int(random.integers(0, 8)))
        budget = int(random.integers(1, 20))
        places = order(rows, others, budget, turn)
        known = {row.id: row.patient for row in [*rows, *others]}
        patients = [known[place.item_id] for place in places]
        assert len(set(patients)) == len(patients) == min(budget, len(set(known.values())))


def test_the_list_of_a_site(make_site: Callable[..., Site]) -> None:
    site = make_site(**ALL)
    for seed in range(6):
        take(site, scan(seed, "same" if seed < 3 else None))
    model = site.predictor(None)
    places = site.loop.worklist.choose(model.sha256, "anna", 30)
    assert len(places) == 4
    percentile = dict(ask(site, "SELECT items.id, loss_percentile FROM items JOIN results ON results.id = result_id"))
    assert places[0].item_id == max(percentile, key=percentile.__getitem__)
    counts = site.loop.worklist.counts("tiny", model.sha256)
    assert counts == dict.fromkeys(counts, 0) | {"open": 6}
    site.loop.leases.take("bert", model.sha256, numbers(places))
    assert places[0].item_id not in numbers(site.loop.worklist.choose(model.sha256, "anna", 30))
    assert site.loop.worklist.counts("tiny", model.sha256)["leased"] == 1


def test_results_of_another_package_wait(make_site: Callable[..., Site], make_package: Any, package: Path) -> None:
    site = make_site(**ALL, models=(package, make_package("other")))
    take(site, scan(1))
    take(site, scan(2), model="other")
    model, other = site.predictor("tiny").sha256, site.predictor("other").sha256
    assert [len(site.loop.worklist.choose(sha256, "anna", 9)) for sha256 in (model, other)] == [1, 1]
    ask(site, "UPDATE items SET model_sha256 = ? WHERE model_name = 'tiny'", other)
    assert site.loop.worklist.choose(model, "anna", 9) == []
    counts = site.loop.worklist.counts("tiny", model)
    assert (counts["open"], counts["waiting_for_scores"]) == (0, 1)


def test_the_random_share_of_a_site(make_site: Callable[..., Site]) -> None:
    site = make_site(**NONE | {"keep_random_share": 1.0})
    for seed in range(3):
        take(site, scan(seed))
    places = site.loop.worklist.choose(site.predictor(None).sha256, "anna", 30)
    assert [(place.item_id, place.why) for place in places] == [(number, ("random_share",)) for number in (1, 2, 3)]
