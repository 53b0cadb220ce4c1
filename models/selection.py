"""A budget of annotations: which items of a pool are worth it, the best first. Larger doubt is more doubtful.

Every function returns indices into the pool, none twice, as many as the budget or the whole pool if that is smaller. The same
arguments, seed included, give the same answer; ties go to the lower index. A budget below 1 is refused as ``bad_request``, a
doubt, probability or feature that is not finite as ``model_output_invalid``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import Refusal

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.int64]

REASONS: dict[str, str] = {
    "doubtful": "It is among the most doubtful of the pool: doubt alone would choose it.",
    "balance": "It is among the most doubtful of its predicted class, which doubt alone would annotate less often.",
    "different": "It is unlike what was chosen of its predicted class, where more doubtful items are like each other.",
}
"""Reason code -> what it tells a reader. Codes are stable."""

CANDIDATES = 2
"""An item can be chosen for being different if it is among this many times a class's quota of the most doubtful."""

MOST_CLUSTERS, NEIGHBOURS, SMALL_CLUSTER, LLOYD_STEPS = 500, 20, 5, 20


@dataclass(frozen=True)
class Choice:
    """An item that :func:`select` chose.

    Attributes
    ----------
    index : int
        In the pool.
    rank : int, >= 1
        By doubt, among the items that could be chosen; 1 is the most doubtful.
    predicted : int
        Its predicted class.
    reasons : tuple of str
        Keys of :data:`REASONS`, never empty.
    """

    index: int
    rank: int
    predicted: int
    reasons: tuple[str, ...]


def _checked(budget: int, *arrays: NDArray[Any]) -> None:
    if budget < 1:
        raise Refusal("bad_request", "The budget must be at least one item.")
    if len({len(array) for array in arrays}) > 1:
        raise ValueError(f"arrays of different lengths: {[len(array) for array in arrays]}")
    if not all(np.isfinite(array).all() for array in arrays):
        raise Refusal("model_output_invalid", "A doubt, probability or feature of the pool is not a finite number.")


def at_random(count: int, budget: int, seed: int) -> Indices:
    """Choose at random from a pool of ``count`` items."""
    _checked(budget)
    return np.random.default_rng(seed).permutation(count)[:budget]


def most_doubtful(doubt: Floats, budget: int) -> Indices:
    """Choose the most doubtful first.

    Parameters
    ----------
    doubt : ndarray, shape (N,)
        Of any unit: a predicted loss, an entropy, :func:`margin`.
    budget : int, >= 1
    """
    _checked(budget, doubt)
    return np.argsort(-doubt, kind="stable")[:budget]


def margin(probabilities: Floats) -> Floats:
    """Return 1 less the gap between the two most probable classes, shape (N,), in [0, 1], of probabilities (N, K >= 2)."""
    top = np.partition(probabilities, -2, axis=1)[:, -2:]
    return np.asarray(1 - (top[:, 1] - top[:, 0]))


def core_set(features: Floats, labelled: Floats, budget: int) -> Indices:
    """Choose greedily what is farthest from all that is labelled or chosen (k-centre).

    Parameters
    ----------
    features : ndarray, shape (N, D)
        Of the pool.
    labelled : ndarray, shape (L, D)
        Of what is annotated already. If there is none, the first is the item nearest to the pool's mean.
    budget : int, >= 1

    References
    ----------
    Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018,
    arXiv:1708.00489, algorithm 1.
    """
    _checked(budget, features)
    _checked(budget, labelled)
    features = features.astype(np.float64)
    from scipy.spatial.distance import cdist  # slow to import, and what the service chooses by does not need it

    nearest = np.full(len(features), np.inf)
    for start in range(0, len(labelled), 512):
        nearest = np.minimum(nearest, cdist(features, labelled[start : start + 512], "sqeuclidean").min(axis=1))
    from_start = len(labelled) == 0 and len(features) > 0
    first = np.square(features - features.mean(axis=0)).sum(axis=1).argmin() if from_start else None
    return _farthest_first(features, nearest, budget, first)


def badge(probabilities: Floats, features: Floats, budget: int, seed: int) -> Indices:
    """Choose by k-means++ among the gradients that the last layer would have if the predicted class were the true one.

    The gradient of an item is the outer product of (p - onehot(argmax p)) and its features: long where the model is
    uncertain, and of another direction where the items differ. The first is the longest.

    Parameters
    ----------
    probabilities : ndarray, shape (N, K)
    features : ndarray, shape (N, D)
        What the last layer sees.
    budget : int, >= 1
    seed : int

    References
    ----------
    Ash et al., "Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds", ICLR 2020, arXiv:1906.03671,
    algorithm 1.
    """
    _checked(budget, probabilities, features)
    features = features.astype(np.float64)
    errors = probabilities.astype(np.float64)
    errors[np.arange(len(errors)), errors.argmax(axis=1)] -= 1
    squares = np.square(errors).sum(axis=1) * np.square(features).sum(axis=1)

    def distance(index: int) -> Floats:
        # The inner product of outer products is the product of inner products: no (N, K D) array is needed
        products = (errors @ errors[index]) * (features @ features[index])
        return np.asarray(np.maximum(squares + squares[index] - 2 * products, 0))

    first = squares.argmax() if len(squares) else None
    return _spread(distance, np.full(len(squares), np.inf), budget, _sampler(seed), first)


def typical(features: Floats, labelled: Floats, budget: int, seed: int) -> Indices:
    """Choose the most typical item of each cluster that has the fewest labels, the largest clusters first.

    As many clusters as labels there will be, at most 500, by k-means; those of under five items come last. Typical is the
    unlabelled item of the smallest mean distance to its 20 nearest (at most half) of the cluster's unlabelled items.

    Parameters
    ----------
    features : ndarray, shape (N, D)
        Of the pool.
    labelled : ndarray, shape (L, D)
        Of what is annotated already.
    budget : int, >= 1
    seed : int
        Of the clusters.

    References
    ----------
    Hacohen et al., "Active Learning on a Budget: Opposite Strategies Suit High and Low Budgets", ICML 2022,
    arXiv:2202.02794, section 3 and appendix F. The paper's features are self-supervised.
    """
    _checked(budget, features)
    _checked(budget, labelled)
    count = len(features)
    everything = np.concatenate([features, labelled]).astype(np.float64)
    cluster = _kmeans(everything, min(len(labelled) + budget, MOST_CLUSTERS, len(everything)), seed)
    sizes = np.bincount(cluster, minlength=1)
    labels = np.bincount(cluster[count:], minlength=len(sizes))
    order = np.lexsort((-sizes, labels))
    chosen: list[int] = []
    for visited in (order[sizes[order] >= SMALL_CLUSTER], order[sizes[order] < SMALL_CLUSTER]):
        remaining = {int(name): np.flatnonzero(cluster[:count] == name) for name in visited}
        while any(map(len, remaining.values())) and len(chosen) < budget:
            for name, items in remaining.items():
                if len(items) and len(chosen) < budget:
                    best = _most_typical(everything[items])
                    chosen.append(int(items[best]))
                    remaining[name] = np.delete(items, best)
    return np.array(chosen, dtype=np.int64)


def select(doubt: Floats, predicted: Indices, features: Floats, budget: int, groups: NDArray[Any] | None = None) -> list[Choice]:
    """Choose by doubt, balance and diversity.

    One item a group: its most doubtful. *Balance*: the budget is shared equally among the predicted classes; what a class of
    few items leaves goes to the others. *Doubt*: of a class, the candidates are the most doubtful, twice as many as its quota.
    *Diversity*: of the candidates first the most doubtful, then always the one whose features are farthest from those chosen
    of its class. The classes take turns, so that the beginning of the answer is balanced too.

    Parameters
    ----------
    doubt : ndarray, shape (N,)
    predicted : ndarray of int, shape (N,)
        Predicted class.
    features : ndarray, shape (N, D)
    budget : int, >= 1
    groups : ndarray, shape (N,), optional
        What should be annotated once, such as the patient. There are at most as many choices as groups.

    Returns
    -------
    list of Choice
        The best first.
    """
    _checked(budget, doubt, predicted, features)
    order = np.argsort(-doubt, kind="stable")
    if groups is not None:
        order = order[np.sort(np.unique(groups[order], return_index=True)[1])]
    ranks = {int(index): rank for rank, index in enumerate(order, start=1)}
    classes = list(dict.fromkeys(predicted[order].tolist()))  # the class of the most doubtful item has the first turn
    items = [order[predicted[order] == name] for name in classes]
    turns: list[tuple[int, int, Choice]] = []
    for place, (own, quota) in enumerate(zip(items, _quotas([len(own) for own in items], budget), strict=True)):
        candidates = own[: CANDIDATES * quota]
        chosen = _farthest_first(features[candidates].astype(np.float64), np.full(len(candidates), np.inf), quota, 0)
        for turn, position in enumerate(chosen.tolist()):
            index = int(candidates[position])
            held = {"doubtful": ranks[index] <= budget, "different": position >= quota}
            held["balance"] = not any(held.values())
            reasons = tuple(name for name in REASONS if held[name])
            turns.append((turn, place, Choice(index, ranks[index], int(classes[place]), reasons)))
    return [choice for _, _, choice in sorted(turns, key=lambda entry: entry[:2])]


def _quotas(available: list[int], budget: int) -> list[int]:
    """Share a budget as equally as there are items; what cannot be shared goes to the first."""
    quotas = [0] * len(available)
    for _ in range(min(budget, sum(available))):
        room = [place for place, quota in enumerate(quotas) if quota < available[place]]
        quotas[min(room, key=quotas.__getitem__)] += 1
    return quotas


def _spread(
    distance: Callable[[int], Floats], nearest: Floats, budget: int, draw: Callable[[Floats], int], first: int | np.intp | None
) -> Indices:
    """Choose one after the other by the squared distances ``nearest`` to all that was chosen before."""
    chosen: list[int] = []
    for _ in range(min(budget, len(nearest))):
        index = draw(nearest) if chosen or first is None else int(first)
        nearest = np.minimum(nearest, distance(index))
        chosen.append(index)
        nearest[chosen] = -1  # not again, even if all the rest is at distance 0
    return np.array(chosen, dtype=np.int64)


def _distance(points: Floats) -> Callable[[int], Floats]:
    return lambda index: np.asarray(np.square(points - points[index]).sum(axis=1))


def _farthest_first(points: Floats, nearest: Floats, budget: int, first: int | np.intp | None) -> Indices:
    return _spread(_distance(points), nearest, budget, lambda distances: int(distances.argmax()), first)


def _sampler(seed: int) -> Callable[[Floats], int]:
    """Return a draw in proportion to the squared distance: the step of k-means++."""
    random = np.random.default_rng(seed)

    def draw(nearest: Floats) -> int:
        total = np.maximum(nearest, 0).cumsum()
        if total[-1] == 0:
            return int(nearest.argmax())
        return int(np.searchsorted(total, random.random() * total[-1], side="right"))

    return draw


def _kmeans(points: Floats, clusters: int, seed: int) -> Indices:
    """Return the cluster of every point, shape (N,); a cluster that loses its points keeps its place."""
    from scipy.cluster.vq import vq

    first = int(np.random.default_rng(seed).integers(len(points))) if len(points) else None
    centres = points[_spread(_distance(points), np.full(len(points), np.inf), clusters, _sampler(seed), first)]
    cluster = np.zeros(len(points), dtype=np.int64)
    for _ in range(LLOYD_STEPS if len(points) else 0):
        before, cluster = cluster, vq(points, centres)[0].astype(np.int64)
        sums = np.zeros_like(centres)
        np.add.at(sums, cluster, points)
        sizes = np.bincount(cluster, minlength=len(centres))
        centres = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centres)
        if (before == cluster).all():
            break
    return cluster


def _most_typical(points: Floats) -> int:
    from scipy.spatial.distance import cdist

    nearest = max(1, min(NEIGHBOURS, len(points) // 2))
    distances = np.sort(cdist(points, points), axis=1)[:, 1 : nearest + 1]  # the first is the point itself
    return int(distances.sum(axis=1).argmin())
