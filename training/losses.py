"""Losses of training: pure functions, each with its paper and section."""

from __future__ import annotations

import torch
from torch import Tensor


def ranking_loss(scores: Tensor, true_losses: Tensor, margin: float) -> Tensor:
    """Ask that of two images the one with the larger true loss has the larger score.

    Neighbours in the batch form the pairs: (0, 1), (2, 3), ...; the last of an odd batch is left out. A pair (i, j) costs
    max(0, -sign(l_i - l_j) (s_i - s_j) + margin). A pair of equal losses costs the margin and moves nothing.

    Parameters
    ----------
    scores : Tensor, shape (N,)
        Predicted, without a unit; larger is more doubtful.
    true_losses : Tensor, shape (N,)
        Of the task. They are detached: the ranking must not change the loss that it predicts.
    margin : float
        Above 0.

    Returns
    -------
    Tensor, scalar
        Mean over the pairs.

    Raises
    ------
    ValueError
        If the shapes differ or there is no pair.

    References
    ----------
    Yoo and Kweon, "Learning Loss for Active Learning", CVPR 2019, arXiv:1905.03677, section 3.3, equation 2.
    """
    if scores.ndim != 1 or scores.shape != true_losses.shape or len(scores) < 2:
        raise ValueError(
            f"need scores and losses of one shape (N,), N >= 2; got {tuple(scores.shape)}, {tuple(true_losses.shape)}"
        )
    pairs = len(scores) // 2
    losses = true_losses.detach()[: 2 * pairs].view(pairs, 2)
    predicted = scores[: 2 * pairs].view(pairs, 2)
    sign = torch.sign(losses[:, 0] - losses[:, 1])
    return torch.relu(margin - sign * (predicted[:, 0] - predicted[:, 1])).mean()
