"""Limits with a promise: the loosest at which a rate is at least so high, with a confidence that counts all limits tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Promise:
    """What is said of the images within a limit.

    Attributes
    ----------
    limit : float
    n, right : int
        Labelled images within it, and those of them that are right.
    low : float
        Lower confidence bound of the rate (Clopper and Pearson, one-sided).
    """

    limit: float
    n: int
    right: int
    low: float


def lower_bound(right: int, n: int, confidence: float) -> float:
    """Return the exact one-sided lower bound of a share (Clopper and Pearson, Biometrika 1934); 0 without any image."""
    return float(stats.beta.ppf(1 - confidence, right, n - right + 1)) if right else 0.0


def labels_needed(target: float, confidence: float) -> int:
    """Return how many images, all of them right, it takes to promise a rate of at least ``target`` (in (0, 1))."""
    return int(np.ceil(np.log(1 - confidence) / np.log(target)))


def loosest(
    limits: Sequence[float], within: Bools, right: Bools, expected: NDArray[np.float64], target: float, confidence: float
) -> Promise | None:
    """Return the loosest limit within which a rate is at least ``target``.

    The limits are tested one after the other, each at the full level, until one fails (learn then test: Angelopoulos, Bates,
    Candes, Jordan and Lei, arXiv:2110.01052, section 2.3, fixed sequence testing). The order must not look at the labels: it
    starts where the *predictions* say that the test has the most power, and loosens from there.

    Parameters
    ----------
    limits : sequence of float, length T
        The strictest first.
    within : ndarray of bool, shape (T, n)
        Which labelled images lie within each; those of a limit lie within the next too.
    right : ndarray of bool, shape (n,)
    expected : ndarray, shape (n,)
        Predicted probability of being right.
    target, confidence : float, in (0, 1)
        The chance of a promise that does not hold is at most 1 - ``confidence``, for images drawn at random.

    Returns
    -------
    Promise or None
        None if none can be promised.
    """
    sizes = within.sum(axis=1)
    foreseen = stats.binom.sf(np.floor(within @ expected) - 1, sizes, target)
    best: Promise | None = None
    for place in range(int(foreseen.argmin()), len(limits)):
        n, hits = int(sizes[place]), int(right[within[place]].sum())
        low = lower_bound(hits, n, confidence)
        if low < target:
            break
        best = Promise(float(limits[place]), n, hits, low)
    return best
