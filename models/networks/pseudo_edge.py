"""PseudoEdgeNet: boundaries that only points taught. Used in training alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.segmenter import Segmenter

_ACROSS = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


def sobel(probabilities: Tensor) -> Tensor:
    """Return the edges of a foreground map by the fixed Sobel filters.

    Parameters
    ----------
    probabilities : Tensor, float32, shape (N, 1, H, W)

    Returns
    -------
    Tensor, shape (N, 2, H, W)
        Across (x) and down (y); 8 times the slope a pixel, so in [-4, 4] for probabilities. The border, repeated, is no edge.
    """
    across = torch.tensor(_ACROSS, dtype=probabilities.dtype, device=probabilities.device)
    filters = torch.stack([across, across.T])[:, None]
    return functional.conv2d(functional.pad(probabilities, (1, 1, 1, 1), mode="replicate"), filters)


class PseudoEdge(nn.Module):
    """Edges of nuclei from the raw image: a shallow network finds edges, an attention chooses those of nuclei.

    Parameters
    ----------
    channels : int
        Of the image.
    width : int
        Channels of g, the edge network: four 3x3 convolutions. It must stay shallow: a deep one memorises the foreground map that
        it is compared with, instead of finding edges in the image.
    attention_widths : sequence of int
        Stages of h, the attention: a :class:`~models.networks.segmenter.Segmenter` with a sigmoid. Empty: no attention.

    References
    ----------
    Yoo, Yoo and Paeng, "PseudoEdgeNet: Nuclei Segmentation only with Point Annotations", MICCAI 2019, arXiv:1906.02924,
    section 2.2.
    """

    def __init__(self, channels: int, width: int, attention_widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (channels, width, width):
            layers += [nn.Conv2d(inputs, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        # The last layer is linear: an edge has a sign
        self.edges = nn.Sequential(*layers, nn.Conv2d(width, 2, 3, 1, 1))
        self.attention = Segmenter(channels, attention_widths, 1) if attention_widths else None

    def forward(self, image: Tensor) -> Tensor:
        """Return the edges (N, 2, H, W), across (x) and down (y), of an image (N, C, H, W)."""
        edges: Tensor = self.edges(image)
        return edges if self.attention is None else edges * torch.sigmoid(self.attention(image))
