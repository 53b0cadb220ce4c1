"""What a segmenter says of one image: objects in original pixels, and a doubt a tile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DetectedObject:
    """One object.

    Attributes
    ----------
    polygon : ndarray, float64, shape (V, 2)
        Outer boundary, (x, y) in original pixels, corner origin; valid and simple, not closed (the first vertex is not repeated).
    area : float, pixels squared
        Of the label image's pixels.
    score : float, in [0, 1]
        Mean foreground probability.
    """

    polygon: NDArray[np.float64]
    area: float
    score: float


@dataclass(frozen=True)
class TileDoubt:
    """How wrong the model expects to be on one tile: a part of the image that an expert could annotate.

    ``x``, ``y``, ``width`` and ``height`` are in original pixels, corner origin. ``predicted_loss`` is the expected 1 - Dice.
    """

    x: int
    y: int
    width: int
    height: int
    predicted_loss: float
    loss_percentile: float
    domain_distance: float
    domain_percentile: float


@dataclass(frozen=True)
class Segmentation:
    """What a segmenter says of one image or region.

    Attributes
    ----------
    objects : tuple of DetectedObject
        In the order of their labels in ``label_image``: the first is 1.
    label_image : ndarray, int32, shape (rows, columns)
        0 background, 1..N objects.
    tiles : tuple of TileDoubt
    predicted_loss : float
        Expected 1 - Dice: the mean over the tiles.
    loss_score, domain_distance : float
        Means over the tiles of the graph's raw values; comparable within one model package only.
    loss_percentile, domain_percentile : float, percent
        Highest rank, among the tiles of the calibration set, that more than a third of the tiles reach:
        :func:`models.uncertainty.image_percentile`.
    entropy : float, nats
        Mean over the pixels of that of the foreground probability.
    features : ndarray, float32, shape (D,)
        Mean over the tiles.
    origin : (int, int), pixels
        (x, y) of the corner of ``label_image`` in the image; objects and tiles are in the image's pixels already.
    """

    objects: tuple[DetectedObject, ...]
    label_image: NDArray[np.int32]
    tiles: tuple[TileDoubt, ...]
    predicted_loss: float
    loss_score: float
    loss_percentile: float
    domain_distance: float
    domain_percentile: float
    entropy: float
    features: NDArray[np.float32]
    origin: tuple[int, int] = (0, 0)
