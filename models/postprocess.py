"""Graph outputs to predictions: probabilities and doubts in units, and the heatmap as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from models import uncertainty
from models.card import ModelCard

HEATMAP_SIDE = 512
"""Longer side of a heatmap picture, pixels."""


@dataclass(frozen=True)
class RawOutputs:
    """What the graph yields for N images; float32, names and shapes as in :data:`models.card.GRAPH_OUTPUTS`."""

    logits: NDArray[np.float32]
    features: NDArray[np.float32]
    loss_score: NDArray[np.float32]
    domain_distance: NDArray[np.float32]
    heatmap: NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes
    ----------
    probabilities : dict of str to float
        Calibrated, one a class of the card, in its order; they sum to 1.
    predicted_loss : float, nats
        Expected cross-entropy on this image.
    loss_percentile, domain_percentile : float, percent
        Rank in the calibration set.
    loss_score, domain_distance : float
        The graph's raw values; comparable within one model package only.
    entropy : float, nats
        Of ``probabilities``.
    features : array of float32, shape (D,)
    heatmap : array of float32, shape (K, h, w), or None
        Each position's contribution to each class's logit.
    """

    probabilities: dict[str, float]
    predicted_loss: float
    loss_percentile: float
    loss_score: float
    domain_distance: float
    domain_percentile: float
    entropy: float
    features: NDArray[np.float32]
    heatmap: NDArray[np.float32] | None


def predictions(raw: RawOutputs, card: ModelCard, *, heatmap: bool = False) -> list[Prediction]:
    """Turn the outputs for N images, all finite, into N predictions, with the card's calibration."""
    calibration = card.calibration
    probabilities = uncertainty.softmax(raw.logits, calibration.temperature)
    entropies = uncertainty.entropy(probabilities)
    losses = uncertainty.predicted_loss(raw.loss_score, calibration)
    loss_ranks = uncertainty.percentile(raw.loss_score, calibration.loss_quantiles)
    domain_ranks = uncertainty.percentile(raw.domain_distance, calibration.domain_quantiles)
    return [
        Prediction(
            probabilities={name: float(p) for name, p in zip(card.output.classes, probabilities[i], strict=True)},
            predicted_loss=float(losses[i]),
            loss_percentile=float(loss_ranks[i]),
            loss_score=float(raw.loss_score[i]),
            domain_distance=float(raw.domain_distance[i]),
            domain_percentile=float(domain_ranks[i]),
            entropy=float(entropies[i]),
            features=raw.features[i],
            heatmap=raw.heatmap[i] if heatmap else None,
        )
        for i in range(len(raw.logits))
    ]


def heatmap_png(heatmap: NDArray[np.float32], card: ModelCard, label: str, rows: int, columns: int) -> tuple[bytes, float]:
    """Draw where the evidence for a finding lies.

    Parameters
    ----------
    heatmap : array of float32, shape (K, h, w)
        Of one prediction.
    card : ModelCard
    label : str
        A finding of the card.
    rows, columns : int, pixels
        Size of the source image; the picture has its aspect ratio, its longer side is :data:`HEATMAP_SIDE` at most.

    Returns
    -------
    png : bytes
        8-bit grey: 0 is no evidence for (or evidence against), 255 the strongest evidence in this image.
    peak : float
        What 255 stands for: a contribution to the logit of ``label`` against the mean of the other classes.
    """
    index = card.output.classes.index(label)
    others = np.delete(heatmap, index, axis=0).mean(axis=0)
    evidence = np.clip(heatmap[index] - others, 0.0, None).astype(np.float32)
    peak = float(evidence.max())
    shrink = min(1.0, HEATMAP_SIDE / max(rows, columns))
    size = (max(1, round(columns * shrink)), max(1, round(rows * shrink)))
    scaled = evidence / peak if peak > 0 else evidence
    picture = PIL.Image.fromarray(scaled).resize(size, PIL.Image.Resampling.BILINEAR)
    grey = np.round(np.clip(np.asarray(picture), 0.0, 1.0) * 255).astype(np.uint8)
    stream = BytesIO()
    PIL.Image.fromarray(grey).save(stream, format="PNG")
    return stream.getvalue(), peak
