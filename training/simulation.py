"""Rounds of annotation replayed on images whose labels are known: only a last layer on a package's features is trained again."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from models.errors import Refusal
from models.journal import Record
from models.pool import STRATEGIES, Given
from training.metrics import auroc

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
RANDOM = "random"
TEST_SHARE = 0.4
"""Of the patients; the others' images are the pool."""
WHAT_IT_IS = (
    "A simulation. The package's features stay as they are, and only a logistic regression on them is trained again after every "
    "round; predicted loss is the package's in all rounds, and does not follow. Training the whole network gains more from every "
    "label, and orders the strategies differently if its doubts change. Strategies are compared on the same patients, starts and "
    "labels; the interval is over seeds, which share patients, and says nothing of another archive."
)
STRENGTH = 10.0
"""Inverse of the ridge penalty, on features whose squares sum to about 1."""
LEAST = 5
"""Images of a class, for a curve to mean something."""


@dataclass(frozen=True)
class Archive:
    """Labelled images as a package sees them.

    Attributes
    ----------
    labels : ndarray of int64, shape (N,)
        Index into the card's classes.
    patients : ndarray of str, shape (N,)
    loss, chances, features : ndarray, shapes (N,), (N, K) and (N, D)
        Of the package: raw loss score, probabilities, pooled features.
    finding : int
        Index of the card's first finding.
    """

    labels: Indices
    patients: NDArray[np.str_]
    loss: Floats
    chances: Floats
    features: NDArray[np.float32]
    finding: int

    @property
    def sha256(self) -> str:
        """Digest of all of it, order included: the same images by the same package, under the same labels."""
        digest = hashlib.sha256(f"{self.finding} {self.features.shape}".encode())
        for part in (self.labels, self.loss, self.chances, self.features):
            digest.update(part.tobytes())
        digest.update("\n".join(self.patients.tolist()).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Rounds:
    """How many labels there are at first, are added a round, and how many rounds."""

    first: int
    budget: int
    rounds: int

    @property
    def labels(self) -> list[int]:
        """Labels after each round."""
        return [self.first + self.budget * number for number in range(self.rounds + 1)]


def fit(archive: Archive, labelled: Indices) -> Callable[[Indices], Floats]:
    """Fit a last layer to labelled images, and return the function from indices (M,) to probabilities (M, K).

    A logistic regression on the features, each scaled by its mean and deviation over *all* images (which needs no label), and
    divided by the root of their number, so that as many features as there are do not fit a few labels by themselves. As long as
    one class alone is labelled nothing can be fitted, and the package's own probabilities stand.
    """
    if len(np.unique(archive.labels[labelled])) < 2:
        return lambda wanted: archive.chances[wanted]
    features = archive.features.astype(np.float64)
    scaled = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-9) / np.sqrt(features.shape[1])
    model = LogisticRegression(C=STRENGTH, max_iter=2000).fit(scaled[labelled], archive.labels[labelled])

    def chances(wanted: Indices) -> Floats:
        found = np.zeros((len(wanted), archive.chances.shape[1]))
        found[:, model.classes_] = model.predict_proba(scaled[wanted])
        return found

    return chances


def score(archive: Archive, test: Indices, chances: Floats) -> dict[str, float]:
    """Return AUROC of the finding and accuracy of the most probable class, on images ``test``."""
    labels = archive.labels[test]
    return {
        "auroc": auroc(labels == archive.finding, chances[:, archive.finding]),
        "accuracy": float((chances.argmax(axis=1) == labels).mean()),
    }


def split(archive: Archive, seed: int) -> tuple[Indices, Indices]:
    """Return the indices of the pool and of the test images: no patient is in both."""
    patients = np.unique(archive.patients)
    tested = np.random.default_rng(seed).permutation(patients)[: max(1, round(TEST_SHARE * len(patients)))]
    held = np.isin(archive.patients, tested)
    return np.flatnonzero(~held), np.flatnonzero(held)


def replay(archive: Archive, strategy: str, plan: Rounds, seed: int, kept: MutableMapping[str, Record]) -> list[dict[str, float]]:
    """Return the scores after every round of one strategy; the start depends on the seed alone.

    Parameters
    ----------
    archive : Archive
    strategy : str
        A key of :data:`models.pool.STRATEGIES`.
    plan : Rounds
    seed : int
        Of the split, of the first labels, and of the strategy's own draws.
    kept : mapping
        Rounds that were replayed before, of the same archive, first labels and budget; it receives those of now, as they come.
    """
    pool, test = split(archive, seed)
    labelled = np.empty(0, dtype=np.int64)
    head: Callable[[Indices], Floats] | None = None
    scores = []
    for number in range(plan.rounds + 1):
        key = f"{strategy}, seed {seed}, round {number}"
        if key in kept:
            labelled, head = np.concatenate([labelled, np.array(kept[key]["chosen"], dtype=np.int64)]), None
        else:
            if number == 0:
                chosen = np.random.default_rng((seed, 1)).permutation(pool)[: plan.first]
            else:
                chances = head or fit(archive, labelled)
                rest = np.setdiff1d(pool, labelled)
                given = Given(
                    archive.loss[rest], chances(rest), archive.features[rest], archive.features[labelled],
                    archive.patients[rest], plan.budget, 1000 * seed + number,
                )  # fmt: skip
                chosen = rest[[index for index, _ in STRATEGIES[strategy](given)]]
            labelled = np.concatenate([labelled, chosen])
            head = fit(archive, labelled)
            kept[key] = {"chosen": chosen.tolist()} | score(archive, test, head(test))
        scores.append({name: float(kept[key][name]) for name in ("auroc", "accuracy")})
    return scores


def needed(labels: NDArray[Any], scores: NDArray[Any], wanted: float) -> float | None:
    """Return at how many labels a curve first reaches ``wanted``, linear between rounds; None if it never does."""
    above = np.flatnonzero(scores >= wanted)
    if not len(above):
        return None
    last = int(above[0])
    if last == 0:
        return float(labels[0])
    part = (wanted - scores[last - 1]) / (scores[last] - scores[last - 1])
    return float(labels[last - 1] + part * (labels[last] - labels[last - 1]))


def check(archive: Archive, plan: Rounds, seeds: int, classes: Sequence[str]) -> None:
    """Refuse what gives no curve.

    Raises
    ------
    Refusal
        ``one_class``; ``data_invalid`` if too few of a class are there; a split lacks the finding or all others; or the pool
        is smaller than the labels asked for.
    """
    counts = np.bincount(archive.labels, minlength=len(classes))
    if (counts > 0).sum() < 2:
        raise Refusal("one_class", "All images have one label: there is nothing to tell apart.")
    for name, count in zip(classes, counts.tolist(), strict=True):
        if 0 < count < LEAST:
            raise Refusal("data_invalid", f"There are {count} images of {name}; at least {LEAST} are needed, or none.")
    for seed in range(seeds):
        pool, test = split(archive, seed)
        positive = archive.labels[test] == archive.finding
        if positive.all() or not positive.any():
            raise Refusal("data_invalid", "Too few patients: those to test on all have the finding, or none of them has.")
        if len(pool) < plan.labels[-1]:
            raise Refusal(
                "data_invalid",
                f"The pool has {len(pool)} images, {plan.labels[-1]} labels were asked for: take fewer.",
            )


def curves(
    archive: Archive, strategies: Sequence[str], plan: Rounds, seeds: int, kept: MutableMapping[str, Record]
) -> list[dict[str, Any]]:
    """Return the lines of the table: strategy, seed, labels, auroc and accuracy; ``kept`` is that of :func:`replay`."""
    rows = []
    cells = [(strategy, seed) for seed in range(seeds) for strategy in strategies]
    for strategy, seed in tqdm(cells, desc="replaying", unit="curve", file=sys.stderr):
        for labels, scores in zip(plan.labels, replay(archive, strategy, plan, seed, kept), strict=True):
            rows.append({"strategy": strategy, "seed": seed, "labels": labels} | scores)
    return rows


def summarise(rows: Sequence[dict[str, Any]], archive: Archive, seeds: int) -> dict[str, Any]:
    """Return mean curves, and which share of random's labels each strategy needs for what random reaches at the end.

    ``needs`` is None where random's end is not reached, or where ``random_gains`` nothing from its first labels to its last, so
    that there is nothing to save. ``difference`` is the paired difference from random's AUROC, mean over
    the rounds after the first, with its standard deviation over seeds.
    """
    ends = [split(archive, seed) for seed in range(seeds)]
    whole = [score(archive, test, fit(archive, pool)(test))["auroc"] for pool, test in ends]
    as_it_is = [score(archive, test, archive.chances[test])["auroc"] for _, test in ends]
    curve = {}
    for strategy in dict.fromkeys(row["strategy"] for row in rows):
        mine = [[row["auroc"] for row in rows if (row["strategy"], row["seed"]) == (strategy, seed)] for seed in range(seeds)]
        curve[strategy] = np.array(mine)
    labels = np.array(sorted({row["labels"] for row in rows}))
    start, goal = curve[RANDOM].mean(axis=0)[[0, -1]].tolist()
    found = {}
    for strategy, values in curve.items():
        at = needed(labels, values.mean(axis=0), goal) if goal > start else None
        gap = (values - curve[RANDOM])[:, 1:].mean(axis=1)
        found[strategy] = {
            "auroc": values.mean(axis=0).tolist(), "std": values.std(axis=0, ddof=1 if seeds > 1 else 0).tolist(),
            "needs": None if at is None else at / float(labels[-1]),
            "difference": float(gap.mean()), "difference_std": float(gap.std(ddof=1 if seeds > 1 else 0)),
        }  # fmt: skip
    return {
        "what_it_is": WHAT_IT_IS, "labels": labels.tolist(), "seeds": seeds, "strategies": found, "random_gains": goal - start,
        "all_labels": float(np.mean(whole)), "package_as_it_is": float(np.mean(as_it_is)),
    }  # fmt: skip
