"""What labels of a new hospital bring a classifier, from none to all of its pool."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import adaptation
from benchmarks.active_learning import Choosing, balanced
from benchmarks.active_training import Pool, Seen, draw
from benchmarks.cost_cells import CLASS_SECONDS, Cell, Curve, budgets, in_random_order
from benchmarks.domain_training import Recipe, Run, outputs
from benchmarks.domains import SOURCES, Domains, to_tensor
from benchmarks.generalization import RECIPES, SAGNET, score
from models.networks.classifier import Classifier
from models.selection import margin
from models.uncertainty import softmax
from training.adabn import adapt_statistics
from training.adaptation import in_batches

STATISTICS = 256
"""Images of the pool from which an adapted model has its normalisation statistics after each training."""


@dataclass(frozen=True)
class Tuning:
    """How a model goes on with labels of the hospital; every budget begins anew with the model that had none.

    Attributes
    ----------
    first : int
        Labels of the first budget.
    batch : int
        Images a step; half of them are the hospital's, the others those that the model was trained on.
    least, passes : int, float
        Training takes so many steps, or so many passes over the labels where that is more.
    """

    first: int
    batch: int
    least: int
    passes: float

    def steps(self, labels: int) -> int:
        """Return the number of steps for so many labels of the hospital."""
        return max(self.least, round(2 * self.passes * labels / self.batch))


TUNING = {"smoke": Tuning(10, 12, 2, 0), "small": Tuning(10, 32, 80, 3), "paper": Tuning(10, 64, 200, 10)}


def pool_of(cell: Cell, data: Domains) -> Pool:
    """Return the hospital's images to label and to test on, of other patients, and those that the model was trained on."""
    train, _, target = data.split(cell.target, cell.seed)
    pool, test = adaptation.halves(data, target, cell.seed)
    strata = (data.domains == cell.target).astype(np.int64)
    if SOURCES[cell.data].balance == "class":
        strata = data.labels + len(SOURCES[cell.data].classes) * strata
    return Pool(cell.data, data.images, data.labels, train, pool, test, strata, data.patients)


def begin(cell: Cell, data: Domains, recipe: Recipe, scale: str, pool: Pool, folder: Path) -> Classifier:
    """Return the model that has no label of the hospital: trained at the others, and adapted where the arm says so.

    The trained one is that of ``generalization.py``, the adapted one of plain training that of ``adaptation.py``; all have the
    augmentation that a practitioner would use.
    """
    of = adaptation.Cell(cell.data, cell.target, adaptation.WITH_SOURCE, cell.seed)
    method = SAGNET.with_strong() if cell.arm.style else adaptation.BASE
    if not cell.arm.adapted:
        return adaptation.base(of, data, recipe, folder, method)[0]
    return adaptation.adapted(of, data, recipe, scale, pool.pool, folder, method)[0]


def tuned(
    start: dict[str, Any], data: Domains, recipe: Recipe, pool: Pool, labelled: NDArray[np.int64], steps: int, seed: int
) -> Classifier:
    """Return the model after training with labels of the hospital beside those it had; the same way for all arms."""
    run = Run(data, adaptation.BASE, replace(recipe, steps=steps), seed)
    run.network.load_state_dict(start)
    run.network.train()
    for step, chosen in enumerate(draw(pool, np.concatenate([pool.known, labelled]), recipe.batch, steps, seed)):
        run.step(chosen, step)
    return run.network.cpu().eval()


def choose(network: Classifier, pool: Pool, labelled: NDArray[np.int64], budget: int, seed: int) -> NDArray[np.int64]:
    """Return what to label next: doubt (the margin of two classes), balance and diversity, as the worklist chooses."""
    rest = np.setdiff1d(pool.pool, labelled)
    logits, stages, _ = outputs(network, pool.images[rest])
    chances = softmax(logits, 1.0)
    seen = Seen(chances, stages[-1], margin(chances).astype(np.float32))
    groups = None if pool.groups is None else pool.groups[rest]
    return rest[balanced(Choosing(seen, np.empty((0, stages[-1].shape[1]), np.float32), groups, budget, seed))]


def curve(cell: Cell, data: Domains, scale: str, folder: Path) -> Curve:
    """Return what one arm reaches with every budget, on test images that no training and no choice has seen."""
    tuning = TUNING[scale]
    recipe = replace(RECIPES[scale], batch=tuning.batch)
    pool = pool_of(cell, data)
    network = begin(cell, data, RECIPES[scale], scale, pool, folder)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    order = in_random_order(pool.pool, cell.seed)

    def figure() -> float:
        return score(cell.data, outputs(network, data.images[pool.test])[0], data.labels[pool.test])

    counts, scores = budgets(tuning.first, len(pool.pool)), [figure()]
    labelled = order[:0]
    for number, count in enumerate(counts, start=1):
        seed = 1000 * cell.seed + number
        if cell.arm.selected:
            labelled = np.concatenate([labelled, choose(network, pool, labelled, count - len(labelled), seed)])
        else:
            labelled = order[:count]
        network = tuned(start, data, recipe, pool, labelled, tuning.steps(count), seed)
        if cell.arm.adapted:
            adapt_statistics(network, in_batches(to_tensor(data.images[order[:STATISTICS]])))
        scores.append(figure())
    labels = [0, *counts]
    return Curve(labels, [count * CLASS_SECONDS / 60 for count in labels], scores, len(pool.test))
