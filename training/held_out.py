"""Fit the loss prediction module to errors on images that a model did not see, with the features left as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.errors import Refusal
from models.networks.classifier import Classifier
from models.networks.loss_prediction import LossPrediction
from training.config import RunConfig, fold_of, read_run, write_json
from training.data import ImageSet
from training.fit import WEIGHTS, load_safely, save_weights
from training.losses import ranking_loss

REPORT = "held_out.json"
STEPS = 500
BATCH = 128
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05


@torch.no_grad()
def infer(classifier: Classifier, tensors: NDArray[np.float32], size: int = 64) -> tuple[Tensor, list[Tensor]]:
    """Return the logits (N, K) of images (N, C, H, W) and, a stage, the channel means (N, C_i), in evaluation."""
    classifier.eval()
    logits: list[Tensor] = []
    stages: list[list[Tensor]] = []
    for start in range(0, len(tensors), size):
        maps = classifier.stage_maps(torch.from_numpy(tensors[start : start + size]))
        logits.append(classifier.classify(classifier.pool(maps)))
        stages.append([part.mean(dim=(2, 3)) for part in maps])
    return torch.cat(logits), [torch.cat(parts) for parts in zip(*stages, strict=True)]


def fit_loss_prediction(stages: Sequence[Tensor], losses: Tensor, margin: float, seed: int, steps: int = STEPS) -> LossPrediction:
    """Fit a module to losses by ranking them.

    Parameters
    ----------
    stages : sequence of Tensor, shapes (N, C_i)
        Channel means of every stage: all that the module sees of a map. No gradient reaches the network they come from.
    losses : Tensor, shape (N,)
        On images that the network that made these losses did not see.
    margin : float
        Of the ranking loss.
    seed, steps : int
    """
    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = LossPrediction([part.shape[1] for part in stages])
    optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for _ in range(steps):
        chosen = torch.randint(0, len(losses), (min(BATCH, 2 * len(losses)),), generator=random)
        optimizer.zero_grad()
        scores = head([part.detach()[chosen, :, None, None] for part in stages])
        torch.autograd.backward(ranking_loss(scores, losses[chosen], margin))
        optimizer.step()
    return head.eval()


@dataclass(frozen=True)
class HeldOutRuns:
    """The runs whose errors on what they did not see a run's loss prediction is fitted to.

    Attributes
    ----------
    configs : dict of Path to RunConfig
        By their folders, which lie in the run's.
    errors : str
        What the errors are: "leave one domain out", those of an unseen hospital, or "out of fold".
    """

    configs: dict[Path, RunConfig]
    errors: str


def held_out_runs(folder: Path, config: RunConfig) -> HeldOutRuns:
    """Return the held-out runs of a run.

    Where a sibling was asked for without each domain, it is those. Otherwise two runs, each on one half of the patients.
    """
    if config.leave_out and set(config.leave_out) == set(config.domains):
        siblings = {folder / f"without_{domain}": config.without(domain) for domain in config.domains}
        return HeldOutRuns(siblings, "leave one domain out")
    halves = {f"fold_{fold}": {"fold": fold, "leave_out": (), "loss_prediction": "none"} for fold in (0, 1)}
    return HeldOutRuns({folder / name: config.model_copy(update=change) for name, change in halves.items()}, "out of fold")


def finish(folder: Path, classifiers: dict[Path, Classifier], images: ImageSet) -> None:
    """Put a module fitted to held-out errors into a run's ``model.pt``, and write ``held_out.json``, which says of what kind.

    Parameters
    ----------
    folder : Path
        A trained run.
    classifiers : dict of Path to Classifier
        The run's own, and those of :func:`held_out_runs`.
    images : ImageSet
        The run's training split.

    Raises
    ------
    Refusal
        ``data_invalid`` if an image was seen by all held-out runs, so that its error is not held out.
    """
    config = read_run(folder).config
    held_out = held_out_runs(folder, config)
    losses = torch.full((len(images.rows),), float("nan"))
    for run, theirs in held_out.configs.items():
        out = [
            index for index, row in enumerate(images.rows)
            if row.domain not in theirs.domains or (theirs.fold is not None and fold_of(row.patient, config.seed) != theirs.fold)
        ]  # fmt: skip
        if out:
            labels = torch.from_numpy(images.labels[out])
            losses[out] = functional.cross_entropy(infer(classifiers[run], images.tensors[out])[0], labels, reduction="none")
    if torch.isnan(losses).any():
        raise Refusal("data_invalid", "An image's error is not known: no run was trained without it.")
    stages = infer(classifiers[folder], images.tensors)[1]
    head = fit_loss_prediction(stages, losses, config.ranking_margin, config.seed)
    fitted = {"classifier": classifiers[folder].state_dict(), "loss_prediction": head.state_dict()}
    save_weights(load_safely(folder / WEIGHTS) | fitted, folder)
    write_json(folder / REPORT, {"errors": held_out.errors, "images": len(losses), "mean_loss": float(losses.mean())})
