"""Learning curves whose law is known: what is found, what is left out, and when nothing is said."""

from __future__ import annotations

import numpy as np
import pytest

from training.learning_curve import Curve, fit, from_power_law

TRUE = Curve(a=2.0, b=0.35, c=0.1)
SIZES = np.array([100, 200, 400, 800, 1600, 3200])


def measured(curve: Curve, noise: float, seed: int = 0, seeds: int = 3) -> tuple[list[int], list[float]]:
    random = np.random.default_rng(seed)
    sizes = np.repeat(SIZES, seeds)
    return sizes.tolist(), (1 - curve.error(sizes) * np.exp(random.normal(0, noise, len(sizes)))).tolist()


def test_a_curve_and_its_inverse() -> None:
    assert TRUE.error(2.0) == pytest.approx(2.0 * 2**-0.35 + 0.1)
    assert TRUE.labels(float(TRUE.error(5000))) == pytest.approx(5000)
    assert TRUE.labels(0.1) == float("inf")


def test_a_law_without_noise_is_found_again() -> None:
    found = fit(*measured(TRUE, 0.0))
    assert found is not None
    assert found.left_out == ()
    assert found.follows
    assert found.error(25_600)[0] == pytest.approx(float(TRUE.error(25_600)), rel=0.02)
    assert found.curve.b == pytest.approx(0.35, abs=0.03)


@pytest.mark.parametrize("curve", [TRUE, Curve(1.0, 0.2, 0.0), Curve(3.0, 0.5, 0.2)])
def test_intervals_hold_what_larger_sizes_bring(curve: Curve) -> None:
    held, errors = [], []
    for seed in range(40):
        found = fit(*measured(curve, 0.03, seed), seed=seed)
        assert found is not None
        value, low, high = found.error(12_800)
        held.append(low <= curve.error(12_800) <= high)
        errors.append(abs(value - float(curve.error(12_800))))
        assert low <= high
    assert np.mean(held) >= 0.9
    assert np.mean(errors) < 0.06


def test_an_interval_without_the_spread_of_seeds_is_seen() -> None:
    """The control: the curve alone, without its replicates, holds nothing."""
    held = 0
    for seed in range(20):
        found = fit(*measured(TRUE, 0.03, seed), seed=seed)
        assert found is not None
        held += abs(float(found.curve.error(12_800)) - float(TRUE.error(12_800))) < 1e-4
    assert held < 5


def test_sizes_before_the_power_law_are_left_out() -> None:
    sizes = np.repeat([12, 25, 50, *SIZES], 3)
    error = np.where(sizes < 100, 0.55, TRUE.error(sizes))  # at chance until it begins to learn
    error = error * np.exp(np.random.default_rng(0).normal(0, 0.01, len(sizes)))
    left_out, curve, follows = from_power_law(sizes.astype(float), error)
    assert left_out in {2, 3}
    assert follows
    assert curve.error(12_800) == pytest.approx(float(TRUE.error(12_800)), abs=0.03)
    naive = fit(sizes.tolist(), (1 - error).tolist())
    assert naive is not None
    assert naive.left_out[:2] == (12, 25)


def test_sizes_that_follow_no_law_are_said_to() -> None:
    sizes = np.repeat(SIZES, 3)
    error = np.repeat([0.3, 0.5, 0.2, 0.5, 0.2, 0.5], 3) * np.exp(np.random.default_rng(0).normal(0, 0.01, len(sizes)))
    found = fit(sizes.tolist(), (1 - error).tolist())
    assert found is not None
    assert not found.follows


def test_few_sizes_or_single_seeds_tell_nothing() -> None:
    assert fit([100, 200, 400] * 3, [0.5, 0.6, 0.7] * 3) is None
    assert fit(SIZES.tolist(), np.linspace(0.5, 0.8, 6).tolist()) is None


def test_no_error_at_all_is_no_division_by_zero() -> None:
    found = fit(np.repeat(SIZES, 2).tolist(), [0.7, 0.7, 0.8, 0.8, 0.9, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert found is not None
    assert np.isfinite(found.error(10_000)).all()
