"""The mathematics of adapting: style consistency, which pseudo-labels are chosen, and who learns from what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.errors import Refusal
from models.networks.classifier import Classifier
from models.networks.loss_prediction import LossPrediction
from training.adaptation import first_ensemble, pseudo_labels, share_of, trainings
from training.adaptation_config import Adaptation
from training.config import RunConfig, make_config, read_input_spec
from training.consistency import LABELLED, PSEUDO, SOURCE, AdaptationTraining, Material, batches
from training.losses import style_consistency
from training.pseudo_labels import PseudoLabels, choose

SETTINGS: dict[str, Any] = {
    "method": "consistency",
    "domain": "new",
    "base_sha256": "",
    "target_sha256": "",
    "labels_sha256": None,
}


def logits(*chances: float) -> torch.Tensor:
    values = torch.tensor(chances)
    return torch.stack([torch.log(values), torch.log(1 - values)], dim=1)


def test_consistency_is_the_mean_squared_distance_of_probabilities() -> None:
    # (0.6, 0.4) against (0.9, 0.1): 0.09 + 0.09; the other pair is equal
    assert float(style_consistency(logits(0.6, 0.2), logits(0.9, 0.2))) == pytest.approx(0.09, abs=1e-6)
    assert float(style_consistency(logits(0.3), logits(0.3))) == pytest.approx(0, abs=1e-12)
    assert float(style_consistency(torch.tensor([[99.0, 0.0]]), torch.tensor([[0.0, 99.0]]))) == pytest.approx(2)


def test_consistency_moves_the_randomised_side_alone() -> None:
    randomised, plain = (logits(value).requires_grad_() for value in (0.6, 0.9))
    style_consistency(randomised, plain).backward()
    assert randomised.grad is not None
    assert randomised.grad[0, 0] < 0  # towards the plain image's class
    assert plain.grad is None


def two(*chances: float) -> np.ndarray:
    return np.stack([chances, 1 - np.array(chances)], axis=1)


def test_of_each_class_the_most_confident_on_which_all_agree() -> None:
    first = two(0.99, 0.80, 0.70, 0.60, 0.10, 0.45, 0.30)
    second = two(0.97, 0.90, 0.70, 0.40, 0.20, 0.40, 0.20)
    half = choose([first, second], 0.5)
    # class 0: items 0, 1, 2 agree (3 does not), half of 3 is 2; class 1: items 4, 5, 6, half is 2: the surest are 4 and 6
    assert half.indices.tolist() == [0, 1, 4, 6]
    assert half.labels.tolist() == [0, 0, 1, 1]
    assert half.agreement == pytest.approx(6 / 7)
    assert choose([first, second], 1.0).indices.tolist() == [0, 1, 2, 4, 5, 6]
    assert choose([first], 1.0).indices.tolist() == list(range(7))  # control: alone nobody disagrees


def test_one_threshold_for_all_would_forget_the_harder_class() -> None:
    chances = two(*[0.99] * 8, *[0.35] * 2)
    assert set(choose([chances], 0.2).labels.tolist()) == {0, 1}
    assert set(chances.argmax(axis=1)[chances.max(axis=1) > 0.9].tolist()) == {0}  # control


def test_shares_grow_to_the_last_round() -> None:
    settings = Adaptation(source=True, rounds=4, members=3, share=0.8, **SETTINGS)
    assert [share_of(settings, number) for number in (1, 2, 3, 4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert trainings(settings) == 10


def material(labels: list[int]) -> Material:
    count = len(labels)
    domains = ["home"] * (count // 2) + ["new"] * (count - count // 2)
    images = torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    target = torch.randn(9, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    return Material(images, np.array(labels, dtype=np.int64), domains, target)


def test_a_target_of_one_class_is_refused_unless_something_else_holds_it() -> None:
    everything_the_same = [two(*[0.9] * 6)]
    with pytest.raises(Refusal, match="one class") as refused:
        pseudo_labels(everything_the_same, 0.5, material([]))
    assert refused.value.code == "data_invalid"
    with pytest.raises(Refusal, match="one class"):
        pseudo_labels(everything_the_same, 0.5, material([0, 0]))
    assert len(pseudo_labels(everything_the_same, 0.5, material([0, 1])).indices) == 3


def test_the_first_ensemble_sees_with_the_targets_statistics_and_leaves_the_network_as_it_is() -> None:
    torch.manual_seed(0)
    network, target = Classifier(1, 2, (4, 8), 1, 0.0).eval(), 5 + torch.randn(30, 1, 16, 16)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    same, changed = first_ensemble(network, target, lambda images, _: images + 1, 0)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not np.allclose(same, torch.softmax(network(target), 1).detach().numpy(), atol=1e-3)
    assert not np.allclose(same, changed, atol=1e-3)


@pytest.fixture
def config(spec_file: Path) -> RunConfig:
    return make_config(
        seed=0, domains=("home",), leave_out=(), classes=("n", "p"), finding="p", input=read_input_spec(spec_file), widths=(4, 8),
        blocks=1, steps_per_epoch=3, batch_size=8, dropout=0.0, precision="32-true",
        adaptation=Adaptation(source=True, **SETTINGS),
    )  # fmt: skip


@pytest.fixture
def module(config: RunConfig) -> AdaptationTraining:
    torch.manual_seed(0)
    return AdaptationTraining(
        Classifier(1, 2, (4, 8), 1, 0.0), LossPrediction((4, 8)), config, 0, lambda images, _: images
    ).train()


def losses(module: AdaptationTraining, kinds: list[int], shift: float = 0.0) -> tuple[torch.Tensor, ...]:
    images = torch.randn(len(kinds), 1, 32, 32, generator=torch.Generator().manual_seed(0))
    found = torch.tensor(kinds)
    images = images + shift * (found == SOURCE).float()[:, None, None, None]
    unlabelled = torch.randn(6, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(len(kinds)) % 2
    return module.losses(images, labels, found, unlabelled, torch.Generator().manual_seed(2))


def test_a_shift_of_the_source_does_not_reach_the_target(module: AdaptationTraining) -> None:
    """Each is normalised by its own statistics, which take a shift of all of it away."""
    kinds = [SOURCE] * 4 + [PSEUDO] * 4
    first, second = losses(module, kinds), losses(module, kinds, shift=40.0)
    assert first[2] > 0
    torch.testing.assert_close(first[2], second[2])
    mixed = [LABELLED] * 8  # control: as images of the target they are in its statistics
    found = torch.tensor(mixed)
    images = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    images[:4] += 40.0
    unlabelled = torch.randn(6, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    control = module.losses(images, torch.arange(8) % 2, found, unlabelled, torch.Generator().manual_seed(2))
    assert (control[2] - first[2]).abs() > 1e-4


def test_loss_prediction_learns_from_true_labels_and_moves_nothing_else(module: AdaptationTraining) -> None:
    for kinds, learns in (([SOURCE] * 4, True), ([LABELLED] * 4, True), ([PSEUDO] * 4, False)):
        module.zero_grad()
        ranking = losses(module, kinds)[1]
        assert bool(ranking > 0) == learns
        if learns:
            ranking.backward()
            assert any(value.grad is not None and value.grad.any() for value in module.loss_prediction.parameters())
            assert all(value.grad is None for value in module.classifier.parameters())


def test_one_image_of_the_source_has_no_partner_and_is_left_out(module: AdaptationTraining) -> None:
    alone, without = losses(module, [PSEUDO] * 4 + [SOURCE], 3.0), losses(module, [PSEUDO] * 4 + [SOURCE], 9.0)
    torch.testing.assert_close(alone[0], without[0])
    assert not torch.isnan(alone[0])
    pair, shifted = (losses(module, [PSEUDO] * 3 + [SOURCE] * 2)[0], losses(module, [PSEUDO] * 4 + [LABELLED])[0])
    assert not torch.isclose(pair, shifted)


def test_batches_balance_domains_and_pseudo_labels_and_come_again_in_the_same_order(config: RunConfig) -> None:
    given = material([0, 1, 0, 1, 0, 1])
    pseudo = PseudoLabels(np.array([2, 5, 7]), np.array([0, 1, 1]), 1.0)

    def draw(seed: int) -> list[tuple[torch.Tensor, ...]]:
        return list(batches(given, pseudo, config, seed))

    drawn = draw(3)
    assert len(drawn) == 3
    kinds = torch.cat([batch[2] for batch in drawn])
    labels = torch.cat([batch[1] for batch in drawn])
    for kind in (SOURCE, LABELLED, PSEUDO):
        for label in (0, 1):
            assert int(((kinds == kind) & (labels == label)).sum()) == 4  # 3 batches of 8 over 6 groups
    images = torch.cat([batch[0] for batch in drawn])
    assert {tuple(image.flatten()[:3].tolist()) for image in images[kinds == PSEUDO]} == {
        tuple(given.target[index].flatten()[:3].tolist()) for index in (2, 5, 7)
    }
    again, other = draw(3), draw(4)
    assert all(
        torch.equal(ours, theirs) for one, two_ in zip(drawn, again, strict=True) for ours, theirs in zip(one, two_, strict=True)
    )
    assert not all(torch.equal(one[0], two_[0]) for one, two_ in zip(drawn, other, strict=True))
