"""What loss to expect on images of a domain that was not trained on: from the errors of siblings on domains left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.card import Calibration
from models.predictor import Graph
from models.uncertainty import entropy, predicted_loss_unseen, softmax
from training.calibrate import REPORT, cross_entropy, fit_loss, run_graph
from training.classifier import sibling
from training.config import read_json, read_run
from training.data import ImageSet
from training.export import read_graph

UNSEEN = "predicted_loss_unseen"
"""The figure's name, as in a card and in an answer."""

BINS = 20

Floats = NDArray[np.float64]


def unseen_knots(errors: Sequence[tuple[Floats, Floats]]) -> tuple[tuple[float, float], ...]:
    """Return the knots (entropy, loss in nats) of the loss to expect on an image of a domain that was not trained on.

    Parameters
    ----------
    errors : sequence of (entropies, losses), each of shape (N,)
        Of the images of a domain each, under a sibling that never saw it, with the sibling's own temperature. Every domain
        counts the same. Entropy and not the loss score, which has no unit and differs from network to network.

    Notes
    -----
    The isotonic regression is of the means of :data:`BINS` groups of equal weight, in order of entropy: by single images, its
    ends would rest on the few of least and most entropy.
    """
    weights = np.concatenate([np.full(len(losses), 1 / (len(losses) * len(errors))) for _, losses in errors])
    entropies, losses = (np.concatenate(parts) for parts in zip(*errors, strict=True))
    order = np.argsort(entropies, kind="stable")
    group = np.minimum((np.cumsum(weights[order]) - weights[order] / 2) * BINS, BINS - 1).astype(np.int64)
    mass, entropy_sum, loss_sum = (
        np.bincount(group, values[order], BINS).astype(np.float64) for values in (weights, weights * entropies, weights * losses)
    )
    there = mass > 0
    return fit_loss(entropy_sum[there] / mass[there], loss_sum[there] / mass[there], mass[there])


def add_unseen(report: dict[str, Any], folder: Path, images: ImageSet) -> None:
    """Put the loss to expect on unseen domains into the calibration of a run whose siblings are calibrated.

    Parameters
    ----------
    report : dict
        Of :func:`training.calibrate.calibrate`, of the run; left as it is where no domain was left out.
    folder : Path
        Of the run.
    images : ImageSet
        All of its images.
    """
    errors = []
    for domain in read_run(folder).config.leave_out:
        theirs, part = sibling(folder, domain), images.of(domain)
        calibration = Calibration.model_validate(read_json(theirs / REPORT, "The sibling is not calibrated.")["calibration"])
        logits = run_graph(Graph(read_graph(theirs), threads=2), part.tensors).logits
        losses = cross_entropy(logits, part.labels, calibration.temperature)
        errors.append((entropy(softmax(logits, calibration.temperature)), losses))
    if errors:
        count = sum(len(losses) for _, losses in errors)
        report["calibration"]["unseen_loss_knots"] = unseen_knots(errors)
        report["calibration"]["method"] += (
            f" At unseen hospitals: by isotonic regression on the entropy, in {BINS} groups, on {count} images of {len(errors)} "
            "domains, each under a model of the same recipe that never saw it, every domain weighted equally."
        )


def expected(tables: Mapping[str, Mapping[str, NDArray[Any]]], calibration: Calibration) -> dict[str, Floats]:
    """Return what would be expected on each domain left out by the errors on the others, shape (N,); nothing of a single one.

    Parameters
    ----------
    tables : mapping of str to mapping
        Columns ``entropy`` and ``true_loss`` of each domain, under the sibling that never saw it.
    calibration : Calibration
        Any; its knots are replaced.
    """
    found = {}
    for domain, table in tables.items():
        others = [(theirs["entropy"], theirs["true_loss"]) for name, theirs in tables.items() if name != domain]
        if others:
            known = calibration.model_copy(update={"unseen_loss_knots": unseen_knots(others)})
            found[domain] = np.array([predicted_loss_unseen(float(value), known) for value in table["entropy"]])
    return found
