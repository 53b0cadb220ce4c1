"""Promises about limits: exact bounds, and a chance of being wrong that holds although many limits are tried."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from models.thresholds import beginning, labels_needed, loosest, lower_bound


def test_exact_bounds_are_those_of_the_books() -> None:
    assert lower_bound(10, 10, 0.95) == pytest.approx(0.05 ** (1 / 10))  # all right: the n-th root of the level
    assert lower_bound(0, 10, 0.95) == 0.0
    # Clopper-Pearson by definition: at the bound the tail holds the level
    assert stats.binom.sf(14, 148, lower_bound(15, 148, 0.95)) == pytest.approx(0.05)
    assert lower_bound(0, 0, 0.95) == 0.0


def test_labels_needed_is_the_rule_of_three() -> None:
    assert labels_needed(0.9, 0.95) == 29  # 0.9^28 > 0.05 >= 0.9^29
    assert lower_bound(29, 29, 0.95) >= 0.9 > lower_bound(28, 28, 0.95)


def scored(random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    chance = random.random(n)
    right = random.random(n) < chance
    limits = np.linspace(0.95, 0.05, 19)
    return limits, chance[None] >= limits[:, None], right, chance


def test_the_loosest_limit_that_holds_is_found() -> None:
    limits, within, right, chance = scored(np.random.default_rng(0), 4000)
    labelled = np.arange(2000)
    start = beginning(within, chance, labelled, 0.8, 0.95)
    assert 0.7 < limits[start] < 0.9
    found = loosest(limits.tolist(), within[:, labelled], right[labelled], start, 0.8, 0.95)
    assert found is not None
    assert 0.6 < found.limit <= 0.7  # within 0.6, right is 0.8 exactly
    assert found.low >= 0.8
    assert found.n == within[limits.tolist().index(found.limit), labelled].sum()


def test_few_labels_promise_nothing() -> None:
    limits, within, right, _ = scored(np.random.default_rng(0), 15)
    for start in range(len(limits)):
        assert loosest(limits.tolist(), within, right, start, 0.9, 0.95) is None
    assert loosest([0.5], np.zeros((1, 15), bool), right, 0, 0.9, 0.95) is None


def test_labelled_images_have_no_say_in_where_the_tests_begin() -> None:
    random = np.random.default_rng(0)
    _, within, _, chance = scored(random, 400)
    labelled = np.arange(0, 400, 2)
    start = beginning(within, chance, labelled, 0.8, 0.95)
    other = chance.copy()
    other[labelled] = random.random(200)
    assert beginning(within, other, labelled, 0.8, 0.95) == start
    moved = chance.copy()
    moved[1::2] = 1.0  # the control: those without a label have
    assert beginning(within, moved, labelled, 0.8, 0.95) == len(within) - 1


def test_where_every_image_is_labelled_the_tests_begin_where_labels_are_enough() -> None:
    within = np.arange(20)[:, None] >= np.arange(400)[None] // 20  # 20 more images a limit
    everyone = np.arange(400)
    assert beginning(within, np.ones(400), everyone, 0.9, 0.95) == 2  # 60 labels; 29 promise 0.9 if all are right
    assert beginning(within, np.zeros(400), everyone, 0.9, 0.95) == 2
    assert beginning(within, np.ones(400), everyone, 0.99, 0.95) == 19  # 598 would be wanted: all there are


def test_the_best_looking_limit_breaks_promises_that_the_tested_ones_keep() -> None:
    random = np.random.default_rng(1)
    broken = naive = 0
    for _ in range(500):
        limits, within, _, chance = scored(random, 500)
        labelled = np.arange(150)
        right = random.random(150) < 0.8  # no limit does better than the target: every promise above it is broken
        start = beginning(within, chance, labelled, 0.8, 0.95)
        broken += loosest(limits.tolist(), within[:, labelled], right, start, 0.8, 0.95) is not None
        naive += any(lower_bound(int(right[row].sum()), int(row.sum()), 0.95) >= 0.8 for row in within[:, labelled])
    assert broken <= 0.07 * 500
    assert naive > 0.1 * 500
