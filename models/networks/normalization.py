"""Batch-Instance Normalization: how much of each channel's style to keep is learned with the weights."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

Network = TypeVar("Network", bound=nn.Module)

GATE_LEARNING_RATE = 10.0
"""The gates' learning rate, as a multiple of the other parameters'."""


class BatchInstanceNorm2d(nn.Module):
    """A gate a channel between batch and instance normalisation.

    y = gamma (rho x_BN + (1 - rho) x_IN) + beta, with rho in [0, 1], from 1. x_BN keeps how an image's channel differs from
    the batch's in mean and variance (its style), x_IN removes it.

    Parameters
    ----------
    num_features : int
        Channels, C.
    eps, momentum : float
        As in :class:`torch.nn.BatchNorm2d`.

    Notes
    -----
    The optimiser leaves [0, 1] by itself: :func:`clamp_gates` must follow *every* step. The gates are a parameter group of
    their own, with :data:`GATE_LEARNING_RATE` times the learning rate and without decay. gamma and rho are multiplied
    before the maps are, so that two native calls and one sum are all that happens to a map.

    Not a subclass of BatchNorm2d: what replaces or fuses batch normalisations would take it for one and drop the gate.

    References
    ----------
    Nam and Kim, "Batch-Instance Normalization for Adaptively Style-Invariant Neural Networks", NeurIPS 2018,
    arXiv:1805.07925, section 3.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.rho = nn.Parameter(torch.ones(num_features))
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise (N, C, H, W); the running statistics follow in training, and stand for the batch's in evaluation."""
        batch = functional.batch_norm(
            inputs, self.running_mean, self.running_var, self.weight * self.rho, self.bias, self.training, self.momentum, self.eps
        )
        return batch + functional.instance_norm(inputs, weight=self.weight * (1 - self.rho), eps=self.eps)


class FoldedBatchInstanceNorm2d(nn.Module):
    """What is left of a trained layer: a native instance normalisation, and a multiple of its input.

    Parameters
    ----------
    layer : BatchInstanceNorm2d
        Its running statistics, gate and affine parameters become three constants a channel.
    """

    def __init__(self, layer: BatchInstanceNorm2d) -> None:
        super().__init__()
        self.eps = layer.eps
        self.scale: Tensor
        self.weight: Tensor
        self.bias: Tensor
        scale = layer.weight * layer.rho / torch.sqrt(layer.running_var + layer.eps)
        self.register_buffer("scale", scale.detach()[:, None, None])
        self.register_buffer("weight", (layer.weight * (1 - layer.rho)).detach())
        self.register_buffer("bias", (layer.bias - scale * layer.running_mean).detach())

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, C, H, W) to what the layer gives in evaluation, but for rounding."""
        return inputs * self.scale + functional.instance_norm(inputs, weight=self.weight, bias=self.bias, eps=self.eps)


def gates(module: nn.Module) -> list[nn.Parameter]:
    """Return the gates of every :class:`BatchInstanceNorm2d` in ``module``: the parameter group of their own."""
    return [layer.rho for layer in module.modules() if isinstance(layer, BatchInstanceNorm2d)]


@torch.no_grad()
def clamp_gates(module: nn.Module) -> None:
    """Bring every gate of ``module`` back into [0, 1]; to be called after every optimiser step."""
    for rho in gates(module):
        rho.clamp_(0, 1)


@torch.no_grad()
def use_batch_instance(module: nn.Module) -> int:
    """Put a :class:`BatchInstanceNorm2d` in the place of every BatchNorm2d below ``module``.

    Affine parameters and running statistics are kept, and every gate is open (1): what ``module`` computes in evaluation,
    trained or not, stays the same until it is trained on.

    Returns
    -------
    int
        Layers replaced.
    """
    count = 0
    for parent in list(module.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.BatchNorm2d):
                momentum = 0.1 if layer.momentum is None else layer.momentum
                new = BatchInstanceNorm2d(layer.num_features, layer.eps, momentum).to(layer.weight.device)
                for key in ("weight", "bias", "running_mean", "running_var"):
                    getattr(new, key).copy_(getattr(layer, key))
                setattr(parent, name, new.train(layer.training))
                count += 1
    return count


@torch.no_grad()
def fold_normalization(module: Network) -> Network:
    """Return a copy for inference in which no gate is left.

    Where every gate of a layer is 1 it becomes a plain batch normalisation, which runtimes fold into the convolution before it;
    where every gate is 0, an instance normalisation; otherwise a :class:`FoldedBatchInstanceNorm2d`.
    """
    folded = copy.deepcopy(module).eval()
    for parent in list(folded.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, BatchInstanceNorm2d):
                setattr(parent, name, _fold(layer).eval())
    return folded


def _fold(layer: BatchInstanceNorm2d) -> nn.Module:
    new: nn.Module
    if bool((layer.rho == 1).all()):
        new = nn.BatchNorm2d(len(layer.rho), layer.eps)
        new.load_state_dict({name: value for name, value in layer.state_dict().items() if name != "rho"}, strict=False)
    elif bool((layer.rho == 0).all()):
        new = nn.InstanceNorm2d(len(layer.rho), layer.eps, affine=True)
        new.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    else:
        new = FoldedBatchInstanceNorm2d(layer)
    return new
