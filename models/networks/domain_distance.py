"""How far an image's features lie from the domains of training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def stage_statistics(maps: Sequence[Tensor]) -> Tensor:
    """Return the channel means and standard deviations of every stage.

    The early stages tell the scanner, the noise and an inverted grey scale; the late ones tell what is shown.

    Parameters
    ----------
    maps : sequence of Tensor
        Each of shape (N, C_i, h_i, w_i).

    Returns
    -------
    Tensor, shape (N, 2 x sum of C_i)
    """
    parts = []
    for stage in maps:
        mean = stage.mean(dim=(2, 3))
        variance = (stage - mean[:, :, None, None]).square().mean(dim=(2, 3))
        parts += [mean, torch.sqrt(variance + 1e-6)]  # without the constant a dead channel has no gradient and no scale
    return torch.cat(parts, dim=1)


class DomainDistance(nn.Module):
    """Mahalanobis distance to the nearest training domain, divided by the root of the number of dimensions.

    Parameters
    ----------
    whitening : Tensor, shape (S, S)
        W with W^T W the inverse of the covariance within the domains, of the statistics of :func:`stage_statistics`.
    centres : Tensor, shape (domains, S)
        Whitened means: W times the mean statistics of each training domain.

    Notes
    -----
    An image drawn from a training domain has a distance near 1. It is larger for an image that is less alike, without a
    bound, and has no unit.

    References
    ----------
    Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks", NeurIPS
    2018, arXiv:1807.03888, section 2.1, with domains in the place of classes and a shrunk covariance.
    """

    def __init__(self, whitening: Tensor, centres: Tensor) -> None:
        super().__init__()
        self.whitening: Tensor
        self.centres: Tensor
        self.register_buffer("whitening", whitening)
        self.register_buffer("centres", centres)

    def forward(self, statistics: Tensor) -> Tensor:
        """Return the distance (N,), at least 0, of statistics (N, S)."""
        whitened = statistics @ self.whitening.T
        squared = (whitened[:, None, :] - self.centres[None, :, :]).square().mean(dim=2)
        return torch.sqrt(squared.amin(dim=1))
