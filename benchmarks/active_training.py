"""Pools to annotate from, and how a network is trained on what is annotated so far: the same for every selection."""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr
from torch import Tensor
from torch.nn import functional

from benchmarks.domain_training import JOINT_UNTIL
from benchmarks.domains import change, load, to_tensor
from models.networks.classifier import Classifier
from models.networks.loss_prediction import LossPrediction
from models.uncertainty import softmax
from training.losses import ranking_loss
from training.metrics import auroc

Indices = NDArray[np.int64]
HOME, ABROAD = "kermany_guangzhou", "nih_chestxray"
TEST_SHARE = 0.4
"""Of the other hospital's patients; the rest is the pool."""


@dataclass(frozen=True)
class Protocol:
    """What all selections of a data set share.

    Attributes
    ----------
    side : int, pixels
    widths, blocks : tuple of int, int
        Of the network.
    first : int
        Labels chosen at random before the first round.
    each : int
        Labels a round.
    rounds : int
    scored : int
        Of the pool, drawn at random anew each round.
    batch : int
    passes, least : float, int
        Training takes so many passes over the labels of the pool, but at least so many steps.
    base_steps : int
        Of the model that a round begins with; 0 where it begins with random weights.
    learning_rate : float
        SGD, momentum 0.9; a tenth after four fifths of the steps.
    most : int
        Images that are used, a class and domain (``cxr``) or in all (``cifar10``).
    """

    side: int
    widths: tuple[int, ...]
    blocks: int
    first: int
    each: int
    rounds: int
    scored: int
    batch: int
    passes: float
    least: int
    base_steps: int
    learning_rate: float
    most: int

    @property
    def labels(self) -> list[int]:
        """Number of labels of the pool after each round."""
        return [self.first + self.each * number for number in range(self.rounds + 1)]


@dataclass(frozen=True)
class Pool:
    """Images to choose from.

    Attributes
    ----------
    name : str
    images : ndarray, uint8, shape (N, C, side, side)
    labels : ndarray, int64, shape (N,)
    known, pool, test : ndarray of int64
        Indices: labelled from the outset, to choose from, to test on.
    strata : ndarray of int64, shape (N,)
        Who is drawn equally often in training.
    groups : ndarray, shape (N,), or None
        Patients.
    """

    name: str
    images: NDArray[np.uint8]
    labels: Indices
    known: Indices
    pool: Indices
    test: Indices
    strata: Indices
    groups: NDArray[np.str_] | None


@dataclass(frozen=True)
class Seen:
    """What a model says of images: probabilities (N, K), features (N, D), predicted loss (N,) without a unit."""

    probabilities: NDArray[np.float64]
    features: NDArray[np.float32]
    loss: NDArray[np.float32]


@dataclass
class Model:
    """A network and its loss prediction module."""

    network: Classifier
    head: LossPrediction

    def state(self) -> dict[str, Any]:
        """Return the state dicts."""
        return {"classifier": self.network.state_dict(), "loss_prediction": self.head.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Take the state dicts."""
        self.network.load_state_dict(state["classifier"])
        self.head.load_state_dict(state["loss_prediction"])


def cifar10(data: Path, cache: Path, most: int) -> Pool:
    """Return CIFAR-10, decoded once: ``most`` training images, drawn at random, to choose from, and as many test images."""
    parts = []
    for name in ("train", "test"):
        kept = cache / f"cifar10-{name}-{most}.npz"
        if not kept.exists():
            with np.load(data / "cifar10" / f"cifar10_{name}_jpeg.npz") as found:
                body, offsets, labels = found["jpeg"], found["offsets"], found["labels"]
            order = np.random.default_rng(0).permutation(len(labels))[:most]  # the files are ordered by class
            decoded = [
                np.asarray(PIL.Image.open(BytesIO(body[offsets[index] : offsets[index + 1]].tobytes())).convert("RGB"))
                for index in order
            ]
            cache.mkdir(parents=True, exist_ok=True)
            np.savez(kept, images=np.stack(decoded).transpose(0, 3, 1, 2), labels=labels[order].astype(np.int64))
        with np.load(kept) as found:
            parts.append((found["images"], found["labels"]))
    images, labels = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    edge = len(parts[0][1])
    everything = np.arange(len(labels))
    strata = np.zeros(len(labels), dtype=np.int64)
    return Pool("cifar10", images, labels, everything[:0], everything[:edge], everything[edge:], strata, None)


def cxr(data: Path, cache: Path, side: int, most: int, seed: int) -> Pool:
    """Return chest X-rays: one hospital's are labelled, of the other one's patients some are to choose from and some to test on.

    Both classes of both hospitals are drawn equally often, as far as they are labelled.
    """
    found = load("cxr", data, cache, side, most)
    patients = np.unique(found.patients[found.domains == ABROAD])
    tested = np.random.default_rng(seed).permutation(patients)[: round(TEST_SHARE * len(patients))]
    abroad, test = found.domains == ABROAD, np.isin(found.patients, tested)
    return Pool(
        "cxr", found.images, found.labels, np.flatnonzero(found.domains == HOME), np.flatnonzero(abroad & ~test),
        np.flatnonzero(abroad & test), found.labels + 2 * abroad, found.patients,
    )  # fmt: skip


def augment(images: Tensor, name: str, generator: torch.Generator) -> Tensor:
    """Change preprocessed images at random: CIFAR-10 as the paper does (crop after padding by 4 black pixels, mirror)."""
    if name == "cxr":
        return change(images, name, True, generator)
    count, _, height, width = images.shape
    padded = functional.pad(images, (4, 4, 4, 4), value=-2.0)
    rows = torch.randint(0, 9, (count, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(0, 9, (count, 1), generator=generator) + torch.arange(width)
    mirror = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirror, columns.flip(1), columns)
    return padded.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


def draw(pool: Pool, labelled: Indices, size: int, steps: int, seed: int) -> Indices:
    """Return the images of every step, shape (steps, size): each stratum as often as every other, reshuffled when used up."""
    random = np.random.default_rng(seed)
    strata = [labelled[pool.strata[labelled] == value] for value in np.unique(pool.strata[labelled])]
    each = math.ceil(steps * size / len(strata))
    drawn = [np.concatenate([random.permutation(part) for _ in range(math.ceil(each / len(part)))])[:each] for part in strata]
    order = np.stack(drawn, axis=1).ravel()[: steps * size].reshape(steps, size)
    return random.permuted(order, axis=1)


def build(pool: Pool, protocol: Protocol, seed: int) -> Model:
    """Return networks that are not trained, the same for a seed."""
    torch.manual_seed(seed)
    classes = len(np.unique(pool.labels))
    network = Classifier(pool.images.shape[1], classes, protocol.widths, protocol.blocks, 0.0)
    return Model(network, LossPrediction(protocol.widths))


def train(model: Model, pool: Pool, labelled: Indices, protocol: Protocol, steps: int, joint: bool, seed: int) -> list[float]:
    """Train, with the ranking loss if ``joint``; return the losses of the steps.

    Order and augmentation depend on the seed alone. With ``joint``, margin and weight are 1, and the ranking loss reaches the
    features in the first 60% of the steps.

    References
    ----------
    Yoo and Kweon, "Learning Loss for Active Learning", CVPR 2019, arXiv:1905.03677, sections 3 and 4.1.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = model.network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    head = model.head.to(device)
    parameters = [*network.parameters(), *(head.parameters() if joint else ())]
    optimizer = torch.optim.SGD(parameters, lr=protocol.learning_rate, momentum=0.9, weight_decay=5e-4)
    labels = torch.from_numpy(pool.labels)
    history = []
    for step, chosen in enumerate(draw(pool, labelled, protocol.batch, steps, seed)):
        optimizer.param_groups[0]["lr"] = protocol.learning_rate * (1.0 if step < 0.8 * steps else 0.1)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        images = augment(to_tensor(pool.images[chosen]), pool.name, generator)
        images = images.to(device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            maps = network.stage_maps(images)
            logits = network.classify(network.pool(maps)).float()
            losses = functional.cross_entropy(logits, labels[chosen].to(device), reduction="none")
            loss = losses.mean()
            if joint:
                seen = maps if step < JOINT_UNTIL * steps else [stage.detach() for stage in maps]
                loss = loss + ranking_loss(head(seen).float(), losses, 1.0)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        history.append(float(losses.mean().detach()))
    return history


@torch.no_grad()
def look(model: Model, images: NDArray[np.uint8], size: int = 128) -> Seen:
    """Return what a model says of images, in evaluation and full precision."""
    network, head = model.network.eval(), model.head.eval()
    device = next(network.parameters()).device
    logits, features, loss = [np.empty((0, network.head.out_features))], [np.empty((0, network.widths[-1]), np.float32)], []
    for start in range(0, len(images), size):
        batch = to_tensor(images[start : start + size]).to(device).contiguous(memory_format=torch.channels_last)
        maps = network.stage_maps(batch)
        pooled = network.pool(maps)
        logits.append(network.classify(pooled).cpu().numpy())
        features.append(pooled.cpu().numpy())
        loss.append(head(maps).cpu().numpy())
    return Seen(softmax(np.concatenate(logits), 1.0), np.concatenate(features), np.concatenate([np.empty(0, np.float32), *loss]))


def score(pool: Pool, model: Model) -> float:
    """Return the accuracy on the test images, or the AUROC of X-rays."""
    chances, labels = look(model, pool.images[pool.test]).probabilities, pool.labels[pool.test]
    return auroc(labels == 1, chances[:, 1]) if pool.name == "cxr" else float((chances.argmax(axis=1) == labels).mean())


def describe(seen: Seen, labels: Indices, chosen: Indices) -> dict[str, float]:
    """Return figures of a choice, all in [0, 1] but for the last.

    The share that the model gets wrong, in what was scored and in the choice; the share of the choice's most frequent class; its
    mean rank by predicted loss; Spearman's correlation of predicted and true loss in what was scored.
    """
    wrong = seen.probabilities.argmax(axis=1) != labels
    losses = -np.log(np.maximum(seen.probabilities[np.arange(len(labels)), labels], 1e-12))
    ranks = (rankdata(seen.loss) - 1) / max(1, len(labels) - 1)
    varied = np.ptp(seen.loss) > 0 and np.ptp(losses) > 0
    return {
        "wrong": float(wrong.mean()), "wrong_chosen": float(wrong[chosen].mean()),
        "most_frequent": float(np.bincount(labels[chosen]).max() / len(chosen)), "loss_rank": float(ranks[chosen].mean()),
        "loss_spearman": float(spearmanr(seen.loss, losses)[0]) if varied else 0.0,
    }  # fmt: skip
