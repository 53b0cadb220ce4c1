"""Style-agnostic networks: train a classifier to see content, and keep style from its featurizer."""

from __future__ import annotations

import copy

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from models.networks.classifier import Classifier
from models.networks.normalization import BatchInstanceNorm2d

_EPS = 1e-5


def _statistics(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the maps in single precision, and the mean and standard deviation of every sample's channels."""
    if features.ndim != 4 or len(features) < 2:
        raise ValueError(f"need feature maps (N, C, H, W) with N >= 2, got {tuple(features.shape)}")
    features = features.float()  # variances of half-precision maps lose their digits
    variance, mean = torch.var_mean(features, dim=(2, 3), correction=0, keepdim=True)
    return features, mean, torch.sqrt(variance + _EPS)


def randomize_style(features: Tensor, generator: Generator) -> Tensor:
    """Mix each sample's channel statistics with another sample's.

    Content (the spatial layout) is kept. Style (each channel's mean and standard deviation) becomes a own + (1 - a) other's,
    a ~ U(0, 1) a sample, the other a random member of the batch (which may be the sample itself).

    Parameters
    ----------
    features : Tensor, shape (N, C, H, W)
        Feature maps. Pooled (N, C) features are refused: without space there is no style to separate.
    generator : Generator
        On the CPU.

    Returns
    -------
    Tensor, float32, shape (N, C, H, W)

    Raises
    ------
    ValueError
        If ``features`` is not 4-D, or N < 2.

    References
    ----------
    Nam et al., "Reducing Domain Gap by Reducing Style Bias", CVPR 2021, arXiv:1910.11645, section 3.1.
    """
    features, mean, deviation = _statistics(features)
    other = torch.randperm(len(features), generator=generator).to(features.device)
    own = torch.rand(len(features), 1, 1, 1, generator=generator).to(features.device)
    scale = own + (1 - own) * deviation[other] / deviation
    return features * scale + (own - scale) * mean + (1 - own) * mean[other]


def randomize_content(features: Tensor, generator: Generator) -> Tensor:
    """Put another sample's content under each sample's style.

    The channel statistics are the sample's own; the normalised map is that of a random member of the batch, detached, so
    that a gradient reaches the features through their style alone.

    Parameters
    ----------
    features : Tensor, shape (N, C, H, W)
    generator : Generator
        On the CPU.

    Returns
    -------
    Tensor, float32, shape (N, C, H, W)

    Raises
    ------
    ValueError
        If ``features`` is not 4-D, or N < 2.

    References
    ----------
    Nam et al., CVPR 2021, arXiv:1910.11645, section 3.2.
    """
    features, mean, deviation = _statistics(features)
    other = torch.randperm(len(features), generator=generator).to(features.device)
    with torch.no_grad():
        content = ((features - mean) / deviation)[other]
    return content * deviation + mean


def uniform_cross_entropy(logits: Tensor) -> Tensor:
    """Return the mean cross-entropy of (N, K) logits to the uniform distribution; least, log K, where all are equal.

    References
    ----------
    Nam et al., CVPR 2021, arXiv:1910.11645, section 3.2, without its weight.
    """
    return -functional.log_softmax(logits.float(), dim=1).mean()


class StyleHead(nn.Module):
    """A copy of what follows the featurizer, to classify by style; dropped after training.

    Parameters
    ----------
    classifier : Classifier
        Copied with its weights.
    style_stage : int
        Stages of the featurizer, at least 1 and fewer than the classifier has.
    """

    def __init__(self, classifier: Classifier, style_stage: int) -> None:
        super().__init__()
        if not 1 <= style_stage < len(classifier.stages):
            raise ValueError(f"style_stage must lie in 1..{len(classifier.stages) - 1}, got {style_stage}")
        self.stages = copy.deepcopy(classifier.stages[style_stage:])
        self.dropout = copy.deepcopy(classifier.dropout)
        self.head = copy.deepcopy(classifier.head)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (N, K) of feature maps (N, C, H, W)."""
        for stage in self.stages:
            features = stage(features)
        logits: Tensor = self.head(self.dropout(features.mean(dim=(2, 3))))
        return logits


def featurizer_maps(classifier: Classifier, image: Tensor, style_stage: int) -> list[Tensor]:
    """Return the maps of the first ``style_stage`` stages of an image (N, C, H, W)."""
    maps = []
    current = classifier.stem(image)
    for stage in classifier.stages[:style_stage]:
        current = stage(current)
        maps.append(current)
    return maps


def content_maps(classifier: Classifier, image: Tensor, style_stage: int, generator: Generator) -> list[Tensor]:
    """Return the maps of every stage, those after ``style_stage`` of randomised style.

    Parameters
    ----------
    image : Tensor, shape (N, C, H, W), N >= 2
    style_stage : int
        Stages of the featurizer.
    generator : Generator
        On the CPU.
    """
    maps = featurizer_maps(classifier, image, style_stage)
    current = randomize_style(maps[-1], generator)
    for stage in classifier.stages[style_stage:]:
        current = stage(current)
        maps.append(current)
    return maps


def adversarial_parameters(classifier: Classifier, style_stage: int) -> list[nn.Parameter]:
    """Return gamma and beta of every normalisation layer of the featurizer: all that the adversarial step may move.

    References
    ----------
    Nam et al., CVPR 2021, arXiv:1910.11645, section 3.2.
    """
    parts = [classifier.stem, *classifier.stages[:style_stage]]
    layers = [layer for part in parts for layer in part.modules() if isinstance(layer, nn.BatchNorm2d | BatchInstanceNorm2d)]
    return [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
