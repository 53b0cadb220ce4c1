"""Normalisation statistics of a target: against statistics taken from the adapted network by hooks, in one batch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from models.networks.classifier import Classifier
from models.networks.normalization import BatchInstanceNorm2d, use_batch_instance
from training.adabn import NORMALISATIONS, adapt_statistics, normalisations


def network(batch_instance: bool = False) -> Classifier:
    torch.manual_seed(0)
    made = Classifier(1, 2, (4, 8), 2, 0.5)
    if batch_instance:
        use_batch_instance(made)
        for layer in made.modules():
            if isinstance(layer, BatchInstanceNorm2d):
                nn.init.uniform_(layer.rho)
    return made.eval()


def target(count: int = 40) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return 3 + torch.randn(count, 1, 16, 16, generator=random) * torch.linspace(0.2, 4, count)[:, None, None, None]


@torch.no_grad()
def inputs_of(made: Classifier, images: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """Return what reaches each normalisation layer, all images in one batch."""
    seen: list[tuple[nn.Module, Tensor]] = []
    layers = [layer for layer in made.modules() if isinstance(layer, NORMALISATIONS)]
    hooks = [layer.register_forward_pre_hook(lambda layer, given: seen.append((layer, given[0]))) for layer in layers]
    made(images)
    for hook in hooks:
        hook.remove()
    return seen


def largest_gap(made: Classifier, images: Tensor) -> float:
    """Return how far the layers' statistics are from those of what reaches them, relative to the deviation."""
    worst = 0.0
    for layer, values in inputs_of(made, images):
        mean, variance = values.double().mean(dim=(0, 2, 3)), values.double().transpose(0, 1).flatten(1).var(dim=1)
        gap = (layer.running_mean - mean).abs() / variance.sqrt()  # type: ignore[operator]
        worst = max(worst, float(gap.max()), float((layer.running_var / variance - 1).abs().max()))  # type: ignore[operator]
    return worst


@pytest.mark.parametrize("batch_instance", [False, True])
def test_every_layer_has_the_statistics_of_what_reaches_it_in_the_adapted_network(batch_instance: bool) -> None:
    made, images = network(batch_instance), target()
    assert largest_gap(made, images) > 0.5  # before
    assert adapt_statistics(made, [images[:7], images[7:30], images[30:]]) == 10
    assert largest_gap(made, images) < 1e-4
    assert not made.training


def test_the_usual_average_over_batches_is_another_thing() -> None:
    made, images = network(), target()
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # a cumulative average
            layer.reset_running_stats()
    made.train()
    with torch.no_grad():
        for batch in images.split(8):
            made(batch)
    assert largest_gap(made.eval(), images) > 0.05


def test_batches_do_not_matter_and_nothing_but_statistics_changes() -> None:
    images, made = target(), network()
    before = copy.deepcopy(made.state_dict())
    other = copy.deepcopy(made)
    adapt_statistics(made, [images])
    adapt_statistics(other, list(images.split(1)))
    for name, value in made.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-4, atol=1e-5)
        assert ("running" in name) != torch.equal(value, before[name]), name


def test_layers_come_in_the_order_of_the_image_not_of_the_code() -> None:
    made = Classifier(1, 2, (4, 8), 1, 0.0)
    block = made.stages[1][0]
    order = normalisations(made.eval(), torch.zeros(1, 1, 16, 16))
    # shortcut's comes last in the code of the block and in its forward pass; the stem's is the first of all
    assert order[0] is made.stem[1]
    assert [order.index(layer) for layer in (block.norm1, block.norm2, block.shortcut[1])] == [3, 4, 5]
