"""Units of doubt: monotone maps, ranks and entropy, against values worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from models.card import Calibration
from models.uncertainty import entropy, image_percentile, percentile, predicted_loss, softmax

RAMP = tuple(float(value) for value in range(101))


def calibration(knots: tuple[tuple[float, float], ...]) -> Calibration:
    return Calibration(temperature=1, loss_knots=knots, loss_quantiles=RAMP, domain_quantiles=RAMP, n=1, method="given")


def test_predicted_loss_interpolates_between_knots_and_is_constant_beyond() -> None:
    fitted = calibration(((-1.0, 0.2), (1.0, 0.6), (3.0, 2.6)))
    got = predicted_loss(np.array([-9.0, -1.0, 0.0, 2.0, 3.0, 99.0]), fitted)
    np.testing.assert_allclose(got, [0.2, 0.2, 0.4, 1.6, 2.6, 2.6])


def test_percentile_is_the_rank_in_the_calibration_set() -> None:
    np.testing.assert_allclose(percentile(np.array([-1.0, 0.0, 25.5, 100.0, 101.0]), RAMP), [0, 0, 25.5, 100, 100])


def test_equal_quantiles_give_the_highest_rank() -> None:
    table = (0.0,) * 51 + tuple(float(value) for value in range(1, 51))
    np.testing.assert_allclose(percentile(np.array([0.0, 0.5, -0.1]), table), [50, 50.5, 0])


@pytest.mark.parametrize(
    ("ranks", "rank"),
    [
        ([40.0], 40.0),
        ([99.0, 10.0], 10.0),  # both of two
        ([99.0, 98.0, 10.0], 98.0),  # one is a third, and not more
        ([10.0, 99.0, 98.0, 20.0], 98.0),
        ([99.0, 97.0, 96.0, 1.0, 2.0, 3.0], 96.0),
        ([100.0] * 8 + [0.0] * 17, 0.0),
        ([100.0] * 9 + [0.0] * 16, 100.0),
    ],
)
def test_an_image_ranks_as_more_than_a_third_of_its_tiles_do(ranks: list[float], rank: float) -> None:
    assert image_percentile(np.array(ranks)) == rank
    assert image_percentile(np.array(ranks[::-1])) == rank


@pytest.mark.parametrize("tiles", [1, 2, 3, 4, 5, 9, 25, 100])
@pytest.mark.parametrize("alike", [0.0, 0.7, 0.9, 1.0])
def test_as_many_images_as_tiles_are_beyond_a_limit_whatever_their_number(tiles: int, alike: float) -> None:
    random = np.random.default_rng(tiles)
    shared, own = random.normal(size=(6000, 1)), random.normal(size=(6000, tiles))
    scores = np.sqrt(alike) * shared + np.sqrt(1 - alike) * own  # what a tile of the calibration set has is standard normal
    beyond = np.mean([image_percentile(each) >= 95 for each in 100 * norm.cdf(scores)])
    assert beyond <= 0.075
    if alike >= 0.7 and tiles >= 3:
        assert beyond >= 0.03
    if alike == 0.7 and tiles >= 25:  # the control: means of scores
        assert np.mean(100 * norm.cdf(scores.mean(axis=1)) >= 95) < 0.03
        assert np.mean((scores >= norm.ppf(0.95)).any(axis=1)) > 0.15  # and a single tile


@pytest.mark.parametrize("tiles", [4, 25])
def test_an_image_with_half_its_tiles_among_the_worst_is_beyond_the_limit(tiles: int) -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        worst = np.arange(tiles) < tiles / 2
        assert image_percentile(np.where(worst, random.uniform(95, 100, tiles), random.uniform(0, 100, tiles))) >= 95


def test_quantiles_that_are_as_good_as_equal_give_finite_ranks() -> None:
    table = (0.0,) * 50 + (5e-324,) * 50 + (1.0,)
    np.testing.assert_allclose(percentile(np.array([0.0, 5e-324, 0.5, 1.0]), table), [49, 99, 99.5, 100])
    np.testing.assert_allclose(percentile(np.array([-1.0, 7.0, 8.0]), (7.0,) * 101), [0, 100, 100])
    np.testing.assert_allclose(predicted_loss(np.array([0.0, 5e-324]), calibration(((0.0, 0.1), (5e-324, 0.9)))), [0.1, 0.9])


@given(st.lists(st.floats(-1e6, 1e6), min_size=101, max_size=101), st.lists(st.floats(-2e6, 2e6), min_size=2, max_size=9))
def test_a_larger_value_never_has_a_lower_percentile(sample: list[float], values: list[float]) -> None:
    ranks = percentile(np.sort(np.array(values)), tuple(sorted(sample)))
    assert (np.diff(ranks) >= 0).all()
    assert ((ranks >= 0) & (ranks <= 100)).all()


def test_softmax_divides_by_the_temperature_and_survives_large_logits() -> None:
    np.testing.assert_allclose(softmax(np.array([[2.0, 0.0]]), 2.0)[0, 0], 1 / (1 + math.exp(-1)))
    np.testing.assert_allclose(softmax(np.array([[1e4, -1e4]]), 1.0), [[1.0, 0.0]])


def test_entropy_is_largest_for_equal_probabilities_and_zero_for_certainty() -> None:
    np.testing.assert_allclose(entropy(np.array([[0.5, 0.5], [1.0, 0.0]])), [math.log(2), 0.0], atol=1e-12)


@pytest.mark.parametrize("knots", [((0.0, 0.1),), ((0.0, 0.1), (0.0, 0.2)), ((1.0, 0.1), (0.0, 0.2)), ((0.0, 0.2), (1.0, 0.1))])
def test_a_calibration_whose_knots_are_no_rising_line_is_refused(knots: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(ValueError, match="loss_knots"):
        calibration(knots)


def test_quantiles_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="quantiles must not decrease"):
        Calibration(
            temperature=1, loss_knots=((0, 0), (1, 1)), loss_quantiles=RAMP, domain_quantiles=RAMP[::-1], n=1, method="given"
        )
