"""Adapt a network to a new domain by its normalisation statistics alone: no label, no gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.networks.normalization import BatchInstanceNorm2d

NORMALISATIONS = (nn.BatchNorm2d, BatchInstanceNorm2d)


class _Reached(Exception):
    """The layer whose input was wanted has it: the rest of the pass is not needed."""


def normalisations(network: nn.Module, image: Tensor) -> list[nn.Module]:
    """Return the layers of ``network`` that keep batch statistics, in the order in which ``image`` (N, C, H, W) passes them."""
    order: list[nn.Module] = []
    layers = [layer for layer in network.modules() if isinstance(layer, NORMALISATIONS)]
    hooks = [layer.register_forward_pre_hook(lambda layer, _: order.append(layer)) for layer in layers]
    with torch.no_grad():
        network(image)
    for hook in hooks:
        hook.remove()
    return order


@torch.no_grad()
def adapt_statistics(network: nn.Module, batches: Sequence[Tensor]) -> int:
    """Give every normalisation layer the mean and variance of its input over all images of the new domain.

    One layer after the other, in the order of the forward pass, each seeing what the layers before it give once they are
    adapted. So the statistics are those of the whole set and of the network that will be used, not an average over batches
    that were each normalised by their own. Weights, gates, gamma and beta stay.

    Parameters
    ----------
    network : Module
        Changed in place, and left in evaluation.
    batches : sequence of Tensor, each float32, shape (N_i, C, H, W)
        All images, preprocessed, without augmentation. How they are split does not matter.

    Returns
    -------
    int
        Layers adapted.

    References
    ----------
    Li et al., "Revisiting Batch Normalization For Practical Domain Adaptation", arXiv:1603.04779, algorithm 1. The variance is
    that of a sample (divided by n - 1), as in torch's running statistics.
    """
    network.eval()
    order = normalisations(network, batches[0][:1])
    for layer in order:
        total, squares, count = torch.zeros(()), torch.zeros(()), 0
        held: list[Tensor] = []

        def take(_: nn.Module, inputs: tuple[Tensor, ...], held: list[Tensor] = held) -> None:
            held.append(inputs[0])
            raise _Reached

        hook = layer.register_forward_pre_hook(take)
        for batch in batches:
            try:
                network(batch)
            except _Reached:
                values = held.pop()
            # Around the means: a difference of two large sums would lose the variance of a channel that hardly varies
            variance, mean = (part.double() for part in torch.var_mean(values.float(), dim=(0, 2, 3), correction=0))
            more = values.numel() // values.shape[1]
            spread = more * variance
            squares = squares + spread + (mean - total).square() * (count * more / (count + more))
            total = total + (mean - total) * (more / (count + more))
            count += more
        hook.remove()
        layer.running_mean.copy_(total)  # type: ignore[operator]
        layer.running_var.copy_(squares / max(count - 1, 1))  # type: ignore[operator]
    return len(order)
