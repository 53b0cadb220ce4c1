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


FORESEEN_FROM = 50
"""Images without a label below which their predictions do not choose where the tests begin: so few foresee little."""


def beginning(within: Bools, expected: NDArray[np.float64], labelled: NDArray[np.int64], target: float, confidence: float) -> int:
    """Return the limit at which the tests of :func:`loosest` begin: where predictions foresee the most power.

    The predictions of the labelled images have no say in it, since their labels follow them: a limit that is chosen because the
    labelled images look good within it is then tested on the luck that it was chosen for.

    Parameters
    ----------
    within : ndarray of bool, shape (T, N)
        Which of all N images of the site lie within each of T limits, the strictest first.
    expected : ndarray, shape (N,)
        Predicted probability of being right.
    labelled : ndarray of int, shape (n,)
        Which of them are labelled.
    target, confidence : float, in (0, 1)
        As for :func:`loosest`.

    Returns
    -------
    int
        From 0 to T - 1. With fewer than :data:`FORESEEN_FROM` images that are not labelled: the strictest limit within which lie
        twice as many labels as a promise takes if all are right, which leaves room for an error; else the loosest.
    """
    others = np.setdiff1d(np.arange(len(expected)), labelled)
    if len(others) < FORESEEN_FROM:
        enough = len(labelled) * within.mean(axis=1) >= 2 * labels_needed(target, confidence)
        return int(enough.argmax()) if enough.any() else len(within) - 1
    inside = within[:, others].sum(axis=1)
    sizes = np.rint(len(labelled) * inside / len(others))
    hits = np.floor(sizes * (within[:, others] @ expected[others]) / np.maximum(inside, 1))
    return int(stats.binom.sf(hits - 1, sizes, target).argmin())


def loosest(limits: Sequence[float], within: Bools, right: Bools, start: int, target: float, confidence: float) -> Promise | None:
    """Return the loosest limit within which a rate is at least ``target``.

    The limits are tested one after the other, from ``start`` on, each at the full level, until one fails (learn then test:
    Angelopoulos, Bates, Candes, Jordan and Lei, arXiv:2110.01052, section 2.3, fixed sequence testing). Neither the limits nor
    ``start`` may hang on the labels, or on anything of the labelled images that their labels follow.

    Parameters
    ----------
    limits : sequence of float, length T
        The strictest first.
    within : ndarray of bool, shape (T, n)
        Which labelled images lie within each; those of a limit lie within the next too.
    right : ndarray of bool, shape (n,)
    start : int
        The first limit to be tested: :func:`beginning`.
    target, confidence : float, in (0, 1)
        The chance of a promise that does not hold is at most 1 - ``confidence``, for images drawn at random.

    Returns
    -------
    Promise or None
        None if none can be promised.
    """
    best: Promise | None = None
    for limit, inside in zip(limits[start:], within[start:], strict=True):
        n, hits = int(inside.sum()), int(right[inside].sum())
        low = lower_bound(hits, n, confidence)
        if low < target:
            break
        best = Promise(float(limit), n, hits, low)
    return best
