"""Figures of a site from few labels: known answers, another implementation's, and intervals that hold as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from models import estimates
from models.estimates import MEAN_POWERED_FROM, POWERED_FROM, Estimate, Sample, mean, rate, wilson
from models.sampling import by_doubt, draw, even

ONE = np.ones
REFERENCE = (0.30883972, 0.24677453, 0.37090491)
"""What ppi_py 0.2.3 says of :func:`site`: ppi_mean_pointestimate, and the ends of ppi_mean_ci."""


def first(n: int, count: int) -> Sample:
    return Sample(np.arange(n), np.full(n, n / count))


def test_wilson_is_the_one_in_the_books() -> None:
    # Newcombe, Statistics in Medicine 1998, table I: 81 of 263, 15 of 148, 0 of 20
    for hits, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson(hits / n, n, 1.959964) == pytest.approx((low, high), abs=5e-5)


def test_without_predictions_a_rate_is_the_share_and_its_interval_is_wilsons() -> None:
    hits = np.arange(100) < 20
    found = rate(hits, ONE(100), ONE(10**7) / 2, ONE(10**7), first(100, 10**7), powered=False)
    assert found is not None
    assert (found.value, found.n, found.power, found.correlation) == (0.2, 100, 0.0, None)
    assert (found.low, found.high) == pytest.approx(wilson(0.2, 99, 1.98422), abs=1e-4)  # 99: the variance is unbiased


def site() -> tuple[np.ndarray, np.ndarray, Sample]:
    """Return labels and predictions of 2,000 images, made without a random generator, and 150 of them as the sample."""
    expected = (np.arange(2000) * 0.6180339887498949 % 1) ** 2
    truth = (np.arange(2000) * 0.7548776662466927 % 1 < 0.05 + 0.8 * expected).astype(float)
    return truth, expected, Sample(np.arange(150) * 11 + 5, np.full(150, 150 / 2000))


def test_it_agrees_with_another_implementation() -> None:
    truth, expected, sample = site()
    found = rate(truth[sample.index], ONE(150), expected, ONE(2000), sample)
    assert found is not None
    # Theirs tunes the power by all predictions at once, ours by the labelled ones: the same but for the last digits
    assert found.value == pytest.approx(REFERENCE[0], abs=2e-3)
    assert found.high - found.low == pytest.approx(REFERENCE[2] - REFERENCE[1], rel=0.02)
    plain = rate(truth[sample.index], ONE(150), expected, ONE(2000), sample, powered=False)
    assert plain is not None
    assert abs(plain.value - REFERENCE[0]) > 5e-3  # the control: labels alone say something else


def test_perfect_predictions_leave_the_spread_of_the_site_alone() -> None:
    truth, _, sample = site()
    found = rate(truth[sample.index], ONE(150), truth, ONE(2000), sample)
    assert found is not None
    assert found.value == pytest.approx(truth.mean())
    assert (found.power, found.correlation) == (pytest.approx(1), pytest.approx(1))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * np.sqrt(0.25 / 2000), rel=0.1)


def test_a_kind_without_labels_has_no_rate_and_few_hits_or_misses_leave_predictions_out() -> None:
    _, expected, sample = site()
    assert rate(ONE(150) * 0, ONE(150) * 0, expected, ONE(2000), sample) is None
    order = np.argsort(np.argsort(-expected[sample.index]))
    for hits in (POWERED_FROM, POWERED_FROM - 1):
        few = rate(order < hits, ONE(150), expected, ONE(2000), sample)
        many = rate(order >= hits, ONE(150), 1 - expected, ONE(2000), sample)
        assert few is not None
        assert many is not None
        assert (few.power > 0) == (many.power > 0) == (hits == POWERED_FROM)


def rare(resamples: int) -> float:
    """Return how often the interval of a specificity holds whose few false alarms are all among the few images called."""
    random = np.random.default_rng(3)
    held = []
    for seed in range(resamples):
        called = random.random(1500) < 0.06
        chance = np.where(called, 0.4, 0.1)
        yes = random.random(1500) < np.where(called, 0.3, 0.1)
        index = draw(even(1500, 100), seed)
        found = rate(
            (~called & ~yes)[index], ~yes[index], (1 - chance) * ~called, 1 - chance, Sample(index, np.full(100, 1 / 15))
        )
        assert found is not None
        held.append(found.low <= 0.94 * 0.9 / (0.94 * 0.9 + 0.06 * 0.7) <= found.high)
    return float(np.mean(held))


def test_few_misses_do_not_lend_predictions_a_trust_that_they_have_not_earned(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rare(500) >= 0.93
    monkeypatch.setattr(estimates, "POWERED_FROM", 1)
    assert rare(500) < 0.92


def test_no_error_among_the_labels_is_no_certainty() -> None:
    _, expected, sample = site()
    found = rate(ONE(150) * 0, ONE(150), expected, ONE(2000), sample)
    assert found is not None
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(wilson(0.0, 150, 1.976)[1], abs=1e-3)


def test_a_mean_has_a_longer_arm_where_the_values_have_a_tail() -> None:
    values = np.exp(np.random.default_rng(0).normal(size=100))
    found = mean(values, ONE(5000), first(100, 5000))
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.value > 1.3 * (found.value - found.low)
    assert found == mean(values, ONE(5000), first(100, 5000))
    assert found != mean(values, ONE(5000), first(100, 5000), seed=1)


def test_equal_values_have_no_spread() -> None:
    assert mean(ONE(30), ONE(90), first(30, 90)) == Estimate(1.0, 1.0, 1.0, 30, None, 0.0)


def world(kind: str, count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels, probabilities and calls of ``count`` images; "useless" probabilities have nothing to do with labels."""
    score = random.normal(size=count) * 1.5 - 1
    probability = 1 / (1 + np.exp(-score))
    truth = random.random(count) < (0.4 if kind == "useless" else probability)
    return truth, probability, probability >= 0.5


def simulated(kind: str, doubt: bool, resamples: int) -> dict[str, np.ndarray]:
    """Return, for each figure, whether its interval holds and its width over that of the labels alone, shape (resamples, 2)."""
    random = np.random.default_rng(1)
    y, p, called = world(kind, 1_000_000, random)
    truths = {"error": (y != called).mean(), "sensitivity": called[y].mean()}
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in truths}
    for seed in range(resamples):
        images = random.integers(0, len(y), 1500)
        yes, chance, call = y[images], p[images], called[images]
        probability = by_doubt(np.column_stack([1 - chance, chance]), call, 1, 200) if doubt else even(1500, 200)
        index = draw(probability, seed)
        sample = Sample(index, probability[index])
        for name, (hits, among, expected, kinds) in {
            "error": (yes != call, ONE(1500), np.where(call, 1 - chance, chance), ONE(1500)),
            "sensitivity": (yes & call, yes, chance * call, chance),
        }.items():
            powered, plain = (rate(hits[index], among[index], expected, kinds, sample, powered=use) for use in (True, False))
            assert powered is not None
            assert plain is not None
            rows[name].append(
                (powered.low <= truths[name] <= powered.high, (powered.high - powered.low) / (plain.high - plain.low))
            )
    return {name: np.array(found, float) for name, found in rows.items()}


@pytest.mark.parametrize("doubt", [False, True], ids=["random", "by doubt"])
@pytest.mark.parametrize("kind", ["useful", "useless"])
def test_intervals_hold_as_often_as_they_say_and_useless_predictions_cost_nothing(kind: str, doubt: bool) -> None:
    for name, found in simulated(kind, doubt, 1000).items():
        assert 0.93 <= found[:, 0].mean() <= 0.97, name
        assert found[:, 1].mean() <= 1.05, name
        if kind == "useful" and name == "sensitivity":
            assert found[:, 1].mean() < 0.85


def sure(resamples: int) -> float:
    """Return how often the interval of an error holds where the model doubts ten images of 2,000, and is wrong about the rest."""
    random = np.random.default_rng(4)
    doubtful = np.arange(2000) < 10
    chance = np.where(doubtful, 0.5, 1e-9)
    probability = by_doubt(np.column_stack([1 - chance, chance]), doubtful, 1, 40)
    held = []
    for seed in range(resamples):
        wrong = random.random(2000) < np.where(doubtful, 0.5, 0.02)
        index = draw(probability, seed)
        found = rate(wrong[index], ONE(40), np.where(doubtful, 0.5, chance), ONE(2000), Sample(index, probability[index]))
        assert found is not None
        held.append(found.low <= (10 * 0.5 + 1990 * 0.02) / 2000 <= found.high)
    return float(np.mean(held))


def test_errors_of_images_that_stand_for_few_do_not_make_errors_of_the_many_impossible(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sure(400) >= 0.93
    monkeypatch.setattr(estimates, "_most", lambda hits, weights: np.inf)
    assert sure(400) < 0.6


def test_an_interval_that_ignores_how_the_labels_were_drawn_is_seen() -> None:
    random = np.random.default_rng(1)
    y, p, called = world("useful", 1_000_000, random)
    held = {True: 0, False: 0}
    for seed in range(200):
        images = random.integers(0, len(y), 1500)
        chance = np.where(called[images], 1 - p[images], p[images])
        probability = 200 * (0.25 / 1500 + 0.75 * chance / chance.sum())
        index = draw(probability, seed)
        wrong = (y != called)[images][index]
        for known in held:
            sample = Sample(index, probability[index] if known else np.full(200, 200 / 1500))
            found = rate(wrong, ONE(200), ONE(1500), ONE(1500), sample, powered=False)
            assert found is not None
            held[known] += found.low <= (y != called).mean() <= found.high
    assert held[True] >= 180
    assert held[False] < 150


def test_a_mean_loss_holds_with_and_without_predictions() -> None:
    random = np.random.default_rng(2)
    guess = random.gamma(1.0, 0.3, 200_000)
    loss = guess * random.gamma(1.0, 1.0, 200_000)
    for n in (60, MEAN_POWERED_FROM):
        held = []
        for seed in range(150):
            images = random.integers(0, len(loss), 2000)
            found = mean(loss[images[:n]], guess[images], first(n, 2000), seed=seed)
            assert (found.power > 0) == (n >= MEAN_POWERED_FROM)
            held.append(found.low <= loss.mean() <= found.high)
        assert 0.91 <= np.mean(held) <= 0.99, n


def test_a_mean_of_labels_drawn_by_doubt_leaves_predictions_out() -> None:
    values = np.random.default_rng(0).gamma(1.0, 1.0, 3000)
    probability = np.where(np.arange(3000) < 1500, 0.05, 0.15)
    index = draw(probability, 0)
    assert mean(values[index], values, Sample(index, probability[index])).power == 0
    assert mean(values[index], values, Sample(index, np.full(300, 0.1))).power == pytest.approx(1)
