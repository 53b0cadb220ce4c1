"""Promises about limits: exact bounds, and a chance of being wrong that holds although many limits are tried."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from models.thresholds import labels_needed, loosest, lower_bound


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
    limits, within, right, chance = scored(np.random.default_rng(0), 2000)
    found = loosest(limits.tolist(), within, right, chance, 0.8, 0.95)
    assert found is not None
    assert 0.6 < found.limit <= 0.7  # within 0.6, right is 0.8 exactly
    assert found.low >= 0.8
    assert found.n == within[limits.tolist().index(found.limit)].sum()


def test_few_labels_promise_nothing() -> None:
    limits, within, right, chance = scored(np.random.default_rng(0), 15)
    assert loosest(limits.tolist(), within, right, chance, 0.9, 0.95) is None
    assert loosest([0.5], np.zeros((1, 15), bool), right, chance, 0.9, 0.95) is None


def test_promises_are_broken_as_seldom_as_they_say_and_the_best_looking_limit_is_not() -> None:
    random = np.random.default_rng(1)
    broken = naive = 0
    for _ in range(1000):
        limits, within, right, _ = scored(random, 150)
        right = random.random(150) < 0.8  # no limit does better than the target: every promise above it is broken
        expected = np.full(150, 0.85)
        broken += loosest(limits.tolist(), within, right, expected, 0.8, 0.95) is not None
        naive += any(lower_bound(int(right[row].sum()), int(row.sum()), 0.95) >= 0.8 for row in within)
    assert broken <= 0.065 * 1000
    assert naive > 0.1 * 1000
