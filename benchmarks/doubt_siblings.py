"""Networks that did not see a domain, or half of the patients: what their errors there say of a network that saw everything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from benchmarks.domain_training import Method, Recipe, Run, build, outputs
from benchmarks.domains import SOURCES, Domains
from benchmarks.doubt_scores import Floats
from benchmarks.generalization import Cell
from models.card import Calibration
from models.networks.loss_prediction import LossPrediction
from models.uncertainty import entropy, predicted_loss_unseen, softmax
from training.calibrate import cross_entropy, fit_temperature
from training.unseen import unseen_knots

BASE = Method(strong=True)
LEFT_OUT = "leave one domain out"
ENOUGH = 20
"""Images of a class below which a domain cannot stand in for it: two domains of X-rays hold four normal ones between them."""


def trained(data: Domains, cell: Cell, recipe: Recipe, folder: Path, indices: NDArray[np.int64]) -> tuple[Any, LossPrediction]:
    """Return the networks of a cell, from its checkpoint, or trained now on these images."""
    file = folder / f"{cell.key}.pt"
    if not file.exists():
        run = Run(data, cell.method, recipe, cell.seed)
        run.train(indices)
        torch.save(run.state(), file)
    network, head = build(data, cell.method, recipe)
    weights = torch.load(file, weights_only=True)
    network.load_state_dict(weights["classifier"])
    head.load_state_dict(weights["loss_prediction"])
    return network.eval(), head.eval()


@dataclass(frozen=True)
class HeldOut:
    """What siblings say of images that they did not see.

    Attributes
    ----------
    losses : ndarray, shape (N,)
        Of each training image.
    unit : Calibration
        What a card would say of the loss on unseen domains, by the entropy of the calibrated softmax.
    how : str
        What a sibling did not see.
    """

    losses: NDArray[np.float64]
    unit: Calibration
    how: str

    def said(self, entropies: Floats) -> float:
        """Return the mean of what would be said of images of an unseen domain."""
        return float(np.mean([predicted_loss_unseen(float(value), self.unit) for value in entropies]))


def held_out(
    data: Domains, indices: NDArray[np.int64], validation: NDArray[np.int64], recipe: Recipe, seed: int, folder: Path
) -> HeldOut:
    """Return the losses of siblings on the training images they did not see, the validation images being for temperatures alone.

    A sibling never sees one of the source domains where at least two of them have enough images of every class, so that a model
    can be trained without either; otherwise half of the patients.
    """
    domains = data.domains[indices]
    classes = len(SOURCES[data.name].classes)
    whole = [
        name for name in np.unique(domains)
        if np.bincount(data.labels[indices[domains == name]], minlength=classes).min() >= ENOUGH
    ]  # fmt: skip
    if len(whole) > 1:
        groups, how = domains, LEFT_OUT
    else:
        halves = np.random.default_rng(seed).permutation(np.unique(data.patients[indices]))
        groups, how = np.where(np.isin(data.patients[indices], halves[::2]), "even", "odd"), "out of fold"
    losses, calibrated, entropies = np.zeros(len(indices)), np.zeros(len(indices)), np.zeros(len(indices))
    for group in np.unique(groups):
        rest, out = indices[groups != group], indices[groups == group]
        seen = "+".join(np.unique(data.domains[rest])) + ("" if how == LEFT_OUT else f"-without-{group}")
        network, _ = trained(data, Cell(data.name, f"seen-{seen}", BASE, seed), recipe, folder, rest)
        logits = outputs(network, data.images[out])[0]
        theirs = validation[np.isin(data.domains[validation], data.domains[rest])]
        temperature = temperature_of(outputs(network, data.images[theirs])[0], data.labels[theirs])
        mine = groups == group
        losses[mine] = cross_entropy(logits, data.labels[out], 1.0)
        calibrated[mine] = cross_entropy(logits, data.labels[out], temperature)
        entropies[mine] = entropy(softmax(logits, temperature))
    knots = unseen_knots([(entropies[groups == group], calibrated[groups == group]) for group in np.unique(groups)])
    return HeldOut(losses, Calibration.model_construct(unseen_loss_knots=knots), how)


def temperature_of(logits: Floats, labels: NDArray[np.int64]) -> float:
    """Return the temperature of least cross-entropy."""
    return fit_temperature(logits, labels, np.full(len(labels), 1 / len(labels)))


def isotonic(scores: Floats, losses: Floats) -> IsotonicRegression:
    """Return the map from a score to the expected loss."""
    return IsotonicRegression(out_of_bounds="clip").fit(scores, losses)


def said_at_home(scores: Floats, losses: Floats, patients: NDArray[np.str_], seed: int) -> float:
    """Return the mean of what is said of images at home, each half of the patients by a map that is fitted to the other half.

    A map that was fitted to the same images has their mean loss as its mean, whatever the scores are.
    """
    halves = np.random.default_rng(seed).permutation(np.unique(patients))
    first = np.isin(patients, halves[::2])
    said = np.empty(len(scores))
    for part in (first, ~first):
        said[part] = isotonic(scores[~part], losses[~part]).predict(scores[part])
    return float(said.mean())
