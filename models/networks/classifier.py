"""A small residual classifier whose last stage is pooled and then weighted linearly, so that its logits have a map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation, added to the input.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    stride : int
        Of the first convolution; where it is not 1, or the channels differ, the input is projected by a 1x1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        residual = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(inputs)))))
        return torch.relu(residual + self.shortcut(inputs))


def residual_encoder(channels: int, widths: Sequence[int], blocks: int) -> tuple[nn.Sequential, nn.ModuleList]:
    """Return stem and stages.

    Parameters
    ----------
    channels : int
        Of the image.
    widths : sequence of int
        Channels of each stage; the stem halves the image and every stage but the first halves it again.
    blocks : int
        Residual blocks a stage.
    """
    stem = nn.Sequential(nn.Conv2d(channels, widths[0], 5, 2, 2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True))
    stages: list[nn.Module] = []
    inputs = widths[0]
    for index, width in enumerate(widths):
        first = ResidualBlock(inputs, width, 1 if index == 0 else 2)
        stages.append(nn.Sequential(first, *(ResidualBlock(width, width, 1) for _ in range(blocks - 1))))
        inputs = width
    return stem, nn.ModuleList(stages)


class Classifier(nn.Module):
    """Residual stages, global average pooling, one linear layer.

    Parameters
    ----------
    channels : int
        Of the image.
    classes : int
        Number of logits, K.
    widths, blocks : sequence of int, int
        See :func:`residual_encoder`.
    dropout : float, in [0, 1)
        On the pooled features, in training only.
    body : (Module, sequence of Module), optional
        A stem and stages to take in place of residual ones; the stages' channels are ``widths``.
    """

    def __init__(
        self, channels: int, classes: int, widths: Sequence[int], blocks: int, dropout: float,
        body: tuple[nn.Module, Sequence[nn.Module]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.widths = tuple(widths)
        stem, stages = residual_encoder(channels, widths, blocks) if body is None else body
        self.stem: nn.Module = stem
        self.stages = nn.ModuleList(stages)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], classes)

    def stage_maps(self, image: Tensor) -> list[Tensor]:
        """Return the map of every stage.

        Parameters
        ----------
        image : Tensor, float32, shape (N, C, H, W)

        Returns
        -------
        list of Tensor
            Shapes (N, widths[i], H / 2**(i + 1), W / 2**(i + 1)).
        """
        maps = []
        current = self.stem(image)
        for stage in self.stages:
            current = stage(current)
            maps.append(current)
        return maps

    def pool(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the features (N, widths[-1]): the spatial mean of the last stage."""
        return maps[-1].mean(dim=(2, 3))

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (N, K) of features (N, widths[-1])."""
        logits: Tensor = self.head(self.dropout(features))
        return logits

    def heatmap(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the class activation maps.

        The head is applied at every position, its bias included, so that the spatial mean of a map is that class's logit.

        Parameters
        ----------
        maps : sequence of Tensor
            As :meth:`stage_maps` returns them.

        Returns
        -------
        Tensor, shape (N, K, h, w)
            Of the last stage's size, in logits.

        References
        ----------
        Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, arXiv:1512.04150, section 2.
        """
        return nn.functional.conv2d(maps[-1], self.head.weight[:, :, None, None], self.head.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (N, K) of an image (N, C, H, W)."""
        return self.classify(self.pool(self.stage_maps(image)))
