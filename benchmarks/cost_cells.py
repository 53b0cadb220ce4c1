"""Ways to a model that holds at a hospital it has not seen: which are compared, where, and what a label costs an expert."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.domains import SOURCES
from benchmarks.generalization import SEEDS
from benchmarks.nuclei_training import FOLDS

CLASS_SECONDS = 0.9
"""Of an expert, a class of an image: a click, whose published times are 0.8 to 0.9 s. Reading the image takes longer, for which
there is no published figure to take; every arm pays it for every label, so that ratios of classifiers do not depend on it. Of
nuclei, see :data:`benchmarks.nuclei_training.POINT_SECONDS`."""
NUCLEI = "monuseg"


@dataclass(frozen=True)
class Arm:
    """What is done at the new hospital.

    Attributes
    ----------
    name : str
    style : bool
        The first model is trained to be style-agnostic: SagNet; of nuclei, batch-instance normalisation and jittered stains.
    adapted : bool
        It is adapted to the hospital's images without labels: consistency and pseudo-labels; of nuclei, AdaBN.
    selected : bool
        What is labelled is chosen by doubt, balance and diversity, not at random.
    points : bool
        Of nuclei: points are marked, not full masks.
    """

    name: str
    style: bool = False
    adapted: bool = False
    selected: bool = False
    points: bool = False


BASELINE = Arm("plain, random, full masks")
STYLE, ADAPTED = Arm("style-agnostic alone", style=True), Arm("adapted alone", adapted=True)
SELECTED, POINTS = Arm("selected alone", selected=True), Arm("points alone", points=True)
TOGETHER = Arm("all together", style=True, adapted=True, selected=True, points=True)
ARMS = (BASELINE, STYLE, ADAPTED, SELECTED, POINTS, TOGETHER)
TARGETS = {
    "smoke": (("pacs", "art_painting"), (NUCLEI, "0")),
    "small": (("pacs", "art_painting"), ("pacs", "sketch"), ("cxr", "nih_chestxray"), (NUCLEI, "0")),
    "paper": (
        *((name, target) for name in ("pacs", "cxr", "wbc") for target in SOURCES[name].targets),
        *((NUCLEI, str(fold)) for fold in range(FOLDS)),
    ),
}
"""Data set and hospital; of nuclei the fold whose hospitals are the new ones. Those of ``small`` are the first and the last style
of ``pacs``, the X-ray hospital of the benchmark of selections, and the first fold: fixed before anything was run."""


@dataclass(frozen=True)
class Cell:
    """One arm at one hospital, from no label to all labels of its pool."""

    data: str
    target: str
    arm: Arm
    seed: int

    @property
    def key(self) -> str:
        """Name of the cell and of its line in the log."""
        return "-".join([self.data, self.target, *self.arm.name.replace(",", "").split(), str(self.seed)])


def cells(scale: str) -> list[Cell]:
    """Return all cells of a scale, one seed of everything before the next. Classifiers have no points."""
    return [
        Cell(data, target, arm, seed)
        for seed in (SEEDS[:1] if scale == "smoke" else SEEDS)
        for data, target in TARGETS[scale]
        for arm in ARMS
        if data == NUCLEI or arm != POINTS
    ]


def budgets(first: int, pool: int) -> list[int]:
    """Return how much is labelled after each round: ``first``, twice that, and so on, and in the end the whole pool."""
    found = [min(first, pool)]
    while found[-1] < pool:
        found.append(min(2 * found[-1], pool))
    return found


@dataclass(frozen=True)
class Curve:
    """What labels of a hospital bring.

    Attributes
    ----------
    labels : list of int
        Images, or tiles, that are labelled; 0 at first, the whole pool at last.
    minutes : list of float
        Of an expert, for these.
    scores : list of float
        The figure, on test images of that hospital.
    test : int
        How many these are.
    """

    labels: list[int]
    minutes: list[float]
    scores: list[float]
    test: int


def in_random_order(pool: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return the pool in the order in which all arms without selection label it."""
    return np.random.default_rng(seed).permutation(pool)
