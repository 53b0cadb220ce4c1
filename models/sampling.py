"""Which images of a site are labelled so that the labels speak for all of it: drawn with probabilities that are known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

EVEN_SHARE = 0.5
"""Of a draw by doubt, the part that is spread evenly: no image stands for more than twice what it would in a random draw, however
wrong the model is about its own doubt."""


def even(count: int, size: int) -> Floats:
    """Return the inclusion probabilities (count,) of a simple random sample of ``size``."""
    return np.full(count, size / count)


def by_doubt(probabilities: Floats, called: NDArray[np.bool_], finding: int, size: int) -> Floats:
    """Return inclusion probabilities that are larger where the model expects its error and its loss to vary more.

    Half of the draw is spread evenly, half in proportion to the standard deviations, under the predicted probabilities, of the
    call's error and of the cross-entropy: the allocation of least variance, if the model were right (Neyman, JRSS 1934).

    Parameters
    ----------
    probabilities : ndarray, shape (N, K)
    called : ndarray of bool, shape (N,)
        Whether the finding is called.
    finding : int
        Its class.
    size : int, 1 to N

    Returns
    -------
    ndarray, shape (N,), in (0, 1]
        They sum to ``size``.
    """
    kind = probabilities[:, finding]
    wrong = np.where(called, 1 - kind, kind)
    losses = -np.log(np.clip(probabilities, 1e-12, 1.0))
    entropy = (probabilities * losses).sum(axis=1)
    varying = np.sqrt(np.maximum((probabilities * losses**2).sum(axis=1) - entropy**2, 0.0))
    doubt = np.sqrt(np.maximum(wrong * (1 - wrong), 0.0)) + varying
    share = doubt / doubt.sum() if doubt.sum() > 0 else np.full(len(doubt), 1 / len(doubt))
    result = np.asarray(EVEN_SHARE / len(doubt) + (1 - EVEN_SHARE) * share) * size
    certain = result >= 1
    while (result > 1).any():  # what is certain to be drawn leaves the rest of the sample to the others
        certain |= result >= 1
        result[certain] = 1.0
        result[~certain] *= (size - certain.sum()) / result[~certain].sum()
    return result


def draw(probability: Floats, seed: int) -> NDArray[np.int64]:
    """Draw images with these inclusion probabilities, exactly as many as they sum to, none twice, in a random order.

    Systematic sampling in a random order (Madow, Annals of Mathematical Statistics 1949; Hartley and Rao 1962).

    Parameters
    ----------
    probability : ndarray, shape (N,), in (0, 1]
        They sum to a whole number.
    seed : int
    """
    random = np.random.default_rng(seed)
    size = round(float(probability.sum()))
    order = random.permutation(len(probability))
    ends = probability[order].cumsum()
    ends *= size / ends[-1]
    places = np.searchsorted(ends, random.random() + np.arange(size), side="right")
    return np.asarray(random.permutation(order[np.minimum(places, len(order) - 1)]), dtype=np.int64)


def share_holds(drawn: int, count: int, share: float) -> bool:
    """Tell whether so many drawn of ``count`` images fit a draw of each with the probability ``share`` (binomial test, 0.1%)."""
    return count == 0 or bool(stats.binomtest(drawn, count, share).pvalue >= 1e-3)
