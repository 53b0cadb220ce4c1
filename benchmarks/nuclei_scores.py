"""What is measured of a segmentation of nuclei, and how sure the difference of two rows is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from models.card import ObjectSpec
from models.separation import separate
from training.instance_metrics import aji, dice, foreground_iou, object_f1, panoptic_quality
from training.segmenter_calibrate import MAX_PIXELS, quality
from training.segmenter_data import Tissue

METRICS = ("foreground_iou", "dice", "aji", "panoptic_quality", "object_f1")
THRESHOLD = 0.5
SMOOTHINGS, PEAK_DISTANCES, MIN_AREAS = (1.0, 0.5, 2.0, 3.0), (5, 3, 8), (20, 40, 80)
"""Pixels; of equally good ones the first is chosen."""
RULE = (
    "Threshold 0.5 for all rows. Separation: the highest mean quality of objects on training images drawn at random, by what "
    "the row's annotators gave: F1 of objects that hold exactly one point, or AJI by full masks. No test image took part."
)
RESAMPLES = 4000

Floats = NDArray[np.float64]


def choose_separation(images: Sequence[Tissue], foregrounds: Sequence[NDArray[np.float32]]) -> tuple[ObjectSpec, float]:
    """Return the separation of the best objects by what is known of training images, and how good they are.

    Parameters
    ----------
    images : sequence of Tissue
        With what was annotated, and nothing else: without masks, points decide.
    foregrounds : sequence of ndarray, float32, shape (rows, columns)
        Probabilities.
    """
    first = ObjectSpec(
        label="nucleus", threshold=THRESHOLD, separation="distance_watershed", smoothing=SMOOTHINGS[0],
        peak_distance=PEAK_DISTANCES[0], min_area=MIN_AREAS[0], overlap=0, max_pixels=MAX_PIXELS, rule=RULE,
    )  # fmt: skip
    names = ("smoothing", "peak_distance", "min_area")
    options = [
        first.model_copy(update=dict(zip(names, values, strict=True)))
        for values in product(SMOOTHINGS, PEAK_DISTANCES, MIN_AREAS)
    ]
    scores = [
        float(np.mean([quality(tissue, separate(found, spec)) for tissue, found in zip(images, foregrounds, strict=True)]))
        for spec in options
    ]
    best = int(np.argmax(scores))
    return options[best], scores[best]


def drawn(images: Sequence[Tissue], most: int, seed: int) -> list[Tissue]:
    """Return images drawn at random, at least one, of ``most`` pixels together at most."""
    order = np.random.default_rng(seed).permutation(len(images))
    pixels = np.cumsum([images[index].colours[..., 0].size for index in order])
    return [images[index] for index in order[: max(1, int((pixels <= most).sum()))]]


def measure(image: Tissue, foreground: NDArray[np.float32], spec: ObjectSpec) -> dict[str, float]:
    """Return all :data:`METRICS` of one image; foreground IoU and Dice of the thresholded map, as the papers have them."""
    true = image.objects
    if true is None:
        raise ValueError("an image without masks cannot be tested on")
    above = (foreground >= spec.threshold).astype(np.int32)
    found = separate(foreground, spec)
    values = (
        foreground_iou(true, above), dice(true, above), aji(true, found), panoptic_quality(true, found)[0],
        object_f1(true, found, 0.5),
    )  # fmt: skip
    return dict(zip(METRICS, values, strict=True))


def interval(samples: Iterable[tuple[int, str, float, float]]) -> tuple[float, float, float]:
    """Return sum(values) / sum(bases), and the 95% interval of it.

    Parameters
    ----------
    samples : iterable of (seed, group, value, base)
        One an image and run. With the base 1 the result is a mean; with another row's value, a ratio of means.

    Notes
    -----
    Percentiles of a bootstrap that draws seeds and, independently, groups of images with all their images: runs of one seed and
    images of one hospital or slide are no independent observations.
    """
    seeds, groups, values, bases = zip(*samples, strict=True)
    seed = np.unique(seeds, return_inverse=True)[1]
    group = np.unique(groups, return_inverse=True)[1]
    sums = np.zeros((2, seed.max() + 1, group.max() + 1))
    for total, each in zip(sums, (values, bases), strict=True):
        np.add.at(total, (seed, group), each)
    random = np.random.default_rng(0)
    of_seeds, of_groups = (random.multinomial(n, np.full(n, 1 / n), RESAMPLES) for n in sums.shape[1:])
    top, bottom = np.einsum("bs,ksg,bg->kb", of_seeds, sums, of_groups)
    estimates = top[bottom > 0] / bottom[bottom > 0]
    low, high = np.percentile(estimates, [2.5, 97.5])
    return float(sums[0].sum() / sums[1].sum()), float(low), float(high)


def at_minutes(minutes: float, known: Sequence[float], values: Floats) -> Floats:
    """Return what a budget of minutes reaches: linear in the logarithm between budgets, constant beyond.

    Parameters
    ----------
    minutes : float
    known : sequence of float, ascending
        Minutes that were measured.
    values : ndarray, shape (len(known), N)
    """
    return np.array([np.interp(np.log(minutes), np.log(known), column) for column in values.T])
