"""Selections: what is chosen on pools with known answers, against an independent library, and what holds for all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from skactiveml.pool import k_greedy_center  # type: ignore[import-untyped]

from models.errors import Refusal
from models.selection import REASONS, at_random, badge, core_set, margin, most_doubtful, select, typical

Pool = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def pool(count: int, seed: int = 0, classes: int = 4) -> Pool:
    """Return doubts (N,), probabilities (N, K), features (N, 3)."""
    random = np.random.default_rng(seed)
    return random.random(count), random.dirichlet(np.ones(classes), count), random.normal(size=(count, 3))


def indices(doubt: NDArray[np.float64], chances: NDArray[np.float64], features: NDArray[np.float64], budget: int) -> list[int]:
    return [choice.index for choice in select(doubt, chances.argmax(axis=1), features, budget)]


STRATEGIES: dict[str, Callable[..., object]] = {
    "random": lambda doubt, chances, features, budget: at_random(len(doubt), budget, 1),
    "doubt": lambda doubt, chances, features, budget: most_doubtful(doubt, budget),
    "core-set": lambda doubt, chances, features, budget: core_set(features, features[:2], budget),
    "core-set, no labels": lambda doubt, chances, features, budget: core_set(features, features[:0], budget),
    "badge": lambda doubt, chances, features, budget: badge(chances, features, budget, 1),
    "typical": lambda doubt, chances, features, budget: typical(features, features[:2], budget, 1),
    "select": indices,
}


@pytest.mark.parametrize("name", list(STRATEGIES))
@pytest.mark.parametrize("kind", ["different", "equal", "pairs"])
@pytest.mark.parametrize("budget", [1, 7, 40, 41, 400])
def test_every_selection_gives_the_budget_without_repeats_and_the_same_again(name: str, kind: str, budget: int) -> None:
    parts = pool(40)
    if kind == "equal":
        parts = tuple(np.repeat(part[:1], 40, axis=0) for part in parts)  # type: ignore[assignment]
    if kind == "pairs":
        parts = tuple(np.repeat(part[:20], 2, axis=0) for part in parts)  # type: ignore[assignment]
    chosen = list(STRATEGIES[name](*parts, budget))  # type: ignore[call-overload]
    assert len(chosen) == len(set(chosen)) == min(budget, 40)
    assert set(chosen) <= set(range(40))
    assert chosen == list(STRATEGIES[name](*parts, budget))  # type: ignore[call-overload]


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_an_empty_pool_gives_nothing_and_a_budget_of_nothing_is_refused(name: str) -> None:
    assert list(STRATEGIES[name](*pool(0), 3)) == []  # type: ignore[call-overload]
    for budget in (0, -1):
        with pytest.raises(Refusal) as refused:
            STRATEGIES[name](*pool(5), budget)
        assert refused.value.code == "bad_request"


@pytest.mark.parametrize("name", ["doubt", "core-set", "badge", "typical", "select"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(name: str, value: float) -> None:
    doubt, chances, features = pool(9)
    for part in (doubt, features):
        part.flat[-1] = value
    with pytest.raises(Refusal) as refused:
        STRATEGIES[name](doubt, chances, features, 2)
    assert refused.value.code == "model_output_invalid"


def test_arrays_of_different_lengths_are_a_mistake_of_the_caller() -> None:
    doubt, chances, features = pool(9)
    with pytest.raises(ValueError, match="different lengths"):
        select(doubt[:-1], chances.argmax(axis=1), features, 2)


def test_the_most_doubtful_come_first_and_ties_go_to_the_lower_index() -> None:
    doubt = np.array([0.1, 0.9, 0.5, 0.9, -2.0])
    assert most_doubtful(doubt, 4).tolist() == [1, 3, 2, 0]
    assert most_doubtful(-doubt, 1).tolist() == [4]  # the sign matters


def test_margin_is_one_for_a_tie_and_nought_for_certainty() -> None:
    assert margin(np.array([[0.4, 0.2, 0.4], [0.0, 1.0, 0.0], [0.5, 0.2, 0.3]])) == pytest.approx([1, 0, 0.8])


def test_random_depends_on_the_seed_and_favours_nobody() -> None:
    assert at_random(50, 10, 0).tolist() != at_random(50, 10, 1).tolist()
    counts = np.bincount(np.concatenate([at_random(20, 5, seed) for seed in range(2000)]), minlength=20)
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(2, 40))
def test_core_set_agrees_with_another_library(seed: int, labelled: int, count: int) -> None:
    random = np.random.default_rng(seed)
    features, known = random.normal(size=(count, 4)), random.normal(size=(labelled, 4))
    budget = min(10, count)
    labels = np.append(np.full(count, np.nan), np.zeros(labelled))
    theirs, _ = k_greedy_center(np.concatenate([features, known]), labels, batch_size=budget, random_state=0)
    assert core_set(features, known, budget).tolist() == theirs.tolist()


def test_core_set_takes_the_far_end_first_and_without_labels_the_middle() -> None:
    line = np.arange(11.0)[:, None]
    assert core_set(line, line[:1], 3).tolist() == [10, 5, 2]
    assert core_set(line, line[:0], 3).tolist() == [5, 0, 10]


def test_badge_is_kmeans_plus_plus_on_the_gradients_written_out() -> None:
    _, chances, features = pool(30, seed=5)
    budget, seed = 12, 3
    errors = chances.copy()
    errors[np.arange(30), chances.argmax(axis=1)] -= 1
    gradients = (errors[:, :, None] * features[:, None, :]).reshape(30, -1)
    chosen = [int(np.linalg.norm(gradients, axis=1).argmax())]
    random = np.random.default_rng(seed)
    while len(chosen) < budget:
        gaps = np.square(gradients[:, None] - gradients[None, chosen]).sum(axis=2).min(axis=1)
        gaps[chosen] = 0
        chosen.append(int(np.searchsorted(np.cumsum(gaps), random.random() * gaps.sum(), side="right")))
    assert badge(chances, features, budget, seed).tolist() == chosen
    assert badge(chances, features, budget, seed + 1).tolist() != chosen


def test_badge_leaves_the_certain_alone() -> None:
    chances = np.array([[1.0, 0.0]] * 30 + [[0.6, 0.4]] * 10)
    chosen = badge(chances, pool(40)[2], 10, 0)
    assert (chosen < 30).sum() <= 1  # their gradients are all 0, so that one stands for all
    assert (badge(chances[::-1], pool(40)[2], 10, 0) < 30).sum() >= 9  # the control


def blobs(sizes: tuple[int, ...]) -> NDArray[np.float64]:
    """Return points around (100 b, 0), b = 0, 1, ...; the first of each lies in the very middle."""
    random = np.random.default_rng(0)
    parts = [random.normal(size=(size, 2)) * 3 + [100 * place, 0] for place, size in enumerate(sizes)]
    for place, part in enumerate(parts):
        part[0] = [100 * place, 0]
    return np.concatenate(parts)


def test_typical_takes_the_middle_of_every_cluster_the_largest_first() -> None:
    features = blobs((30, 50, 40))
    chosen = typical(features, features[:0], 3, 0)
    where = np.digitize(chosen, [30, 80])
    assert where.tolist() == [1, 2, 0]
    spread = np.abs(features - 100 * np.digitize(np.arange(120), [30, 80])[:, None] * [1, 0]).sum(axis=1)
    assert spread[chosen].max() < np.median(spread)  # the middle, where a random one would be anywhere


def test_typical_goes_where_there_are_no_labels_yet() -> None:
    features = blobs((30, 50, 40))
    known = features[30:32]  # two of the largest cluster
    chosen = typical(features, known, 1, 0)
    assert np.digitize(chosen, [30, 80]).tolist() == [2]
    assert np.digitize(typical(features, features[:0], 3, 0), [30, 80])[0] == 1  # without those labels: the largest


def test_select_balances_what_doubt_alone_would_not() -> None:
    doubt = np.concatenate([np.linspace(1, 0.6, 50), np.linspace(0.5, 0, 50)])
    predicted = np.repeat([3, 8], 50)
    features = pool(100)[2]
    chosen = select(doubt, predicted, features, 10)
    assert Counter(choice.predicted for choice in chosen) == {3: 5, 8: 5}
    assert [choice.predicted for choice in chosen[:4]] == [3, 8, 3, 8]  # the beginning is balanced too
    assert chosen[0].index == 0
    assert set(predicted[most_doubtful(doubt, 10)]) == {3}  # the control
    assert {name for choice in chosen if choice.predicted == 8 for name in choice.reasons} <= {"balance", "different"}
    assert all(choice.index % 50 < 10 for choice in chosen)  # never beyond twice a class's quota


def test_what_a_small_class_leaves_goes_to_the_others() -> None:
    predicted = np.array([0] * 30 + [1] * 2 + [2] * 30)
    doubt, _, features = pool(62)
    assert Counter(choice.predicted for choice in select(doubt, predicted, features, 12)) == {0: 5, 1: 2, 2: 5}


def test_select_prefers_the_different_among_the_doubtful() -> None:
    features = np.array([[0.0], [0.1], [0.2], [9.0], [50.0]])
    doubt = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    chosen = select(doubt, np.zeros(5, dtype=np.int64), features, 2)
    assert [choice.index for choice in chosen] == [0, 3]  # 4 is the farthest, but not doubtful enough
    assert [choice.reasons for choice in chosen] == [("doubtful",), ("different",)]
    assert [choice.rank for choice in chosen] == [1, 4]
    same = select(doubt, np.zeros(5, dtype=np.int64), np.zeros((5, 1)), 2)
    assert [choice.index for choice in same] == most_doubtful(doubt, 2).tolist()  # the control: nothing differs


def test_one_item_a_patient_its_most_doubtful() -> None:
    doubt, chances, features = pool(40)
    patients = np.array([f"patient {index // 4}" for index in range(40)])
    predicted = chances.argmax(axis=1)
    chosen = [choice.index for choice in select(doubt, predicted, features, 8, patients)]
    assert len({patients[index] for index in chosen}) == 8
    assert all(doubt[index] == doubt[patients == patients[index]].max() for index in chosen)
    assert len(select(doubt, predicted, features, 40, patients)) == 10
    free = [choice.index for choice in select(doubt, predicted, features, 8)]
    assert len({patients[index] for index in free}) < 8  # the control


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 60))
def test_every_choice_has_its_reasons(seed: int, count: int, budget: int) -> None:
    doubt, chances, features = pool(count, seed)
    chosen = select(doubt, chances.argmax(axis=1), features, budget)
    assert all(choice.reasons and set(choice.reasons) <= set(REASONS) for choice in chosen)
    alone = set(most_doubtful(doubt, budget).tolist())
    assert all(("doubtful" in choice.reasons) == (choice.index in alone) for choice in chosen)
    quotas = Counter(choice.predicted for choice in chosen)
    available = Counter(chances.argmax(axis=1).tolist())
    assert all(quotas[name] >= min(available[name], max(quotas.values()) - 1) for name in available)
