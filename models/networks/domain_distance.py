"""How far an image's features lie from the domains of training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

GRID = 4
"""Cells a side of :func:`grid_statistics`."""


def stage_statistics(maps: Sequence[Tensor]) -> Tensor:
    """Return the channel means and standard deviations of every stage, over the whole image.

    The early stages tell the scanner, the noise and an inverted grey scale; the late ones tell what is shown, but not where: the
    choice for textures, such as tissue, which have no top.

    Parameters
    ----------
    maps : sequence of Tensor
        Each of shape (N, C_i, h_i, w_i).

    Returns
    -------
    Tensor, shape (N, 1, S), S = 2 x sum of C_i
    """
    parts = []
    for stage in maps:
        mean = stage.mean(dim=(2, 3))
        variance = (stage - mean[:, :, None, None]).square().mean(dim=(2, 3))
        parts += [mean, torch.sqrt(variance + 1e-6)]  # without the constant a dead channel has no gradient and no scale
    return torch.cat(parts, dim=1)[:, None]


def grid_statistics(maps: Sequence[Tensor]) -> Tensor:
    """Return the channel means of every stage but the last, in each cell of a grid over the image.

    For views that are always taken the same way: what lies where is part of what is usual, so that an image upside down is
    far. The last stage is left out: it is what the classifier decides by, and differs between classes more than between domains.

    Parameters
    ----------
    maps : sequence of Tensor
        Each of shape (N, C_i, h_i, w_i).

    Returns
    -------
    Tensor, shape (N, P, S), P = GRID x GRID cells, S = sum of C_i without the last
    """
    parts = []
    for stage in maps[:-1]:
        rows, columns = (_averages(size).to(stage) for size in stage.shape[2:])
        parts.append((rows @ stage @ columns.T).flatten(2))
    return torch.cat(parts, dim=1).transpose(1, 2)


def _averages(size: int) -> Tensor:
    """Return the weights (GRID, size) of the mean of each cell; cells share a pixel where the size is no multiple of the grid."""
    weights = torch.zeros(GRID, size)
    for cell in range(GRID):
        first, end = cell * size // GRID, -(-(cell + 1) * size // GRID)
        weights[cell, first:end] = 1 / (end - first)
    return weights


class DomainDistance(nn.Module):
    """Mahalanobis distance to the nearest training domain, divided by the root of the number of dimensions.

    Parameters
    ----------
    whitening : Tensor, shape (P, S, S)
        For each position W with W^T W the inverse of the covariance within the domains, of the statistics there.
    centres : Tensor, shape (domains, P, S)
        W times the difference of the mean statistics of each training domain from the origin.
    origin : Tensor, shape (P, S)
        Taken from statistics before they are whitened: of two large numbers that are nearly equal, single precision keeps the
        difference only if it is taken first.

    Notes
    -----
    An image drawn from a training domain has a distance near 1. It is larger for an image that is less alike, without a
    bound, and has no unit. Positions are taken for independent: their squared distances are averaged.

    References
    ----------
    Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks", NeurIPS
    2018, arXiv:1807.03888, section 2.1, with domains in the place of classes and a shrunk covariance.
    """

    def __init__(self, whitening: Tensor, centres: Tensor, origin: Tensor) -> None:
        super().__init__()
        self.whitening: Tensor
        self.centres: Tensor
        self.origin: Tensor
        self.register_buffer("whitening", whitening)
        self.register_buffer("centres", centres)
        self.register_buffer("origin", origin)

    def forward(self, statistics: Tensor) -> Tensor:
        """Return the distance (N,), at least 0, of statistics (N, P, S)."""
        whitened = ((statistics - self.origin)[:, :, None] @ self.whitening.transpose(1, 2))[:, :, 0]
        squared = (whitened[:, None] - self.centres).square().mean(dim=(2, 3))
        return torch.sqrt(squared.amin(dim=1))


class ViewDistance(nn.Module):
    """Distance of a view that is always taken the same way: root of the mean square of those over the whole image and a grid.

    The whole image tells noise and contrast, which the means in a cell do not; the grid tells what lies where.

    Parameters
    ----------
    whole : DomainDistance
        Of :func:`stage_statistics`.
    grid : DomainDistance
        Of :func:`grid_statistics`.
    """

    def __init__(self, whole: DomainDistance, grid: DomainDistance) -> None:
        super().__init__()
        self.whole = whole
        self.grid = grid

    def of(self, whole: Tensor, grid: Tensor) -> Tensor:
        """Return the distance (N,) of statistics (N, 1, S) of the whole image and (N, P, S') of the grid."""
        return torch.sqrt((self.whole(whole).square() + self.grid(grid).square()) / 2)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the distance (N,) of the maps of all stages."""
        return self.of(stage_statistics(maps), grid_statistics(maps))
