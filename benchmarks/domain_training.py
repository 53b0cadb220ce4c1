"""One training run of a benchmark: any of the methods, on the same images, in the same order, by the same recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from benchmarks.domains import SOURCES, Domains, batches, change, to_tensor
from models.networks.classifier import Classifier
from models.networks.domain_distance import grid_statistics, stage_statistics
from models.networks.efficientnet import efficientnet_lite0
from models.networks.loss_prediction import LossPrediction
from models.networks.normalization import GATE_LEARNING_RATE, clamp_gates, gates, use_batch_instance
from models.networks.style import StyleHead, content_maps
from training.losses import ranking_loss
from training.start import read_start, take_over
from training.style import adversarial_optimizer, style_steps


@dataclass(frozen=True)
class Recipe:
    """What all methods of a scale share.

    Attributes
    ----------
    side : int, pixels
    widths, blocks : tuple of int, int
        Of the network.
    steps : int
    batch : int
        Images a step.
    learning_rate : float
        SGD with momentum 0.9; warm-up over the first twentieth, then a cosine to 0.
    weight_decay : float
        Of convolutions and the linear layer.
    dropout : float
        On the pooled features.
    start : Path or None
        Weights of EfficientNet-Lite0 to begin with, in place of a small residual network with random ones.
    """

    side: int
    widths: tuple[int, ...]
    blocks: int
    steps: int
    batch: int
    learning_rate: float
    weight_decay: float = 5e-4
    dropout: float = 0.2
    start: Path | None = None


@dataclass(frozen=True)
class Method:
    """What a row differs by: normalisation, style, augmentation, another generaliser, joint loss prediction."""

    batch_instance: bool = False
    sagnet: bool = False
    mixstyle: bool = False
    strong: bool = False
    joint: bool = False

    @property
    def name(self) -> str:
        """Short name of the row."""
        parts = [word for word, on in (("BIN", self.batch_instance), ("SagNet", self.sagnet), ("MixStyle", self.mixstyle)) if on]
        return " + ".join(parts or ["plain"]) + (", strong augmentation" if self.strong else "")

    def with_strong(self) -> Method:
        """Return the same with strong augmentation."""
        return replace(self, strong=True)


STYLE_STAGE = 3
ADVERSARIAL_WEIGHT = 0.1
JOINT_UNTIL = 0.6
"""Share of the steps after which the jointly trained loss prediction no longer reaches the features (the paper's 120 of 200)."""


def build(data: Domains, method: Method, recipe: Recipe) -> tuple[Classifier, LossPrediction]:
    """Return networks that are not trained; those of one seed begin with the same weights, whatever the method."""
    source = SOURCES[data.name]
    if recipe.start is None:
        network = Classifier(source.channels, len(source.classes), recipe.widths, recipe.blocks, recipe.dropout)
    else:
        network = efficientnet_lite0(source.channels, len(source.classes), recipe.dropout)
        take_over(network, read_start(recipe.start), source.channels)
    head = LossPrediction(network.widths)
    if method.batch_instance:
        use_batch_instance(network)
    return network, head


def _mixstyle(network: Classifier, images: Tensor, random: np.random.Generator) -> list[Tensor]:
    """Return the stage maps with styles mixed after the first two stages, in half of the batches.

    References
    ----------
    Zhou et al., "Domain Generalization with MixStyle", ICLR 2021, arXiv:2104.02008, section 2: a ~ Beta(0.1, 0.1), p = 0.5.
    """
    current, maps = network.stem(images), []
    mixed = random.random() < 0.5
    for index, stage in enumerate(network.stages):
        current = stage(current)
        if mixed and index < 2:
            variance, mean = torch.var_mean(current.detach().float(), dim=(2, 3), correction=0, keepdim=True)
            deviation = torch.sqrt(variance + 1e-6)
            own = torch.from_numpy(random.beta(0.1, 0.1, (len(current), 1, 1, 1))).to(current)
            other = torch.from_numpy(random.permutation(len(current))).to(current.device)
            content = (current - mean) / deviation
            current = content * (own * deviation + (1 - own) * deviation[other]) + own * mean + (1 - own) * mean[other]
        maps.append(current)
    return maps


def _groups(network: Classifier, head: LossPrediction, joint: bool, recipe: Recipe) -> list[dict[str, Any]]:
    gate = gates(network)
    rest = [value for value in network.parameters() if not any(value is rho for rho in gate)] + list(head.parameters()) * joint
    return [
        {"params": [value for value in rest if value.ndim > 1], "weight_decay": recipe.weight_decay, "factor": 1.0},
        {"params": [value for value in rest if value.ndim <= 1], "weight_decay": 0.0, "factor": 1.0},
        *([{"params": gate, "weight_decay": 0.0, "factor": GATE_LEARNING_RATE}] if gate else []),
    ]


class Run:
    """One training run: networks, optimisers, and the three steps in their order.

    Parameters
    ----------
    data : Domains
    method : Method
    recipe : Recipe
    seed : int
        Of weights, order, augmentation and randomisation. Order and augmentation are the same for all methods.
    """

    def __init__(self, data: Domains, method: Method, recipe: Recipe, seed: int) -> None:
        torch.manual_seed(seed)
        self.data, self.method, self.recipe, self.seed = data, method, recipe, seed
        network, self.head = build(data, method, recipe)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(
            _groups(self.network, self.head, method.joint, recipe), lr=0.0, momentum=0.9, nesterov=True
        )
        self.style: tuple[torch.optim.Optimizer, torch.optim.Optimizer] | None = None
        if method.sagnet:
            self.style_head = StyleHead(self.network, STYLE_STAGE)
            of_head = torch.optim.SGD(
                self.style_head.parameters(), lr=0.0, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
            )
            self.style = (of_head, adversarial_optimizer(self.network, STYLE_STAGE, 0.0))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        for part in (self.network, self.head, *([self.style_head] if self.style else [])):
            part.to(self.device)

    def _rate(self, step: int) -> None:
        warm = max(1, self.recipe.steps // 20)
        rate = self.recipe.learning_rate * min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / self.recipe.steps))
        for optimizer in (self.optimizer, *(self.style or ())):
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("factor", 1.0)

    def step(self, chosen: NDArray[np.int64], step: int) -> float:
        """Take one step on the images ``chosen``; return the mean cross-entropy of the content."""
        self._rate(step)
        drawn = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        images = change(to_tensor(self.data.images[chosen]), self.data.name, self.method.strong, drawn)
        images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        labels = torch.from_numpy(self.data.labels[chosen]).to(self.device)
        torch.manual_seed(self.seed * 1_000_003 + step)  # dropout
        with torch.autocast(self.device.type, torch.bfloat16):
            if self.style is not None:
                style_steps(
                    self.network, self.style_head, STYLE_STAGE, images, labels, self.style, ADVERSARIAL_WEIGHT, drawn
                )  # fmt: skip
                maps = content_maps(self.network, images, STYLE_STAGE, drawn)
            elif self.method.mixstyle:
                maps = _mixstyle(self.network, images, np.random.default_rng((self.seed, step)))
            else:
                maps = self.network.stage_maps(images)
            losses = functional.cross_entropy(self.network.classify(self.network.pool(maps)).float(), labels, reduction="none")
            loss = losses.mean()
            if self.method.joint:
                seen = maps if step < JOINT_UNTIL * self.recipe.steps else [stage.detach() for stage in maps]
                loss = loss + ranking_loss(self.head(seen).float(), losses, 1.0)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_([value for group in self.optimizer.param_groups for value in group["params"]], 5.0)
        self.optimizer.step()
        clamp_gates(self.network)
        return float(losses.mean().detach())

    def train(self, indices: NDArray[np.int64]) -> list[float]:
        """Take all steps on these images; return the losses."""
        self.network.train()
        order = batches(self.data, indices, self.recipe.batch, self.recipe.steps, self.seed)
        return [self.step(chosen, step) for step, chosen in enumerate(order)]

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return the state dicts of the network and its loss prediction."""
        return {"classifier": self.network.cpu().state_dict(), "loss_prediction": self.head.cpu().state_dict()}


@torch.no_grad()
def outputs(
    network: Classifier, images: NDArray[np.uint8], size: int = 128
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Return the logits (N, K), the channel means (N, C_i) of every stage, and what ViewDistance takes, in evaluation."""
    network.eval()
    logits, stages, statistics = [], [], []
    for start in range(0, len(images), size):
        maps = network.stage_maps(to_tensor(images[start : start + size]).contiguous(memory_format=torch.channels_last))
        logits.append(network.classify(network.pool(maps)).numpy())
        stages.append([part.mean(dim=(2, 3)).numpy() for part in maps])
        statistics.append([stage_statistics(maps).numpy(), grid_statistics(maps).numpy()])
    joined = [[np.concatenate(parts) for parts in zip(*each, strict=True)] for each in (stages, statistics)]
    return np.concatenate(logits), joined[0], joined[1]
