"""How well objects are found and outlined: the definitions, on a true and a predicted label image.

A label image has shape (rows, columns) and an integer dtype: 0 is background, every other value one object. Labels need not be
consecutive, nor an object connected. Two images without objects agree: every figure is 1. If only one has objects, it is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer[Any]]
Ints = NDArray[np.int64]


def foreground_iou(true: Labels, predicted: Labels) -> float:
    """Return the intersection over union of the two foregrounds, objects not told apart.

    Of a probability map, the foreground is where it is at least 0.5. The paper's figure is the mean over images.

    References
    ----------
    Yoo, Yoo and Paeng, "PseudoEdgeNet: Nuclei Segmentation only with Point Annotations", MICCAI 2019, arXiv:1906.02924.
    """
    intersection, sizes = _foreground(true, predicted)
    return intersection / (sizes - intersection) if sizes else 1.0


def dice(true: Labels, predicted: Labels) -> float:
    """Return twice the intersection of the two foregrounds over the sum of their areas, objects not told apart.

    References
    ----------
    Dice, "Measures of the Amount of Ecologic Association Between Species", Ecology 26(3), 1945.
    """
    intersection, sizes = _foreground(true, predicted)
    return 2 * intersection / sizes if sizes else 1.0


def aji(true: Labels, predicted: Labels) -> float:
    """Return the aggregated Jaccard index, as its authors define and compute it.

    Every true object is matched with the predicted one of largest IoU (of equal ones, that of the smallest label); the
    intersections are summed to C, the unions to U. A true object that nothing overlaps adds its area to U, as does a predicted
    one that no true object was matched with. The index is C / U. A predicted object may be matched with several true ones and
    is then counted with each: merging two nuclei costs twice. Variants with one-to-one matching ("AJI+") give larger values.

    References
    ----------
    Kumar et al., "A Dataset and a Technique for Generalized Nuclear Segmentation for Computational Pathology", IEEE TMI 36(7),
    2017, algorithm 1.
    """
    overlap = _overlap(true, predicted)
    # By true object, the largest IoU first; the sort is stable and the pairs are in the order of the predicted labels.
    order = np.lexsort((-overlap.iou, overlap.true))
    matched_true, first = np.unique(overlap.true[order], return_index=True)
    best = order[first]
    found_by_none = np.delete(overlap.true_areas, matched_true).sum()
    matched_with_none = np.delete(overlap.predicted_areas, np.unique(overlap.predicted[best])).sum()
    union = int(overlap.union[best].sum() + found_by_none + matched_with_none)
    return float(overlap.intersection[best].sum() / union) if union else 1.0


def panoptic_quality(true: Labels, predicted: Labels) -> tuple[float, float, float]:
    """Return panoptic quality and its factors.

    A true and a predicted object match if their IoU is above 0.5, which gives each at most one partner.

    Returns
    -------
    pq : float
        Segmentation quality x recognition quality.
    sq : float
        Segmentation quality: mean IoU of the matches; 0 if there are objects but no match.
    rq : float
        Recognition quality: matches / (matches + half the objects without one), the F1 at IoU 0.5.

    References
    ----------
    Kirillov et al., "Panoptic Segmentation", CVPR 2019, arXiv:1801.00868, section 4.2.
    """
    overlap = _overlap(true, predicted)
    matches = overlap.iou > 0.5
    objects = len(overlap.true_areas) + len(overlap.predicted_areas)
    if not objects:
        return 1.0, 1.0, 1.0
    sq = float(overlap.iou[matches].mean()) if matches.any() else 0.0
    rq = float(2 * matches.sum() / objects)
    return sq * rq, sq, rq


def object_f1(true: Labels, predicted: Labels, threshold: float = 0.5) -> float:
    """Return the F1 of finding objects: 2 TP / (true objects + predicted objects), TP being the pairs of larger IoU.

    Parameters
    ----------
    true, predicted : ndarray of int, shape (rows, columns)
    threshold : float, in [0.5, 1)
        A pair counts if its IoU is above it. Below 0.5 an object could have several partners.

    Raises
    ------
    ValueError
        If ``threshold`` is out of range.
    """
    if not 0.5 <= threshold < 1:
        raise ValueError(f"threshold must be in [0.5, 1), got {threshold}")
    overlap = _overlap(true, predicted)
    objects = len(overlap.true_areas) + len(overlap.predicted_areas)
    return float(2 * (overlap.iou > threshold).sum() / objects) if objects else 1.0


@dataclass(frozen=True)
class _Overlap:
    """Areas of the objects, and the pairs that share a pixel: indices of both, shared pixels; ordered by true, then predicted."""

    true_areas: Ints
    predicted_areas: Ints
    true: Ints
    predicted: Ints
    intersection: Ints

    @property
    def union(self) -> Ints:
        areas: Ints = self.true_areas[self.true] + self.predicted_areas[self.predicted] - self.intersection
        return areas

    @property
    def iou(self) -> NDArray[np.float64]:
        ratio: NDArray[np.float64] = self.intersection / self.union
        return ratio


def _overlap(true: Labels, predicted: Labels) -> _Overlap:
    _check(true, predicted)
    either = (true > 0) | (predicted > 0)
    # A zero ahead of the pixels makes the background's index 0 where every pixel is an object, too.
    true_index = np.unique(np.concatenate([[0], true[either]]), return_inverse=True)[1][1:]
    predicted_labels, predicted_index = np.unique(np.concatenate([[0], predicted[either]]), return_inverse=True)
    predicted_index = predicted_index[1:]
    pairs, shared = np.unique(true_index * len(predicted_labels) + predicted_index, return_counts=True)
    pair_true, pair_predicted = np.divmod(pairs, len(predicted_labels))
    objects = (pair_true > 0) & (pair_predicted > 0)
    return _Overlap(
        np.bincount(true_index)[1:],
        np.bincount(predicted_index)[1:],
        pair_true[objects] - 1,
        pair_predicted[objects] - 1,
        shared[objects],
    )


def _foreground(true: Labels, predicted: Labels) -> tuple[int, int]:
    """Return the pixels in both foregrounds, and the sum of their areas."""
    _check(true, predicted)
    return int(np.count_nonzero((true > 0) & (predicted > 0))), int(np.count_nonzero(true) + np.count_nonzero(predicted))


def _check(true: Labels, predicted: Labels) -> None:
    if true.ndim != 2 or true.shape != predicted.shape:
        raise ValueError(f"need two label images of one shape (rows, columns), got {true.shape} and {predicted.shape}")
    for labels in (true, predicted):
        if not np.issubdtype(labels.dtype, np.integer) or (labels.size and labels.min() < 0):
            raise ValueError(f"labels must be integers of at least 0, got {labels.dtype}")
