"""Style and content randomisation by known answers; in each of the three steps, what moves and what does not."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from models.networks.classifier import Classifier
from models.networks.normalization import use_batch_instance
from models.networks.style import (
    StyleHead,
    adversarial_parameters,
    content_maps,
    featurizer_maps,
    randomize_content,
    randomize_style,
    uniform_cross_entropy,
)
from training.style import ADVERSARIAL_CLIP, adversarial_optimizer, style_steps

STAGE = 2


def generator(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def features() -> Tensor:
    scale = torch.tensor([1.0, 2.0, 4.0, 8.0])[:, None, None, None]
    return scale * torch.randn(4, 3, 8, 8, generator=generator()) + 10 * scale


def moments(maps: Tensor) -> tuple[Tensor, Tensor]:
    return maps.mean((2, 3)), maps.std((2, 3), correction=0)


def normalised(maps: Tensor) -> Tensor:
    mean, deviation = (part[:, :, None, None] for part in moments(maps))
    return (maps - mean) / deviation


def test_style_randomisation_keeps_content_and_mixes_both_moments_alike(features: Tensor) -> None:
    mixed = randomize_style(features, generator(7))
    torch.testing.assert_close(normalised(mixed), normalised(features), rtol=1e-3, atol=1e-3)
    drawn = generator(7)
    other, own = torch.randperm(4, generator=drawn), torch.rand(4, 1, 1, 1, generator=drawn)[:, :, 0, 0]
    for found, moment in zip(moments(mixed), moments(features), strict=True):
        torch.testing.assert_close(found, own * moment + (1 - own) * moment[other], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(moments(mixed)[0], moments(features)[0], atol=0.1)  # the control: something was mixed


def test_content_randomisation_keeps_style_and_swaps_content(features: Tensor) -> None:
    swapped = randomize_content(features, generator(7))
    other = torch.randperm(4, generator=generator(7))
    assert not torch.equal(other, torch.arange(4))
    for found, moment in zip(moments(swapped), moments(features), strict=True):
        torch.testing.assert_close(found, moment, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(normalised(swapped), normalised(features)[other], rtol=1e-3, atol=1e-3)


def test_content_randomisation_lets_a_gradient_through_by_style_alone(features: Tensor) -> None:
    features.requires_grad_()
    weights = torch.randn(features.shape, generator=generator(1))
    (gradient,) = torch.autograd.grad((randomize_content(features, generator(7)) * weights).sum(), features)
    # Mean and deviation are all that is seen of a map: within a channel the gradient is an affine function of the map.
    flat, values = gradient.flatten(2), normalised(features.detach()).flatten(2)
    slope = (flat * values).mean(2, keepdim=True)
    torch.testing.assert_close(flat, flat.mean(2, keepdim=True) + slope * values, rtol=1e-3, atol=1e-4)
    (control,) = torch.autograd.grad((randomize_style(features, generator(7)) * weights).sum(), features)
    flat = control.flatten(2)
    rest = flat - flat.mean(2, keepdim=True) - (flat * values).mean(2, keepdim=True) * values
    assert rest.abs().max() > 0.1


@pytest.mark.parametrize("randomise", [randomize_style, randomize_content])
def test_pooled_features_and_a_batch_of_one_are_refused(randomise: object, features: Tensor) -> None:
    assert callable(randomise)
    for wrong in (features.mean((2, 3)), features[:1]):
        with pytest.raises(ValueError, match="N >= 2"):
            randomise(wrong, generator())


def test_half_precision_maps_are_randomised_in_single_precision(features: Tensor) -> None:
    far = 30 * features  # squares would overflow float16
    found = randomize_content(far.half(), generator(7))
    torch.testing.assert_close(found, randomize_content(far, generator(7)), rtol=2e-2, atol=2)


def test_adversarial_loss_is_least_at_the_uniform_distribution() -> None:
    assert uniform_cross_entropy(torch.full((3, 5), 2.5)).item() == pytest.approx(math.log(5))
    logits = torch.tensor([[math.log(0.7), math.log(0.2), math.log(0.1)]])
    assert uniform_cross_entropy(logits).item() == pytest.approx(-(math.log(0.7) + math.log(0.2) + math.log(0.1)) / 3)
    uniform = torch.full((1, 3), 1 / 3)
    assert uniform_cross_entropy(logits).item() == pytest.approx(functional.cross_entropy(logits, uniform).item())


class Training:
    """A small network with its three optimisers, and what each step moved."""

    def __init__(self, batch_instance: bool = False, weight: float = 0.1) -> None:
        torch.manual_seed(0)
        self.classifier = Classifier(1, 3, (4, 8, 8), 1, 0.0)
        if batch_instance:
            use_batch_instance(self.classifier)
        self.style_head = StyleHead(self.classifier, STAGE)
        self.weight = weight
        self.style = torch.optim.SGD(self.style_head.parameters(), lr=0.1)
        self.adversarial = adversarial_optimizer(self.classifier, STAGE, 0.1)
        self.content = torch.optim.SGD(self.classifier.parameters(), lr=0.1)
        self.images = torch.randn(6, 1, 32, 32, generator=generator(1))
        self.labels = torch.tensor([0, 1, 2, 0, 1, 2])

    def parameters(self) -> dict[str, Tensor]:
        named = {f"classifier.{name}": value for name, value in self.classifier.named_parameters()}
        return named | {f"style_head.{name}": value for name, value in self.style_head.named_parameters()}

    def steps(self) -> list[set[str]]:
        """Take the three steps; return the names of the parameters that each optimiser moved, in the order of the steps."""
        moved: list[set[str]] = []
        names = {id(value): name for name, value in self.parameters().items()}
        for optimiser in (self.style, self.adversarial, self.content):
            before: dict[int, Tensor] = {}

            def remember(*_: object, before: dict[int, Tensor] = before) -> None:
                before.update({id(value): value.detach().clone() for value in self.parameters().values()})

            def compare(*_: object, before: dict[int, Tensor] = before, optimiser: object = optimiser) -> None:
                after = self.parameters().values()
                moved.append({names[id(value)] for value in after if not torch.equal(value, before[id(value)])})
                self.order.append(optimiser)

            optimiser.register_step_pre_hook(remember)
            optimiser.register_step_post_hook(compare)
        self.order: list[object] = []
        style_steps(
            self.classifier,
            self.style_head,
            STAGE,
            self.images,
            self.labels,
            (self.style, self.adversarial),
            self.weight,
            generator(2),
        )
        self.content.zero_grad()
        maps = content_maps(self.classifier, self.images, STAGE, generator(3))
        functional.cross_entropy(self.classifier.classify(self.classifier.pool(maps)), self.labels).backward()
        self.content.step()
        return moved


@pytest.mark.parametrize("batch_instance", [False, True])
def test_each_step_moves_its_own_parameters_in_the_published_order(batch_instance: bool) -> None:
    training = Training(batch_instance)
    style, adversarial, content = training.steps()
    assert training.order == [training.style, training.adversarial, training.content]
    everything = set(training.parameters())
    assert style == {name for name in everything if name.startswith("style_head.")}
    featurizer = {
        name for name in everything if name.startswith(("classifier.stem.", "classifier.stages.0.", "classifier.stages.1."))
    }
    norm = {
        name
        for name in featurizer
        if "norm" in name or name.startswith(("classifier.stem.1.", "classifier.stages.1.0.shortcut.1."))
    }
    assert adversarial == {name for name in norm if not name.endswith("rho")}
    expected = {name for name in everything if name.startswith("classifier.")}
    assert content >= {name for name in expected if not name.endswith("rho")}
    assert not {name for name in content if name.startswith("style_head.")}


def test_the_adversarial_step_is_clipped_and_points_to_less_style() -> None:
    training = Training(weight=1000.0)
    before = [value.detach().clone() for value in adversarial_parameters(training.classifier, STAGE)]
    training.adversarial.register_step_pre_hook(lambda *_: norms.append(norm(training)))
    norms: list[float] = []
    training.steps()
    assert norms[0] == pytest.approx(ADVERSARIAL_CLIP, rel=1e-3)
    small = Training(weight=1e-4)
    small.adversarial.register_step_pre_hook(lambda *_: norms.append(norm(small)))
    small.steps()
    assert norms[1] < ADVERSARIAL_CLIP / 10  # the control: a small gradient is left as it is
    assert any(not torch.equal(a, b) for a, b in zip(before, adversarial_parameters(training.classifier, STAGE), strict=True))


def norm(training: Training) -> float:
    found = [value.grad for value in adversarial_parameters(training.classifier, STAGE)]
    return float(torch.stack([gradient.norm() for gradient in found if gradient is not None]).norm())


def test_adversarial_steps_alone_make_the_style_head_less_certain() -> None:
    training = Training(weight=10.0)
    for group in training.style.param_groups:
        group["lr"] = 0.0
    losses = []
    for _ in range(100):
        _, adversarial = style_steps(
            training.classifier, training.style_head, STAGE, training.images, training.labels,
            (training.style, training.adversarial), training.weight, generator(2),
        )  # fmt: skip
        losses.append(adversarial.item())
    assert losses[-1] < losses[0] - 0.01
    assert losses[-1] >= math.log(3) - 1e-6


def test_the_style_head_is_a_copy_that_does_not_share_weights_and_computes_the_same() -> None:
    training = Training()
    training.classifier.eval()
    head = StyleHead(training.classifier, STAGE).eval()
    maps = featurizer_maps(training.classifier, training.images, STAGE)
    torch.testing.assert_close(head(maps[-1]), training.classifier(training.images))
    before = copy.deepcopy(head.state_dict())
    nn.init.zeros_(training.classifier.head.weight)
    assert torch.equal(head.state_dict()["head.weight"], before["head.weight"])
    for stage in (0, 3):
        with pytest.raises(ValueError, match="style_stage"):
            StyleHead(training.classifier, stage)
