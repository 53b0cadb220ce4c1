"""The loss prediction module: from the maps of every stage to one score an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LossPrediction(nn.Module):
    """Score how large the loss of an image will be.

    Parameters
    ----------
    widths : sequence of int
        Channels of the stages it looks at.
    hidden : int
        Units a stage.

    Notes
    -----
    A stage: global average pooling, a linear layer, ReLU. The stages are concatenated and weighted linearly. The score has
    no unit and no final activation: larger means a larger loss, and nothing else, until it is calibrated.

    References
    ----------
    Yoo and Kweon, "Learning Loss for Active Learning", CVPR 2019, arXiv:1905.03677, section 3.2 and figure 2.
    """

    def __init__(self, widths: Sequence[int], hidden: int = 128) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(width, hidden) for width in widths)
        self.score = nn.Linear(hidden * len(widths), 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the score (N,) of stage maps, each of shape (N, widths[i], h, w).

        Raises
        ------
        ValueError
            If the number of maps is not that of ``widths``.
        """
        hidden = [torch.relu(branch(stage.mean(dim=(2, 3)))) for branch, stage in zip(self.branches, maps, strict=True)]
        score: Tensor = self.score(torch.cat(hidden, dim=1))
        return score[:, 0]
