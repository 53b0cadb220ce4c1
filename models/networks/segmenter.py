"""A small residual encoder and a feature pyramid above it: one foreground logit a pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.classifier import residual_encoder


def _enlarged(small: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(small, size=size, mode="bilinear", align_corners=False)


class Segmenter(nn.Module):
    """A feature pyramid with one logit a pixel.

    Parameters
    ----------
    channels : int
        Of the image.
    widths : sequence of int
        Channels of each stage; the stem halves the image and every stage but the first halves it again. The pyramid has as
        many channels as the second stage (or the only one).
    blocks : int
        Residual blocks a stage.

    Notes
    -----
    The decoder adds every stage, projected by a 1x1 convolution, to the enlarged sum of the deeper ones, and smooths each sum by
    a 3x3 convolution; the smoothed maps are added at the size of the first stage, half the image's, where the logit is taken. It
    is enlarged to the image linearly: a boundary is known to about a pixel, and the largest maps cost no convolution.

    References
    ----------
    Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017, arXiv:1612.03144, section 3; Kirillov et al.,
    "Panoptic Feature Pyramid Networks", CVPR 2019, arXiv:1901.02446, section 3.1, for adding the levels of a segmentation.
    """

    def __init__(self, channels: int, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.widths = tuple(widths)
        pyramid = widths[min(1, len(widths) - 1)]
        self.stem, self.stages = residual_encoder(channels, widths, blocks)
        self.lateral = nn.ModuleList(nn.Conv2d(width, pyramid, 1) for width in widths)
        self.smooth = nn.ModuleList(
            nn.Sequential(nn.Conv2d(pyramid, pyramid, 3, 1, 1, bias=False), nn.BatchNorm2d(pyramid), nn.ReLU()) for _ in widths
        )
        self.head = nn.Conv2d(pyramid, 1, 3, 1, 1)

    def stage_maps(self, image: Tensor) -> list[Tensor]:
        """Return the map of every stage.

        Parameters
        ----------
        image : Tensor, float32, shape (N, C, H, W)

        Returns
        -------
        list of Tensor
            Shapes (N, widths[i], H / 2**(i + 1), W / 2**(i + 1)), rounded up, not negative.
        """
        maps = []
        current = self.stem(image)
        for stage in self.stages:
            current = stage(current)
            maps.append(current)
        return maps

    def decode(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Return the foreground logits.

        Parameters
        ----------
        maps : sequence of Tensor
            As :meth:`stage_maps` returns them.
        size : (int, int), pixels
            Height and width of the logits: the image's.

        Returns
        -------
        Tensor, shape (N, 1, *size)
        """
        levels = [lateral(stage) for lateral, stage in zip(self.lateral, maps, strict=True)]
        for index in range(len(levels) - 1, 0, -1):
            above = levels[index - 1]
            levels[index - 1] = above + _enlarged(levels[index], (above.shape[2], above.shape[3]))
        smoothed = [smooth(level) for smooth, level in zip(self.smooth, levels, strict=True)]
        finest = smoothed[0]
        for level in smoothed[1:]:
            finest = finest + _enlarged(level, (finest.shape[2], finest.shape[3]))
        return _enlarged(self.head(finest), size)

    def pool(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the features (N, widths[-1]): the spatial mean of the last stage."""
        return torch.mean(maps[-1], dim=(2, 3))

    def forward(self, image: Tensor) -> Tensor:
        """Return the foreground logits (N, 1, H, W) of an image (N, C, H, W)."""
        return self.decode(self.stage_maps(image), (image.shape[2], image.shape[3]))
