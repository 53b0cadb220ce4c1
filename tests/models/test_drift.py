"""The drift test keeps its promise while nothing changes, and sees a change."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from models import drift
from models.drift import ALARM, BETS, REFERENCE, Drift, DriftTest, bets, edges, replay, uniform

UNIT: Any = SimpleNamespace(loss_quantiles=tuple(np.linspace(-2, 2, 101)), domain_quantiles=tuple(np.linspace(0.5, 2, 101)))


def scans(seed: int, number: int, loss: float = 0.0, spread: float = 1.0) -> Any:
    """Scores (N, 2) of a site; both depend on one another."""
    common, own = np.random.default_rng(seed).normal(size=(2, number))
    return np.stack([loss + spread * common, 1.2 + 0.2 * spread * (0.8 * common + 0.6 * own)], axis=1)


def test_every_bet_is_a_density() -> None:
    grid = (np.arange(20_000) + 0.5) / 20_000
    means = np.mean([bets(rank) for rank in grid], axis=0)
    np.testing.assert_allclose(means, 1, atol=0.01)
    assert all((bets(rank) >= 0).all() for rank in (0.0, 1e-9, 0.5, 1 - 1e-16))


def test_bins_follow_from_the_card_and_reach_beyond_it() -> None:
    table = edges(UNIT.domain_quantiles)
    assert (np.diff(table) > 0).all()
    assert np.searchsorted(table, 2.0) < len(table) - drift.BEYOND + 1
    assert table[-1] == pytest.approx(2 + 2 * 1.5)
    assert len(edges([3.0] * 101)) == 2 * drift.BEYOND + 1  # a card whose scores are all one


def test_the_chance_of_a_false_alarm_is_below_the_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a limit of 2,000, at most 30% of runs of 600 scans may alarm; 41 of 100 runs by chance (binomial, 1%).

    The theory's bound is for any limit.
    """
    monkeypatch.setattr(drift, "ALARM", 2000.0)
    runs = [replay(UNIT, scans(seed, REFERENCE + 600), seed).alarm_at for seed in range(100)]
    assert np.mean([alarm is not None for alarm in runs]) <= 0.41


def mean_excess() -> float:
    """Return by how many standard errors the statistic's mean is off 10, 10 scans after the reference, where nothing changes."""
    found = [replay(UNIT, scans(seed, 30), seed).statistic for seed in range(1200)]
    return float((np.mean(found) - 10) / (np.std(found) / np.sqrt(len(found))))


def test_the_mean_of_the_statistic_is_the_number_of_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    """R_n - n is a martingale whatever the reference: a bet that gains on average without a change is seen here."""
    monkeypatch.setattr(drift, "REFERENCE", 20)
    assert abs(mean_excess()) < 4
    monkeypatch.setattr(drift, "bets", lambda rank: 1.05 * bets(rank))
    assert mean_excess() > 4


def test_ranks_need_the_ties_broken() -> None:
    """The control: without random ties, equal scores rank highest each time, and a site that never changes alarms."""
    test, state = DriftTest(UNIT), Drift.start(UNIT)
    random = np.random.default_rng(0)
    for _ in range(REFERENCE + 300):
        test.see(state, (0.0, 1.0), tuple(random.random(2)))  # type: ignore[arg-type]
    assert state.alarm_at is None
    for _ in range(300):
        test.see(state, (0.0, 1.0), (0.999, 0.999))
    assert state.alarm_at is not None


@pytest.mark.parametrize("change", [{"loss": 1.0}, {"loss": -1.0}, {"spread": 3.0}, {"spread": 0.3}])
def test_a_change_is_seen_in_200_scans_and_stays_seen(change: dict[str, float]) -> None:
    before = scans(1, 600)
    state = replay(UNIT, np.concatenate([before, scans(2, 200, **change)]), 0)
    assert state.alarm_at is not None
    assert 600 < state.alarm_at <= 800
    later = replay(UNIT, np.concatenate([before, scans(2, 200, **change), scans(3, 50)]), 0)
    assert later.alarm_at == state.alarm_at
    assert replay(UNIT, scans(1, 800), 0).alarm_at is None


def test_nothing_is_bet_before_the_reference_is_there() -> None:
    state = replay(UNIT, np.concatenate([scans(1, 100), scans(2, REFERENCE - 100, loss=3.0)]), 0)
    assert state.ready
    assert state.statistic == 0
    assert not replay(UNIT, scans(1, REFERENCE - 1), 0).ready


def test_scores_far_outside_and_long_runs_stay_finite() -> None:
    state = replay(UNIT, np.concatenate([scans(1, 400), np.full((2000, 2), 1e30)]), 0)
    assert np.isfinite(state.wealth).all()
    assert state.wealth.shape == (2, BETS)
    assert state.statistic >= ALARM
    assert [int(counts[-1]) for counts in state.counts] == [2000, 2000]


def test_ties_of_a_result_are_uniform_and_the_same_each_time() -> None:
    assert uniform("0" * 64) == (0, 0)
    first, second = uniform("f" * 64)
    assert 0.999 < first < 1
    assert first == second
    assert uniform("8" + "0" * 63)[0] == 0.5
