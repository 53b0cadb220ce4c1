"""Doubts and their figures by known answers; the site alarm's false alarms and its power."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.doubt_scores import alarm, augrc, caught, judge, mahalanobis, mc_dropout, together, two_sample, vim
from models.uncertainty import entropy, softmax


def test_caught_and_augrc_by_hand() -> None:
    wrong = np.array([True, False, True, False, False])
    perfect, worst = np.array([5.0, 1, 4, 2, 3]), np.array([1.0, 5, 2, 4, 3])
    assert caught(wrong, perfect, 0.4) == 1
    assert caught(wrong, perfect, 0.2) == 0.5
    assert caught(wrong, worst, 0.4) == 0
    assert augrc(wrong, perfect) == pytest.approx((0 + 0 + 0 + 1 + 2) / 25)
    assert augrc(wrong, worst) == pytest.approx((1 + 2 + 2 + 2 + 2) / 25)
    figures = judge(wrong, np.array([9.0, 1, 8, 2, 3]), perfect)
    assert figures["error_auroc"] == 1
    assert figures["spearman"] == pytest.approx(1)


def test_together_is_the_mean_rank_and_needs_no_scale() -> None:
    first, second = np.array([1.0, 2, 3]), np.array([10.0, 1e9, 5])
    assert together(first, second).tolist() == [1.5, 2.5, 2.0]
    assert together(first, np.exp(second / 1e9)).tolist() == together(first, second).tolist()


def test_dropout_without_a_rate_is_plain_entropy_and_with_one_is_larger_where_units_disagree() -> None:
    random = np.random.default_rng(0)
    features, weight, bias = np.abs(random.normal(size=(50, 16))), random.normal(size=(3, 16)), np.zeros(3)
    plain = entropy(softmax(features @ weight.T + bias, 1.0))
    np.testing.assert_allclose(mc_dropout(features, weight, bias, 0.0, 2, 0), plain, rtol=1e-6)
    assert mc_dropout(features, weight, bias, 0.5, 200, 0).mean() > plain.mean() + 0.05


def test_distances_see_what_lies_outside_of_training() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], 500)
    train = random.normal(size=(1000, 8)) * 0.1
    train[:, 0] += labels * 2 - 1
    train[:, 1:4] += random.normal(size=(1000, 3))
    near, far = train[:50], train[:50].copy()
    far[:, 6] += 3
    weight, bias = np.eye(2, 8) * 2, np.zeros(2)
    assert mahalanobis(train, labels, far).min() > mahalanobis(train, labels, near).max()
    scores = [vim(train, train @ weight.T, part, part @ weight.T, weight, bias) for part in (near, far)]
    assert scores[1].min() > scores[0].max()
    shrunk = mahalanobis(train, labels, np.array([[1.0, 0, 0, 0, 0, 0, 0, 0], [0.0] * 8]))
    assert shrunk[0] < 1 < shrunk[1]  # a class mean is near, the middle between the classes is not


def test_the_alarm_keeps_its_rate_at_home_and_sees_a_shift() -> None:
    random = np.random.default_rng(0)

    def sample(count: int, shift: float) -> np.ndarray:
        return random.normal(size=(count, 10)) + shift

    values = [two_sample(sample(60, 0), sample(50, 0), 99, random) for _ in range(300)]
    assert np.mean(np.array(values) <= 0.1) == pytest.approx(0.1, abs=0.06)
    known = [sample(60, 0), sample(60, 3)]
    assert not any(alarm(known, sample(50, 3), random) for _ in range(10))  # like one of the known is enough
    assert all(alarm(known, sample(50, 1), random) for _ in range(10))
