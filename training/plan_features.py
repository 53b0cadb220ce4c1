"""A learning curve without training a network: a logistic regression on a model package's features, at growing sizes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from models.errors import Refusal
from models.predictor import Predictor
from models.seen import look_at_all, predictions
from models.site import names_of
from models.site_labels import read_labels
from training.metrics import auroc

Floats = NDArray[np.float64]
TEST_SHARE = 0.3
SMALLEST = 10
MOST_SIZES = 8


def features_of(
    package: Path, labels: Path, images: Path, threads: int, store: Path
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.str_]]:
    """Return the features (N, D), classes (N,) and patients (N,) of labelled images, each image once.

    What the package says of each is kept in ``store`` as it comes: see :func:`models.seen.predictions`.

    Raises
    ------
    Refusal
        ``data_invalid`` if labels contradict each other or name what is not there, ``one_class``, ``too_few_labels``, or
        ``folder_unavailable`` if the folder goes away.
    """
    predictor = Predictor.load(package)
    names = names_of(images)
    given, _ = read_labels(labels, None, None, names)
    with predictions(store, predictor) as kept:
        seen = look_at_all([names[label.file] for label in given], images, predictor, threads, "images", kept)
    found: dict[str, tuple[Any, str, str]] = {}
    for each, label in zip(seen, given, strict=True):
        if each.prediction is None:
            continue
        if found.get(each.digest, (None, label.label))[1] != label.label:
            raise Refusal("data_invalid", "Two files of --labels hold the same image, and their labels contradict each other.")
        found[each.digest] = each.prediction.features, label.label, each.patient
    unread = sum(each.prediction is None for each in seen)
    if unread:
        print(f"{unread} labelled files cannot be read and were passed over", file=sys.stderr)
    classes = sorted({label for _, label, _ in found.values()})
    if len(classes) < 2:
        raise Refusal("one_class", "All labelled images are of one class: there is nothing to learn.")
    if len(found) < 2 * SMALLEST:
        raise Refusal("too_few_labels", f"{len(found)} labelled images can be used; a curve needs far more than {2 * SMALLEST}.")
    features = np.array([item[0] for item in found.values()], dtype=np.float32)
    kinds = np.array([classes.index(item[1]) for item in found.values()])
    return features, kinds, np.array([item[2] for item in found.values()])


def split(patients: NDArray[np.str_], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return training images in the order they are added, and test images, of other patients."""
    random = np.random.default_rng(seed)
    names, which = np.unique(patients, return_inverse=True)
    place = random.permutation(len(names))
    test = place[which] < round(TEST_SHARE * len(names))
    return random.permutation(np.flatnonzero(~test)), np.flatnonzero(test)


def sizes_below(count: int) -> list[int]:
    """Return sizes that halve from ``count`` down to at least ten, the smallest first."""
    sizes = [count >> step for step in range(MOST_SIZES) if count >> step >= SMALLEST]
    return sizes[::-1]


def _accuracy(chances: Floats, kinds: NDArray[np.int64]) -> float:
    return float((chances.argmax(axis=1) == kinds).mean())


def _auroc(chances: Floats, kinds: NDArray[np.int64]) -> float:
    """Return the mean AUROC of each class against the others."""
    return float(np.nanmean([auroc(kinds == kind, chances[:, kind]) for kind in range(chances.shape[1])]))


SCORES: dict[str, Callable[[Floats, NDArray[np.int64]], float]] = {"accuracy": _accuracy, "auroc": _auroc}


def curve(
    features: NDArray[np.floating[Any]],
    kinds: NDArray[np.int64],
    patients: NDArray[np.str_],
    score: Literal["accuracy", "auroc"],
    seeds: int,
) -> list[tuple[int, int, float]]:
    """Measure a learning curve.

    Parameters
    ----------
    features : ndarray, shape (N, D)
    kinds : ndarray of int, shape (N,)
    patients : ndarray, shape (N,)
        Test images are of other patients than training images.
    score : "accuracy" or "auroc"
    seeds : int
        Each splits anew; its training sets grow by what is added.

    Returns
    -------
    list of (labels, seed, score)

    Raises
    ------
    Refusal
        ``too_few_labels`` if no split has two classes to learn and two to test on, as where all images are of one patient.
    """
    measured = []
    count = int(kinds.max()) + 1
    splits = [split(patients, seed) for seed in range(seeds)]
    sizes = sizes_below(min(len(train) for train, _ in splits))
    for seed, (train, test) in enumerate(splits):
        for size in sizes:
            chosen = train[:size]
            known = np.unique(kinds[chosen])
            if len(known) < 2 or len(np.unique(kinds[test])) < 2:
                continue
            head = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
            head.fit(features[chosen], kinds[chosen])
            chances = np.zeros((len(test), count))
            chances[:, known] = head.predict_proba(features[test])
            measured.append((size, seed, SCORES[score](chances, kinds[test])))
    if not measured:
        why = "No split by patient leaves two classes to learn and two to test on; are the patients of the images noted?"
        raise Refusal("too_few_labels", why)
    return measured


def measure(
    package: Path, labels: Path, images: Path, score: Literal["accuracy", "auroc"], seeds: int, threads: int, store: Path
) -> list[tuple[int, int, float]]:
    """Measure the learning curve of labelled images; see :func:`features_of` for what is refused."""
    return curve(*features_of(package, labels, images, threads, store), score, seeds)
