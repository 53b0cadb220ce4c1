"""From raw scores to units. Larger is more doubtful, everywhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.card import Calibration

Floats = NDArray[np.float64]


def _interpolate(value: NDArray[np.floating], abscissae: Floats, ordinates: Floats) -> Floats:
    """Interpolate linearly between points of strictly increasing abscissae, ordinates not decreasing; constant beyond them.

    ``numpy.interp`` divides the ordinates' difference by that of the abscissae, which is infinite where two of them are as good
    as equal; here the position between them is divided first, and lies in [0, 1] whatever they are.
    """
    value = np.asarray(value, dtype=np.float64)
    above = np.clip(np.searchsorted(abscissae, value, side="right"), 1, len(abscissae) - 1)
    low, high = abscissae[above - 1], abscissae[above]
    share = np.clip((value - low) / (high - low), 0.0, 1.0)
    between = ordinates[above - 1] + share * (ordinates[above] - ordinates[above - 1])
    return np.asarray(np.where(share == 1.0, ordinates[above], between), dtype=np.float64)


def predicted_loss(score: NDArray[np.floating], calibration: Calibration) -> Floats:
    """Map raw loss scores to the expected loss.

    Parameters
    ----------
    score : array of float, shape (N,)
        The graph's ``loss_score``; it has no unit.
    calibration : Calibration
        Its ``loss_knots`` are a monotone piecewise-linear map, constant beyond its ends.

    Returns
    -------
    array of float64, shape (N,), nats, >= 0
    """
    knots = np.asarray(calibration.loss_knots, dtype=np.float64)
    return _interpolate(score, knots[:, 0], knots[:, 1])


def predicted_loss_unseen(entropy_of_image: float, calibration: Calibration) -> float | None:
    """Map an entropy to the loss to expect on an image of a domain that the model was not trained on.

    Parameters
    ----------
    entropy_of_image : float, nats
        Of the calibrated softmax (:func:`entropy`).
    calibration : Calibration

    Returns
    -------
    float, nats, >= 0, or None
        None where no domain was left out when the model was made, so that nothing is known of it.
    """
    if calibration.unseen_loss_knots is None:
        return None
    knots = np.asarray(calibration.unseen_loss_knots, dtype=np.float64)
    return float(_interpolate(np.array(entropy_of_image), knots[:, 0], knots[:, 1]))


def percentile(value: NDArray[np.floating], quantiles: tuple[float, ...]) -> Floats:
    """Rank values among a calibration set.

    Parameters
    ----------
    value : array of float, shape (N,)
    quantiles : tuple of float
        Evenly spaced quantiles of the calibration set, the first its minimum and the last its maximum.

    Returns
    -------
    array of float64, shape (N,), percent in [0, 100]
        0 below the minimum, 100 above the maximum. Where quantiles repeat, the highest rank counts: ties are doubtful.
    """
    grid = np.linspace(0.0, 100.0, len(quantiles))
    table = np.asarray(quantiles, dtype=np.float64)
    value = np.asarray(value, dtype=np.float64)
    distinct = np.append(np.flatnonzero(np.diff(table) > 0), len(table) - 1)  # of equal quantiles the last, the highest rank
    if len(distinct) == 1:
        return np.where(value < table[0], 0.0, 100.0)
    ranks = _interpolate(value, table[distinct], grid[distinct])
    return np.where(value < table[0], 0.0, ranks)


def image_percentile(ranks: Floats) -> float:
    """Return the rank of an image among images, given those of its tiles among tiles.

    It is the highest rank that more than a third of the tiles reach, two at least where there are two: percentile 95 says that
    so many tiles are as doubtful as one in twenty of the calibration set. A mean would not do, be it of scores or of ranks: the
    more tiles an image has, the nearer its mean lies to the middle of the ranks of *tiles*, and the seldomer it reaches the 95th.

    The share of images beyond a limit shall be that of tiles, whatever their number. Tiles of one image are alike: where they
    are quite alike, all of them are beyond a limit or none, and the share is right for any rule. Where they are not, it is a
    matter of how many it takes. If normal scores share a part of their variance, be it none or all, at most 6.5 of 100 images
    are beyond the 95th percentile for any number of tiles, and from three tiles on at least 3.5 where they share 0.7 of it or
    more. If a single tile were enough, nearly every large image would be; if it took a half, hardly any whose tiles differ.

    Parameters
    ----------
    ranks : ndarray, shape (T,), percent
        Of :func:`percentile`, T >= 1.

    Returns
    -------
    float, percent in [0, 100]
    """
    reached = max(len(ranks) // 3 + 1, min(2, len(ranks)))
    return float(np.sort(ranks)[-reached])


def softmax(logits: NDArray[np.floating], temperature: float) -> Floats:
    """Return class probabilities, shape (N, K), of logits (N, K) divided by ``temperature`` (> 0)."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    exponential = np.exp(scaled)
    return np.asarray(exponential / exponential.sum(axis=1, keepdims=True), dtype=np.float64)


def entropy(probabilities: NDArray[np.floating]) -> Floats:
    """Return the entropy, shape (N,), in nats, of probabilities (N, K): the baseline every other doubt is held against."""
    clipped = np.clip(probabilities, 1e-300, 1.0)
    return np.asarray(-(probabilities * np.log(clipped)).sum(axis=1), dtype=np.float64)
