"""Figures of a whole site from few labels and a prediction for every image, each with an interval.

The estimator is the survey regression estimator: for a simple random sample it is prediction-powered inference with power tuning
(Angelopoulos et al., arXiv:2301.09633; Angelopoulos, Duchi and Zrnic, "PPI++", arXiv:2311.01453, section 6), and for a sample
drawn with known unequal probabilities it is active statistical inference (Zrnic and Candes, arXiv:2403.03208, section 3) with
Hajek's weights. Whatever the predictions are worth, the interval holds; good ones make it narrower.

The target is the rate among images *like those of the site*, not among the images in the folder alone: the spread of the folder
itself is part of the variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

POWERED_FROM = 10
"""Labelled hits, and labelled misses, below which predictions do not enter a rate: so few do not tell how well predictions follow
them, and intervals that trust it hold too seldom, the more so the better the predictions look (benchmarks/certify.py)."""
MEAN_POWERED_FROM = 200
"""Labels below which predictions do not enter a mean of losses, and never if they were drawn by doubt. A few large losses decide
how far predictions are trusted: the interval would be no narrower for them, or hold less often (benchmarks/certify.py)."""
REPLICATES = 1000


@dataclass(frozen=True)
class Sample:
    """The labelled images of a site.

    Attributes
    ----------
    index : ndarray of int, shape (n,)
        Which of the site's N images they are.
    probability : ndarray of float, shape (n,), in (0, 1]
        With which each was drawn, for all N images known before the draw; n / N each for a simple random sample.
    """

    index: NDArray[np.int64]
    probability: Floats

    @property
    def weights(self) -> Floats:
        """Shares of the site that the images stand for, shape (n,); they sum to 1."""
        inverse = 1 / self.probability
        return np.asarray(inverse / inverse.sum())

    @property
    def spread(self) -> Floats:
        """Weight of each squared residual in the variance of a mean, shape (n,): Hajek's approximation for a fixed size."""
        return np.asarray((1 - self.probability) * self.weights**2)


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval.

    Attributes
    ----------
    value, low, high : float
    n : int
        Labelled images that it rests on.
    correlation : float or None
        Of the figure's terms and their predictions, among the labelled images; None where either does not vary.
    power : float
        How far predictions are trusted (lambda); 0 is not at all.
    """

    value: float
    low: float
    high: float
    n: int
    correlation: float | None
    power: float


def wilson(share: float, n: float, quantile: float) -> tuple[float, float]:
    """Return Wilson's interval of a share of ``n`` images, not necessarily a whole number, for a quantile of the deviation."""
    square = quantile**2 / n
    centre = (share + square / 2) / (1 + square)
    half = quantile * np.sqrt(share * (1 - share) / n + square / (4 * n)) / (1 + square)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def rate(
    hits: NDArray[Any],
    among: NDArray[Any],
    expected_hits: Floats,
    expected_among: Floats,
    sample: Sample,
    *,
    level: float = 0.95,
    powered: bool = True,
) -> Estimate | None:
    """Estimate the share of images of a kind that are hits, such as the sensitivity: called among positives.

    Parameters
    ----------
    hits, among : ndarray of bool or 0 and 1, shape (n,)
        Of the labelled images, in the order of ``sample``; hits are among ``among``.
    expected_hits, expected_among : ndarray, shape (N,)
        What a model expects of both, for every image of the site.
    sample : Sample
    level : float
        Of the interval.
    powered : bool
        False leaves the predictions out: what the labels alone would say.

    Returns
    -------
    Estimate or None
        None if no labelled image is of the kind.

    Notes
    -----
    The ratio is linearised, its terms regressed on their predictions, and the interval is Wilson's with the number of images that
    would give the same variance (Korn and Graubard, Survey Methodology 1998), which stays inside [0, 1] and holds for few errors.
    """
    hit, kind = np.asarray(hits, np.float64), np.asarray(among, np.float64)
    count = int((kind > 0).sum())
    if count == 0:
        return None
    weights, spread = sample.weights, sample.spread
    expected_hit, expected_kind = expected_hits[sample.index], expected_among[sample.index]
    hit_gap = weights @ expected_hit - expected_hits.mean()
    kind_gap = weights @ expected_kind - expected_among.mean()
    plain = value = float(weights @ hit / (weights @ kind))
    scale, power = float(weights @ kind), 0.0
    use = powered and min(int((hit > 0).sum()), count - int((hit > 0).sum())) >= POWERED_FROM
    for _ in range(2 if use else 0):  # the terms depend on the value: once at the plain one, once at its own
        terms, predicted = _centred(hit - value * kind, weights), _centred(expected_hit - value * expected_kind, weights)
        power = _slope(terms, predicted, spread)
        scale = float(weights @ kind - power * kind_gap)
        value = float((weights @ hit - power * hit_gap) / scale) if scale > 0 else plain
    if not (0 < value < 1 and scale > 0):
        value, power, scale = plain, 0.0, float(weights @ kind)
    terms, predicted = _centred(hit - value * kind, weights), _centred(expected_hit - value * expected_kind, weights)
    fitted = 2 if power else 1
    of_site = weights @ terms**2 / len(expected_hits)
    within, alone = (
        float((spread @ (terms - trust * predicted) ** 2) * len(hit) / (len(hit) - fitted) + of_site) for trust in (power, 0.0)
    )
    variance = within / scale**2
    used = weights[kind > 0]
    equivalent = float(used.sum() ** 2 / (used @ used))
    if variance > 0 and 0 < value < 1:
        equivalent = min(value * (1 - value) / variance, _most(hit[kind > 0], used) * max(1.0, alone / within))
    quantile = stats.t.ppf((1 + level) / 2, max(count - fitted, 1))
    low, high = wilson(value, max(equivalent, 1.0), float(quantile))
    return Estimate(value, low, high, count, _correlation(terms, predicted, weights), power)


def _most(hits: Floats, weights: Floats) -> float:
    """Return how many images the labels can be worth without predictions: as many as if one more had been a hit, or a miss.

    Where all hits are images that stand for few, as where a model that is sure of everything was wrong about the rest, their
    spread alone says that hits among the many are impossible, and not that none was seen yet. The one more stands for as much as
    the site's images do on average (after Fay and Feuer, Stat. Med. 1997, and Tiwari, Clegg and Zou, Stat. Methods Med. Res.
    2006). With equal weights it is one image more than there are, and changes nothing.
    """
    shares = weights / weights.sum()
    shares = np.append(shares, shares @ shares)
    shares /= shares.sum()
    found = []
    for one in (0.0, 1.0):
        values = np.append(hits, one)
        share = float(shares @ values)
        found.append(share * (1 - share) / float(shares**2 @ (values - share) ** 2))
    return min(found)


def mean(
    values: Floats, predicted: Floats, sample: Sample, *, level: float = 0.95, seed: int = 0, powered: bool = True
) -> Estimate:
    """Estimate the mean of something unbounded and skewed, such as the loss.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Of the labelled images.
    predicted : ndarray, shape (N,)
        Of every image of the site.
    sample, level, powered
        As for :func:`rate`.
    seed : int
        Of the resamples.

    Returns
    -------
    Estimate
        Bootstrap-t (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 12.5): the usual interval holds too
        seldom where few large values make up the mean.
    """
    use = powered and len(values) >= MEAN_POWERED_FROM and float(np.ptp(sample.probability)) <= 1e-9
    guess = predicted[sample.index]
    draws = np.concatenate([
        np.arange(len(values))[None],
        np.random.default_rng(seed).integers(0, len(values), (REPLICATES, len(values))),
    ])  # fmt: skip
    weights = sample.weights[draws]
    weights /= weights.sum(axis=1, keepdims=True)
    spread = (1 - sample.probability[draws]) * weights**2
    terms = _centred(values[draws], weights)
    guesses = _centred(guess[draws], weights)
    power = _slope(terms, guesses, spread) if use else np.zeros(len(draws))
    # In the resamples the sample is the site: the gap is between their guesses and the sample's, in the sample to the site's
    reference = np.full(len(draws), sample.weights @ guess)
    reference[0] = predicted.mean()
    found = (weights * values[draws]).sum(axis=1) - power * ((weights * guess[draws]).sum(axis=1) - reference)
    within = (spread * (terms - power[:, None] * guesses) ** 2).sum(axis=1) * len(values) / (len(values) - (2 if use else 1))
    errors = np.sqrt(within + (weights * terms**2).sum(axis=1) / len(predicted))
    centre = float(sample.weights @ values)
    scaled = (found[1:] - centre)[errors[1:] > 0] / errors[1:][errors[1:] > 0]
    correlation = _correlation(terms[0], guesses[0], weights[0])
    value, error = float(found[0]), float(errors[0])
    if len(scaled) == 0:  # every labelled value is the same
        return Estimate(value, value, value, len(values), correlation, 0.0)
    low, high = np.quantile(scaled, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, value - float(high) * error, value - float(low) * error, len(values), correlation, float(power[0]))


def _centred(values: Floats, weights: Floats) -> Floats:
    return np.asarray(values - (weights * values).sum(axis=-1, keepdims=True))


def _slope(terms: Floats, predicted: Floats, spread: Floats) -> Any:
    """Return the power of least variance: the weighted slope of the terms on their predictions; 0 where these do not vary."""
    square = (spread * predicted**2).sum(axis=-1)
    return np.where(square > 0, (spread * predicted * terms).sum(axis=-1) / np.where(square > 0, square, 1.0), 0.0)[()]


def _correlation(terms: Floats, predicted: Floats, weights: Floats) -> float | None:
    squares = float((weights @ terms**2) * (weights @ predicted**2))
    return float(weights @ (terms * predicted) / np.sqrt(squares)) if squares > 0 else None
