"""What is said of a site: figures with intervals, limits with a promise, one version against another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from models.card import Finding, ModelCard
from models.estimates import Estimate, Sample, mean, rate, wilson
from models.thresholds import Promise, beginning, labels_needed, loosest, lower_bound

Floats = NDArray[np.float64]
Document = dict[str, Any]
LEVEL = 0.95
SHARES = np.arange(0.05, 1.0001, 0.05)
"""Shares of the site, by predicted probability or doubt, at whose ends limits are tried."""


@dataclass(frozen=True)
class Answers:
    """What a model answers for the N images of a site.

    Attributes
    ----------
    probabilities : ndarray, shape (N, K)
    predicted_loss, loss_percentile : ndarray, shape (N,)
    held_back : ndarray of bool, shape (N,)
        Reviewed for another reason than predicted loss.
    """

    probabilities: Floats
    predicted_loss: Floats
    loss_percentile: Floats
    held_back: NDArray[np.bool_]

    @classmethod
    def of(cls, rows: list[Document], card: ModelCard) -> Answers:
        """Line up the rows of a site."""
        classes = card.output.classes
        return cls(
            np.array([[row["probabilities"][name] for name in classes] for row in rows], dtype=np.float64).reshape(
                -1, len(classes)
            ),
            np.array([row["predicted_loss"] for row in rows], dtype=np.float64),
            np.array([row["loss_percentile"] for row in rows], dtype=np.float64),
            np.array([bool(set(row["reasons"]) - {"within_limits", "predicted_loss_high"}) for row in rows], dtype=np.bool_),
        )

    def __getitem__(self, index: NDArray[Any]) -> Answers:
        """Return the answers for some of the images."""
        return replace(self, **{name: getattr(self, name)[index] for name in self.__dataclass_fields__})

    def losses(self, labels: NDArray[np.int64]) -> Floats:
        """Return the cross-entropy, nats, shape (N,), where ``labels`` (N,) are the classes."""
        return np.asarray(-np.log(np.maximum(self.probabilities[np.arange(len(labels)), labels], 1e-12)))


@dataclass(frozen=True)
class View:
    """One finding of a site's N images: its probability, whether it is called, and its class."""

    finding: Finding
    kind: int
    probability: Floats
    called: NDArray[np.bool_]

    @classmethod
    def of(cls, finding: Finding, card: ModelCard, answers: Answers) -> View:
        """Look at a finding of the card."""
        kind = card.output.classes.index(finding.label)
        probability = answers.probabilities[:, kind]
        return cls(finding, kind, probability, probability >= finding.operating_point)

    @property
    def wrong(self) -> Floats:
        """Predicted probability that the call is wrong, shape (N,)."""
        return np.where(self.called, 1 - self.probability, self.probability)


def rate_terms(view: View, positive: NDArray[np.bool_], sample: Sample) -> dict[str, tuple[Any, Any, Any, Any]]:
    """Return for every rate: hits and among (n,), and what is expected of both (N,)."""
    called, call = view.called, view.called[sample.index]
    chance, one, ones = view.probability, np.ones(len(positive)), np.ones(len(called))
    return {
        "error": (call != positive, one, view.wrong, ones),
        "sensitivity": (call & positive, positive, chance * called, chance),
        "specificity": (~call & ~positive, ~positive, (1 - chance) * ~called, 1 - chance),
        "positive_predictive_value": (call & positive, call, chance * called, called * 1.0),
        "negative_predictive_value": (~call & ~positive, ~call, (1 - chance) * ~called, ~called * 1.0),
    }


def _figure(name: str, finding: str | None, estimates: Sequence[Estimate | None]) -> Document:
    powered, alone = estimates
    figure: Document = {"finding": finding, "metric": name}
    if powered is None or alone is None:
        return figure | {"value": None, "note": "No labelled image is of this kind."}
    width = alone.high - alone.low
    narrower = 1 - (powered.high - powered.low) / width if width > 0 else 0.0
    return figure | asdict(powered) | {
        "labels_alone": {"value": alone.value, "low": alone.low, "high": alone.high}, "narrower": narrower,
    }  # fmt: skip


def figures(card: ModelCard, answers: Answers, labels: NDArray[np.int64], sample: Sample) -> list[Document]:
    """Return error, sensitivity, specificity and predictive values of every finding, and the mean loss.

    Parameters
    ----------
    card : ModelCard
    answers : Answers
        For all N images.
    labels : ndarray of int, shape (n,)
        Classes of the sample.
    sample : Sample

    Returns
    -------
    list of dict
        finding, metric, value, low, high, n, correlation, power; labels_alone: the same without predictions; narrower: by which
        share the interval is narrower than that.
    """
    found = []
    for finding in card.output.findings:
        view = View.of(finding, card, answers)
        for name, terms in rate_terms(view, labels == view.kind, sample).items():
            found.append(_figure(name, finding.label, [rate(*terms, sample, powered=powered) for powered in (True, False)]))
    losses = answers[sample.index].losses(labels)
    both = [mean(losses, answers.predicted_loss, sample, powered=powered) for powered in (True, False)]
    found.append(_figure("loss", None, both))
    return found


def _limits(scores: Floats) -> Floats:
    """Return where the given shares of the site's scores end, the highest first: labels have no say in it."""
    return np.asarray(np.unique(np.quantile(scores, 1 - SHARES, method="lower"))[::-1])


def predictive_limits(view: View, labels: NDArray[np.int64], sample: Sample, ppv: float, npv: float) -> list[Document]:
    """Return probabilities from which on, or below which, a predictive value is promised.

    Parameters
    ----------
    view : View
        Of all N images.
    labels : ndarray of int, shape (n,)
        Classes of a *random* sample.
    sample : Sample
    ppv, npv : float, in (0, 1)
        What shall be promised, each with 95% confidence by itself.

    Returns
    -------
    list of dict
        Two of them; ``limit`` is None where nothing can be promised, and ``needed`` says how many labels, all right, it takes.
    """
    found = []
    for name, target, scores, right in (
        ("positive_predictive_value", ppv, view.probability, labels == view.kind),
        ("negative_predictive_value", npv, 1 - view.probability, labels != view.kind),
    ):
        limits = _limits(scores)
        within = scores[None] >= limits[:, None]
        start = beginning(within, scores, sample.index, target, LEVEL)
        promise = loosest(limits.tolist(), within[:, sample.index], right, start, target, LEVEL)
        document: Document = {"finding": view.finding.label, "metric": name, "target": target}
        document |= _promised(promise, target)
        if promise is not None:
            document["share"] = float((scores >= promise.limit).mean())
            document["limit"] = promise.limit if name == "positive_predictive_value" else 1 - promise.limit
        found.append(document)
    return found


def _promised(promise: Promise | None, target: float) -> Document:
    found: Document = {"confidence": LEVEL, "limit": None, "share": None, "n": None, "right": None, "low": None}
    return found | (asdict(promise) if promise else {"needed": labels_needed(target, LEVEL)})


def triage(
    view: View, answers: Answers, labels: NDArray[np.int64], sample: Sample, card: ModelCard, refused: int, error: float
) -> Document:
    """Return the loosest limit of predicted loss whose accepted images have at most this error, and what the card's limit gives.

    Parameters
    ----------
    view, answers
        Of the N images that are answered.
    labels : ndarray of int, shape (n,)
        Classes of a *random* sample.
    sample : Sample
    card : ModelCard
    refused : int
        Images with the verdict ``refuse``.
    error : float, in (0, 1)

    Returns
    -------
    dict
        ``card`` and ``site``: limit (loss percentile from which on an image is reviewed), shares of all images that are accepted,
        reviewed and refused, labelled images accepted, wrong ones, and the bound of their error; ``site`` is None where nothing
        can be promised. ``curve``: the same at every limit that is tried, each by itself.
    """
    right = view.called[sample.index] == (labels == view.kind)
    everything = len(answers.predicted_loss) + refused

    def at(limit: float) -> Document:
        kept = (answers.loss_percentile < limit) & ~answers.held_back
        own = kept[sample.index]
        n, hits = int(own.sum()), int(right[own].sum())
        return {
            "limit": limit, "accepted": kept.sum() / everything, "reviewed": (len(kept) - kept.sum()) / everything,
            "refused": refused / everything, "n": n, "wrong": n - hits,
            "error": (n - hits) / n if n else None, "error_at_most": 1 - lower_bound(hits, n, LEVEL),
        }  # fmt: skip

    limits = np.unique(np.quantile(answers.loss_percentile, SHARES[SHARES < 0.9999], method="higher"))
    limits = np.append(limits[(limits > 0) & (limits < 100)], 100.0)
    within = (answers.loss_percentile[None] < limits[:, None]) & ~answers.held_back
    start = beginning(within, 1 - view.wrong, sample.index, 1 - error, LEVEL)
    promise = loosest(limits.tolist(), within[:, sample.index], right, start, 1 - error, LEVEL)
    return {
        "finding": view.finding.label, "target_error": error, "confidence": LEVEL, "card": at(card.triage.review_loss_percentile),
        "site": at(promise.limit) if promise else None, "needed": None if promise else labels_needed(1 - error, LEVEL),
        "curve": [at(float(limit)) for limit in limits],
    }  # fmt: skip


def compare(
    card: ModelCard, new: Answers, other: Sequence[Finding], old: Answers, labels: NDArray[np.int64], sample: Sample
) -> list[Document]:
    """Return how much more often a model errs than another on the same images, and how much larger its loss is.

    Where both call the same, neither errs more, whatever the label: only images on which they differ, whose share is known
    without labels, leave a question, and only their labels answer it.

    Parameters
    ----------
    card, new
        The model that is certified, and its answers for N images.
    other, old
        Findings of the model it is compared with, and its answers, the classes in the same order.
    labels : ndarray of int, shape (n,)
    sample : Sample

    Returns
    -------
    list of dict
        finding, metric, value (new less old), low, high, n, and for the error ``disagreement``: the share of images that the two
        call differently. ``value`` is None where no such image is labelled; the interval is then all that is possible.
    """
    found: list[Document] = []
    for finding in card.output.findings:
        view = View.of(finding, card, new)
        before = View.of(next(item for item in other if item.label == finding.label), card, old)
        differ = view.called != before.called
        own = differ[sample.index]
        worse = own & (view.called[sample.index] != (labels == view.kind))
        chance = (view.probability + before.probability) / 2
        expected = np.where(view.called, 1 - chance, chance) * differ
        one_sided = rate(worse, own, expected, differ * 1.0, sample)
        share = float(differ.mean())
        few, many = wilson(share, len(differ), float(stats.norm.ppf((1 + LEVEL) / 2)))
        document: Document = {
            "finding": finding.label, "metric": "error", "disagreement": share, "n": int(own.sum()),
            "value": None, "low": -many, "high": many,
        }  # fmt: skip
        if one_sided is not None:
            document |= _product(share, (few, many), one_sided)
        found.append(document)
    own_new, own_old = new[sample.index].losses(labels), old[sample.index].losses(labels)
    loss = mean(own_new - own_old, new.predicted_loss - old.predicted_loss, sample)
    found.append({"finding": None, "metric": "loss", "n": loss.n, "value": loss.value, "low": loss.low, "high": loss.high})
    return found


def _product(share: float, ends: tuple[float, float], worse: Estimate) -> Document:
    """Return share x (2 worse - 1) with its interval, from those of both factors (Zou and Donner, Stat. Med. 2008: MOVER)."""
    lean, low, high = (2 * value - 1 for value in (worse.value, worse.low, worse.high))
    value, (least, most) = share * lean, sorted(lean * end for end in ends)
    return {
        "value": value,
        "low": value - float(np.hypot(share * (lean - low), value - least)),
        "high": value + float(np.hypot(share * (high - lean), most - value)),
    }
