"""What the card's figures are: definitions on arrays, and their intervals by bootstrap over patients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from models.card import Figure

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
NOT_DEFINED = float("nan")
REPLICATES = 1000


def auroc(positive: Bools, scores: NDArray[np.floating[Any]]) -> float:
    """Return the probability that a positive scores above a negative, ties counting half; NaN without both kinds."""
    count = int(positive.sum())
    others = len(positive) - count
    if not count or not others:
        return NOT_DEFINED
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))


def ece(confidence: Floats, correct: Bools, bins: int = 15) -> float:
    """Return the expected calibration error.

    Parameters
    ----------
    confidence : ndarray, shape (N,), in [0, 1]
        Probability of the most probable class.
    correct : ndarray of bool, shape (N,)
        Whether that class is the label.
    bins : int
        Of equal width.

    References
    ----------
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599, equation 3.
    """
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(index, weights=confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def aurc(wrong: Bools, doubt: NDArray[np.floating[Any]]) -> float:
    """Return the area under the risk-coverage curve: the error rate of the n least doubtful, averaged over n = 1..N.

    References
    ----------
    Geifman, Uziel and El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers", ICLR 2019,
    arXiv:1805.08206, section 3.
    """
    ordered = wrong[np.argsort(doubt, kind="stable")]
    return float((np.cumsum(ordered) / np.arange(1, len(ordered) + 1)).mean())


def share(hits: Bools, among: Bools) -> float:
    """Return which share of ``among`` are ``hits``; NaN if there are none."""
    return float(hits[among].mean()) if among.any() else NOT_DEFINED


Columns = Mapping[str, NDArray[Any]]

METRICS: dict[str, Callable[[Columns], float]] = {
    "auroc": lambda c: auroc(c["positive"], c["probability"]),
    "sensitivity": lambda c: share(c["called"], c["positive"]),
    "specificity": lambda c: share(~c["called"], ~c["positive"]),
    "accuracy": lambda c: float((~c["wrong"]).mean()),
    "ece": lambda c: ece(c["confidence"], c["correct"]),
    "true_loss": lambda c: float(c["true_loss"].mean()),
    "predicted_loss": lambda c: float(c["predicted_loss"].mean()),
    "predicted_loss_unseen": lambda c: float(c["predicted_loss_unseen"].mean()),
    "error_auroc_predicted_loss": lambda c: auroc(c["wrong"], c["loss_score"]),
    "error_auroc_entropy": lambda c: auroc(c["wrong"], c["entropy"]),
    "error_auroc_domain_distance": lambda c: auroc(c["wrong"], c["domain_distance"]),
    "aurc_predicted_loss": lambda c: aurc(c["wrong"], c["loss_score"]),
    "aurc_entropy": lambda c: aurc(c["wrong"], c["entropy"]),
    "aurc_domain_distance": lambda c: aurc(c["wrong"], c["domain_distance"]),
    "share_review": lambda c: float(c["review"].mean()),
    "share_refuse": lambda c: float(c["refuse"].mean()),
}
"""Name of a figure -> its value from the columns of :func:`training.evaluate.columns`."""


CALLS = ("sensitivity", "specificity", "accuracy")
"""Figures of calls: under the verdict refuse the service makes none."""


def bootstrap(
    metrics: Sequence[str],
    columns: Columns,
    patients: Sequence[str],
    replicates: int = REPLICATES,
    definitions: Mapping[str, Callable[[Columns], float]] = METRICS,
) -> dict[str, tuple[float, float] | None]:
    """Return the 95% interval of each metric by resampling patients, with all their images.

    Parameters
    ----------
    metrics : sequence of str
        Keys of ``definitions``.
    columns : mapping of str to ndarray, each of shape (N, ...)
    patients : sequence of str
        Patient of each image: images of one are not independent.
    replicates : int
        Resamples; always the same ones for the same patients.
    definitions : mapping of str to callable
        Name of a figure -> its value from the columns.

    Returns
    -------
    dict of str to (float, float) or None
        The 2.5% and 97.5% quantiles; None if the metric is undefined in more than a twentieth of the replicates, or there is
        one patient only.
    """
    index = np.unique(np.asarray(patients), return_inverse=True)[1]
    members = [np.flatnonzero(index == patient) for patient in range(index.max() + 1)]
    if len(members) < 2:
        return dict.fromkeys(metrics)  # one patient resampled is the same patient: an interval of no width would say certainty
    random = np.random.default_rng(0)
    values: dict[str, list[float]] = {name: [] for name in metrics}
    for _ in range(replicates):
        chosen = np.concatenate([members[patient] for patient in random.integers(0, len(members), len(members))])
        resampled = {name: column[chosen] for name, column in columns.items()}
        for name in metrics:
            values[name].append(definitions[name](resampled))
    return {name: _interval(np.array(found)) for name, found in values.items()}


def _interval(values: Floats) -> tuple[float, float] | None:
    defined = values[~np.isnan(values)]
    if len(defined) < 0.95 * len(values):
        return None
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)


def tell_refused(figures: Sequence[Figure], calls: Sequence[str], refused: NDArray[Any]) -> list[Figure]:
    """Return the figures, and with each of ``calls`` how many of its images are refused, where there are any.

    Parameters
    ----------
    figures : sequence of Figure
    calls : sequence of str
        Metrics of what is called.
    refused : ndarray, shape (N,)
        Whether an image has the verdict ``refuse``, of the images that the figures are of.
    """
    count = int(np.count_nonzero(refused))
    note = (
        f"{count} of these {len(refused)} images are refused; they count as if they were not. The service calls nothing in them."
    )
    return [
        figure.model_copy(update={"note": f"{figure.note} {note}".lstrip()}) if count and figure.metric in calls else figure
        for figure in figures
    ]
