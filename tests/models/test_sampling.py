"""Draws with known probabilities: exactly so many, none twice, as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from models.sampling import EVEN_SHARE, by_doubt, draw, even


def doubtful(count: int) -> tuple[np.ndarray, np.ndarray]:
    chance = np.linspace(0.001, 0.999, count)
    return np.column_stack([1 - chance, chance]), chance >= 0.5


def test_each_image_is_drawn_as_often_as_its_probability_says() -> None:
    probability = by_doubt(*doubtful(40), 1, 10)
    assert probability.sum() == pytest.approx(10)
    times = np.zeros(40)
    for seed in range(4000):
        index = draw(probability, seed)
        assert len(set(index.tolist())) == len(index) == 10
        times[index] += 1
    assert np.abs(times / 4000 - probability).max() < 0.03
    assert np.abs(times / 4000 - even(40, 10)).max() > 0.05  # the control: another design is told apart


def test_doubt_is_drawn_more_and_nothing_is_left_out() -> None:
    probability = by_doubt(*doubtful(1001), 1, 100)
    assert probability[100] > 1.4 * probability[0]
    assert probability.min() >= EVEN_SHARE * 100 / 1001 * (1 - 1e-9)
    assert probability[300] == pytest.approx(probability[700])


def test_without_any_doubt_it_is_even() -> None:
    sure = np.tile([0.0, 1.0], (50, 1))
    assert by_doubt(sure, np.ones(50, bool), 1, 5) == pytest.approx(even(50, 5))


def test_one_image_of_doubt_is_certain_and_the_rest_share_what_is_left() -> None:
    sure = np.tile([0.0, 1.0], (20, 1))
    sure[3] = 0.5
    probability = by_doubt(sure, np.ones(20, bool), 1, 10)
    assert probability[3] == 1.0
    assert probability.sum() == pytest.approx(10)
    assert (probability <= 1).all()
    assert all(3 in draw(probability, seed) for seed in range(20))


def test_a_seed_gives_its_draw_again_and_the_whole_site_can_be_drawn() -> None:
    assert draw(even(100, 7), 5).tolist() == draw(even(100, 7), 5).tolist()
    assert draw(even(100, 7), 5).tolist() != draw(even(100, 7), 6).tolist()
    assert sorted(draw(even(9, 9), 0).tolist()) == list(range(9))
