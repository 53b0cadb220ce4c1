"""Which unlabelled images an ensemble is sure enough of to be trained on, and as what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PseudoLabels:
    """What an ensemble says of unlabelled images.

    Attributes
    ----------
    indices : ndarray of int64, shape (M,)
        Of the images that have a label, in increasing order.
    labels : ndarray of int64, shape (M,)
    agreement : float, in [0, 1]
        Share of all images to which every member gives the same class.
    """

    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    agreement: float


def choose(members: Sequence[NDArray[np.floating[Any]]], share: float) -> PseudoLabels:
    """Choose the images on which every member agrees and the ensemble is the most confident, class by class.

    Class by class, because what is easy abroad would otherwise fill the whole choice, and the rest be forgotten.

    Parameters
    ----------
    members : sequence of ndarray, each of shape (N, K)
        Probabilities of each member; their mean is the ensemble's.
    share : float, in (0, 1]
        Of the images of a class on which all agree, rounded up; ties go to the lower index.

    References
    ----------
    Zou et al., "Unsupervised Domain Adaptation for Semantic Segmentation via Class-Balanced Self-Training", ECCV 2018,
    arXiv:1810.07911, section 4.2: a share of each class, in place of one threshold for all. The ensemble and its rounds: Nam et
    al., arXiv:1910.11645, entry to the Visual Domain Adaptation Challenge 2019.
    """
    mean = np.mean(members, axis=0)
    predicted = mean.argmax(axis=1)
    agreed = np.all([part.argmax(axis=1) == predicted for part in members], axis=0)
    chosen: list[int] = []
    for label in range(mean.shape[1]):
        candidates = np.flatnonzero(agreed & (predicted == label))
        order = np.argsort(-mean[candidates, label], kind="stable")
        chosen += candidates[order[: math.ceil(share * len(candidates) - 1e-9)]].tolist()
    indices = np.array(sorted(chosen), dtype=np.int64)
    return PseudoLabels(indices, predicted[indices].astype(np.int64), float(agreed.mean()) if len(agreed) else 0.0)
