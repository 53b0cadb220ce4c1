"""Rounds of pseudo-labels by an ensemble, each a training with style consistency: what is behind ``overread adapt``."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.errors import Refusal
from models.networks.classifier import Classifier
from models.networks.loss_prediction import LossPrediction
from training.adabn import adapt_statistics
from training.adaptation_config import Adaptation
from training.config import RunConfig
from training.consistency import AdaptationTraining, Change, Material, batches, settings_of
from training.fit import WEIGHTS, fit_batches, load_safely
from training.pseudo_labels import PseudoLabels, choose

PARTS = ("classifier", "loss_prediction")


def in_batches(tensors: Tensor, size: int = 64) -> list[Tensor]:
    """Return images (N, C, H, W) in batches of ``size``."""
    return [tensors[start : start + size] for start in range(0, len(tensors), size)]


@torch.no_grad()
def probabilities(classifier: Classifier, tensors: Tensor, size: int = 64) -> NDArray[np.float64]:
    """Return the softmax (N, K) of images (N, C, H, W), in evaluation."""
    classifier.eval()
    parts = [functional.softmax(classifier(batch).double(), dim=1) for batch in in_batches(tensors, size)]
    return np.asarray(torch.cat(parts).numpy())


def first_ensemble(base: Classifier, target: Tensor, change: Change, seed: int) -> list[NDArray[np.float64]]:
    """Return what the first pseudo-labels come from: the network with the target's normalisation statistics.

    It sees the images as they are, and changed at random, so that only what does not hang on a detail is agreed upon. The network
    with the source's statistics is no member: under another style it may take everything for one class, and be sure of it.
    """
    renormalised = copy.deepcopy(base)
    adapt_statistics(renormalised, in_batches(target))
    generator = torch.Generator().manual_seed(seed)
    changed = torch.cat([change(batch, generator) for batch in in_batches(target)])
    return [probabilities(renormalised, target), probabilities(renormalised, changed)]


def pseudo_labels(members: Sequence[NDArray[np.float64]], share: float, material: Material) -> PseudoLabels:
    """Return the pseudo-labels of an ensemble.

    Raises
    ------
    Refusal
        ``data_invalid`` if, with the labels of the target and the source, they are of one class alone.
    """
    found = choose(members, share)
    if len(set(found.labels.tolist()) | set(material.labels.tolist())) < 2:
        raise Refusal(
            "data_invalid",
            "The model takes every image of the target that it is sure of for one class, and nothing else holds it: give labels "
            "of the target (--target-labels), or the images that it was trained on (--data).",
        )
    return found


def share_of(settings: Adaptation, number: int) -> float:
    """Return the share of pseudo-labels of a round, counted from 1."""
    return settings.share * number / settings.rounds


def trainings(settings: Adaptation) -> int:
    """Return how many networks are trained."""
    return settings.members * (settings.rounds - 1) + 1


def adapt(
    base: tuple[Classifier, LossPrediction], config: RunConfig, material: Material, folder: Path, change: Change
) -> tuple[AdaptationTraining, list[dict[str, Any]]]:
    """Adapt a network by rounds of pseudo-labels, from where it was interrupted.

    Parameters
    ----------
    base : (Classifier, LossPrediction)
        Left as they are.
    config : RunConfig
        With its ``adaptation``.
    material : Material
    folder : Path
        Its subfolder ``rounds`` receives the trainings; :func:`clear` removes it.
    change : callable
        Augmentation.

    Returns
    -------
    module : AdaptationTraining
        The network of the last round, in evaluation, with the target's normalisation statistics.
    rounds : list of dict
        What each round's pseudo-labels were: ``round``, ``share``, ``agreement``, ``pseudo_labels`` (a number a class).

    Raises
    ------
    Refusal
        ``data_invalid`` as :func:`pseudo_labels`.
    """
    settings = settings_of(config)
    recipe = config.model_copy(update={"epochs": settings.epochs, "learning_rate": settings.learning_rate})
    ensemble = first_ensemble(base[0], material.target, change, settings.seed)
    records = []
    trained: list[AdaptationTraining] = []
    for number in range(1, settings.rounds + 1):
        found = pseudo_labels(ensemble, share_of(settings, number), material)
        counts = np.bincount(found.labels, minlength=len(config.classes)).tolist()
        records.append({
            "round": number, "share": share_of(settings, number), "agreement": found.agreement,
            "pseudo_labels": dict(zip(config.classes, counts, strict=True)),
        })  # fmt: skip
        members = settings.members if number < settings.rounds else 1
        trained = []
        for member in range(members):
            print(f"round {number} of {settings.rounds}, network {member + 1} of {members}: {len(found.labels)} pseudo-labels")
            seed = settings.seed * 10_007 + number * 101 + member
            trained.append(_train(base, recipe, material, found, folder / "rounds" / f"{number}-{member}", seed, change))
        ensemble = [probabilities(module.classifier, material.target) for module in trained]
    return trained[0], records


def _train(
    base: tuple[Classifier, LossPrediction], recipe: RunConfig, material: Material, found: PseudoLabels, folder: Path,
    seed: int, change: Change,
) -> AdaptationTraining:  # fmt: skip
    module = AdaptationTraining(*copy.deepcopy(base), recipe, seed, change)
    if not (folder / WEIGHTS).exists():
        folder.mkdir(parents=True, exist_ok=True)
        module.train()
        fit_batches(module, PARTS, recipe, batches(material, found, recipe, seed), folder)
    weights = load_safely(folder / WEIGHTS)
    for name in PARTS:
        module.get_submodule(name).load_state_dict(weights[name])
    adapt_statistics(module.classifier, in_batches(material.target))
    return module.eval()


def clear(folder: Path) -> None:
    """Remove the trainings of the rounds, once what came of them is kept."""
    shutil.rmtree(folder / "rounds", ignore_errors=True)
