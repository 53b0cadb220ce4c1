"""Losses of training: pure functions, each with its paper and section."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.networks.pseudo_edge import sobel


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


def style_consistency(randomised: Tensor, plain: Tensor) -> Tensor:
    """Ask that an image be classified alike whatever its style.

    Mean over the images of || p(randomised) - p(plain) ||^2, on probabilities.

    Parameters
    ----------
    randomised, plain : Tensor, shape (N, K)
        Logits of the same images, with the style of their maps randomised and as they are. The latter are detached: they say
        what the former shall be, and without labels both would otherwise meet where nothing is told apart.

    Returns
    -------
    Tensor, scalar, in [0, 2]

    References
    ----------
    Nam et al., "Reducing Domain Gap by Reducing Style Bias", arXiv:1910.11645: their entry to the Visual Domain Adaptation
    Challenge 2019, on unlabelled images of the target.
    """
    wanted = functional.softmax(plain.detach().float(), dim=1)
    return (functional.softmax(randomised.float(), dim=1) - wanted).square().sum(dim=1).mean()


def partial_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Compare the foreground with labels that only some pixels have.

    Parameters
    ----------
    logits : Tensor, shape (N, H, W)
        Of the foreground.
    labels : Tensor, integer, shape (N, H, W)
        1 foreground, 0 background; every other value is ignored.

    Returns
    -------
    Tensor, scalar, nats
        Mean of the binary cross-entropy over the labelled pixels of the batch; 0 if there are none.
    """
    known = ((labels == 1) | (labels == 0)).to(logits.dtype)
    return (known * _pixel_losses(logits, labels)).sum() / known.sum().clamp(min=1)


def point_loss(logits: Tensor, labels: Tensor, boundary_weight: float) -> Tensor:
    """Compare the foreground with points and the lines halfway between them.

    Each kind has a mean of its own, so that how many pixels a point or a line is drawn with says nothing about what they weigh.
    In one mean over both, lines outweigh points, nuclei come out too small, and points of one pixel teach nothing (docs/LOG.md).

    Parameters
    ----------
    logits, labels : Tensor
        As for :func:`partial_cross_entropy`.
    boundary_weight : float
        Of the background; points have 1. The paper's is 0.1: lines are less sure, since some cross nuclei.

    Returns
    -------
    Tensor, scalar, nats
        Mean over the foreground's pixels of the batch, plus the weighted mean over the background's; 0 for a kind that is not
        there.

    References
    ----------
    Yoo, Yoo and Paeng, "PseudoEdgeNet: Nuclei Segmentation only with Point Annotations", MICCAI 2019, arXiv:1906.02924,
    section 2.1.
    """
    losses = _pixel_losses(logits, labels)
    point, boundary = ((labels == kind).to(logits.dtype) for kind in (1, 0))
    at_points = (point * losses).sum() / point.sum().clamp(min=1)
    return at_points + boundary_weight * (boundary * losses).sum() / boundary.sum().clamp(min=1)


def _pixel_losses(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, (labels == 1).to(logits.dtype), reduction="none")


def edge_loss(probabilities: Tensor, edges: Tensor) -> Tensor:
    """Return the mean absolute difference between a foreground map's edges and those found in the image.

    Parameters
    ----------
    probabilities : Tensor, shape (N, 1, H, W)
        Of the foreground, by f.
    edges : Tensor, shape (N, 2, H, W)
        Of :class:`models.networks.pseudo_edge.PseudoEdge`: g, or g times h.

    References
    ----------
    Yoo, Yoo and Paeng, MICCAI 2019, arXiv:1906.02924, section 2.2: mean | sobel(f) - g * h |, with the weight 1.
    """
    return (sobel(probabilities) - edges).abs().mean()


def pairwise_loss(probabilities: Tensor, colours: Tensor, radius: int, place_sigma: float, colour_sigma: float) -> Tensor:
    """Ask that near pixels of like colour are of one kind.

    Parameters
    ----------
    probabilities : Tensor, shape (N, 1, H, W)
        Of the foreground.
    colours : Tensor, shape (N, C, H, W), in [0, 1]
    radius : int, pixels
        Of the square window in which pixels are compared.
    place_sigma : float, pixels
    colour_sigma : float
        In the unit of ``colours``, summed over the channels.

    Returns
    -------
    Tensor, scalar
        Mean over all pairs in the window of exp(-|distance|^2 / 2 place_sigma^2 - |colours|^2 / 2 colour_sigma^2) times the
        probability that the two are of different kinds.

    References
    ----------
    Obukhov et al., "Gated CRF Loss for Weakly Supervised Semantic Image Segmentation", 2019, arXiv:1906.04651, section 3: the
    energy of a dense CRF with a Potts model, cut to a window, relaxed to probabilities. Where the window holds all weight it is
    the dense CRF loss of Tang et al., ECCV 2018, arXiv:1803.09569, that the Voronoi and cluster recipe uses.
    """
    height, width = probabilities.shape[2:]
    total, pairs = probabilities.new_zeros(()), 0
    for down in range(radius + 1):
        for across in range(-radius, radius + 1):
            if (down, across) <= (0, 0):
                continue  # each pair once: the other half of the window is the same pairs seen from their other end
            here = (..., slice(0, height - down), slice(max(0, -across), width - max(0, across)))
            there = (..., slice(down, height), slice(max(0, across), width - max(0, -across)))
            squared = (colours[here] - colours[there]).square().sum(dim=1, keepdim=True)
            exponent = -(down**2 + across**2) / (2 * place_sigma**2) - squared / (2 * colour_sigma**2)
            first, second = probabilities[here], probabilities[there]
            total = total + (torch.exp(exponent) * (first * (1 - second) + second * (1 - first))).sum()
            pairs += first.numel()
    return total / pairs


def dice_losses(foreground: Tensor, labels: Tensor) -> Tensor:
    """Return 1 - Dice of each tile, over its labelled pixels.

    Parameters
    ----------
    foreground : Tensor of bool, shape (N, H, W)
        As predicted.
    labels : Tensor, integer, shape (N, H, W)
        1 foreground, 0 background; every other value is ignored.

    Returns
    -------
    Tensor, float32, shape (N,), in [0, 1]
        0 where neither holds any foreground.
    """
    true, known = labels == 1, (labels == 1) | (labels == 0)
    predicted = foreground & known
    both = (predicted & true).sum(dim=(1, 2))
    either = predicted.sum(dim=(1, 2)) + true.sum(dim=(1, 2))
    return torch.where(either > 0, 1 - 2 * both / either.clamp(min=1), torch.zeros(()))
