"""Batch-Instance Normalization: its mathematics by hand, its gates under an optimiser, what is left of it in a graph."""

from __future__ import annotations

import copy
import logging
import warnings
from collections import Counter
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from models.networks.classifier import Classifier
from models.networks.normalization import (
    BatchInstanceNorm2d,
    clamp_gates,
    fold_normalization,
    gates,
    use_batch_instance,
)


@pytest.fixture
def maps() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 3, 6, 7, generator=generator) * torch.tensor([1.0, 3.0, 0.3])[:, None, None] + 2


def by_hand(x: Tensor, layer: BatchInstanceNorm2d) -> Tensor:
    """Equation by equation, with nothing of the layer but its parameters."""
    batch = (x - x.mean((0, 2, 3), keepdim=True)) / torch.sqrt(x.var((0, 2, 3), correction=0, keepdim=True) + layer.eps)
    instance = (x - x.mean((2, 3), keepdim=True)) / torch.sqrt(x.var((2, 3), correction=0, keepdim=True) + layer.eps)
    rho, gamma, beta = (p[:, None, None] for p in (layer.rho, layer.weight, layer.bias))
    return gamma * (rho * batch + (1 - rho) * instance) + beta


def random_layer(channels: int = 3) -> BatchInstanceNorm2d:
    layer = BatchInstanceNorm2d(channels)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.rand(channels, generator=generator))
    return layer


def test_output_and_gradients_are_those_of_the_equation(maps: Tensor) -> None:
    layer = random_layer()
    expected, found = by_hand(maps, layer), layer(maps)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(maps.shape, generator=torch.Generator().manual_seed(2))
    parameters = list(layer.parameters())
    for a, b in zip(
        torch.autograd.grad((found * weights).sum(), parameters),
        torch.autograd.grad((expected * weights).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_two_ends_are_batch_and_instance_normalisation_and_differ(maps: Tensor) -> None:
    layer = BatchInstanceNorm2d(3)
    batch = nn.BatchNorm2d(3)
    torch.testing.assert_close(layer(maps), batch(maps))
    torch.testing.assert_close(layer.running_var, batch.running_var)
    with torch.no_grad():
        layer.rho.zero_()
    torch.testing.assert_close(layer(maps), nn.InstanceNorm2d(3)(maps))
    assert not torch.allclose(layer(maps), batch(maps), atol=0.1)


def test_a_closed_gate_removes_an_images_own_contrast_and_an_open_one_keeps_it(maps: Tensor) -> None:
    layer = BatchInstanceNorm2d(3).eval()
    changed = 3 * maps - 1
    assert not torch.allclose(layer(changed), layer(maps), atol=0.5)
    with torch.no_grad():
        layer.rho.zero_()
    torch.testing.assert_close(layer(changed), layer(maps), rtol=1e-3, atol=1e-3)


def test_evaluation_uses_running_statistics_for_the_batch_part_only(maps: Tensor) -> None:
    layer = random_layer().eval()
    alone = torch.cat([layer(image[None]) for image in maps])
    torch.testing.assert_close(layer(maps), alone)
    layer.train()
    assert not torch.allclose(layer(maps), alone, atol=0.05)


def test_gates_leave_the_interval_under_an_optimiser_and_are_brought_back(maps: Tensor) -> None:
    layer = BatchInstanceNorm2d(3)
    target = 2 * nn.BatchNorm2d(3)(maps) - nn.InstanceNorm2d(3)(maps)  # would need a gate of 2
    optimiser = torch.optim.SGD([{"params": gates(layer), "lr": 1.0}])
    (layer(maps) - target).square().mean().backward()
    optimiser.step()
    assert layer.rho.max() > 1  # the control: without clamping the gate is no gate
    clamp_gates(layer)
    assert layer.rho.max() == 1
    with torch.no_grad():
        layer.rho.fill_(-0.2)
    clamp_gates(layer)
    assert (layer.rho == 0).all()


def test_replacing_keeps_what_a_trained_network_computes_and_reaches_every_layer() -> None:
    plain = trained()
    replaced = copy.deepcopy(plain)
    count = use_batch_instance(replaced)
    assert count == sum(isinstance(layer, nn.BatchNorm2d) for layer in plain.modules()) == len(gates(replaced))
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in replaced.modules())
    image = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(replaced.eval()(image), plain.eval()(image), rtol=1e-5, atol=1e-5)


def trained() -> Classifier:
    """A network whose running statistics are not those it began with."""
    torch.manual_seed(0)
    network = Classifier(1, 2, (8, 16), 1, 0.0)
    for seed in range(20):
        network(3 * torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) + 1)
    return network.eval()


def with_gates(value: float | None) -> nn.Module:
    network = trained()
    use_batch_instance(network)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for rho in gates(network):
            rho.copy_(torch.rand(rho.shape, generator=generator) if value is None else torch.full_like(rho, value))
    return network.eval()


def graph(network: nn.Module) -> Any:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network, (torch.zeros(2, 1, 32, 32),), dynamo=True, verbose=False, external_data=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip
    assert program is not None
    return program.model_proto


def nodes(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def test_a_folded_graph_has_only_what_its_gates_need_and_the_same_outputs() -> None:
    plain = nodes(graph(trained()))
    assert nodes(graph(fold_normalization(with_gates(1.0)))) == plain
    norms = len(gates(with_gates(None)))
    assert nodes(graph(fold_normalization(with_gates(0.0)))) == plain + Counter(InstanceNormalization=norms)
    folded = graph(fold_normalization(with_gates(None)))
    assert nodes(folded) == plain + Counter(InstanceNormalization=norms, Mul=norms, Add=norms)
    naive = nodes(graph(with_gates(None)))
    assert naive["BatchNormalization"] == norms  # the control: what folding takes away
    session = ort.InferenceSession(folded.SerializeToString(), providers=["CPUExecutionProvider"])
    image = torch.randn(5, 1, 32, 32, generator=torch.Generator().manual_seed(5))
    expected = with_gates(None)(image).detach().numpy()
    (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    assert np.abs(found - expected).max() < 1e-5
    assert np.abs(found - trained()(image).detach().numpy()).max() > 1e-2  # the gates do something here
