"""What marked tiles of a new hospital bring a segmenter of nuclei, from none to all of its pool."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks import report
from benchmarks.cost_cells import Cell, Curve, budgets, in_random_order
from benchmarks.nuclei_cells import COMBINED, EXACT, MASKS
from benchmarks.nuclei_scores import THRESHOLD
from benchmarks.nuclei_training import Recipe, Slides, annotated, expert_minutes, look, train
from benchmarks.weak_nuclei import RECIPES
from models.selection import select
from training.adabn import adapt_statistics
from training.instance_metrics import foreground_iou
from training.segmenter import SegmenterTraining
from training.segmenter_config import SegmenterConfig
from training.segmenter_crops import tensors
from training.segmenter_data import Tissue

HOME, AWAY = "home", "hospital"
"""Domains: images that the model was trained on, and the new hospital's. Crops are drawn from both equally often."""
TEST_SHARE = 0.5
"""Of the patients of the fold; the others' images are the pool."""


@dataclass(frozen=True)
class Tuning:
    """How a model goes on with marked tiles; every budget begins anew with the model that had none.

    Attributes
    ----------
    side : int, pixels
        Of a tile: what an expert is shown at once.
    first : int
        Tiles of the first budget.
    epochs : int
        Of as many steps as the first model's.
    recalled : int
        Images that the model was trained on and goes on with beside the tiles.
    statistics : int
        Tiles from which an adapted model has its normalisation statistics.
    """

    side: int
    first: int
    epochs: int
    recalled: int
    statistics: int


TUNING = {"smoke": Tuning(64, 2, 1, 2, 2), "small": Tuning(200, 2, 5, 16, 8), "paper": Tuning(200, 2, 20, 100, 50)}


def split(slides: Slides, fold: int, seed: int) -> tuple[list[Tissue], list[Tissue]]:
    """Return the images of a fold to mark, and those to test on; no patient is in both."""
    members = np.flatnonzero(slides.folds == fold)
    patients = np.unique(slides.patients[members])
    tested = np.random.default_rng(seed).permutation(patients)[: max(1, round(TEST_SHARE * len(patients)))]
    held = np.isin(slides.patients[members], tested)
    return [slides.images[index] for index in members[~held]], [slides.images[index] for index in members[held]]


def tiles(images: Sequence[Tissue], side: int) -> list[Tissue]:
    """Return the tiles of images, of ``side`` pixels a side; what is left over at the right and below is none."""
    found = []
    for each in images:
        rows, columns = each.colours.shape[:2]
        if each.objects is None or each.foreground is None:
            raise ValueError("tiles are cut from images with masks")
        for top in range(0, rows - side + 1, side):
            for left in range(0, columns - side + 1, side):
                window = slice(top, top + side), slice(left, left + side)
                found.append(replace(
                    each, domain=AWAY, colours=each.colours[window], objects=each.objects[window],
                    foreground=each.foreground[window],
                ))  # fmt: skip
    return found


def config_of(cell: Cell, recipe: Recipe, domains: tuple[str, ...], seed: int, points: bool) -> SegmenterConfig:
    """Return the config of one training: of points the method that is fixed as the best of ``weak_nuclei.py``, or full masks."""
    config = recipe.config(COMBINED if points else MASKS, domains, seed)
    return config.model_copy(update={"normalization": "batch_instance", "stain": True}) if cell.arm.style else config


def begin(cell: Cell, home: Sequence[Tissue], recipe: Recipe, folder: Path) -> SegmenterTraining:
    """Return the model that has no mark of the hospital: trained on full masks of others, once for all arms that share it."""
    kept = folder / f"{'style' if cell.arm.style else 'plain'}-{cell.seed}"
    kept.mkdir(parents=True, exist_ok=True)
    with report.alone(kept / ".lock"):
        return train(home, config_of(cell, recipe, (HOME,), cell.seed, points=False), kept)


def choose(module: SegmenterTraining, pool: Sequence[Tissue], budget: int) -> list[int]:
    """Return the tiles to mark next: doubt (the mean entropy of the pixels) and diversity of colours."""
    chances = [np.clip(found, 1e-6, 1 - 1e-6) for found in look(module, pool)]
    doubt = np.array([float(-(chance * np.log(chance) + (1 - chance) * np.log(1 - chance)).mean()) for chance in chances])
    colours = [each.colours.reshape(-1, 3) / 255 for each in pool]
    features = np.array([np.concatenate([part.mean(axis=0), part.std(axis=0)]) for part in colours])
    return [choice.index for choice in select(doubt, np.zeros(len(pool), dtype=np.int64), features, budget)]


def renormalise(module: SegmenterTraining, some: Sequence[Tissue]) -> None:
    """Give a segmenter the normalisation statistics of unmarked tiles."""
    adapt_statistics(
        module.segmenter.cpu(), [torch.from_numpy(tensors(each.colours[None], module.config.input)) for each in some]
    )


def figure(module: SegmenterTraining, test: Sequence[Tissue]) -> float:
    """Return the mean foreground IoU of images."""
    return float(np.mean([
        foreground_iou(each.objects, (found >= THRESHOLD).astype(np.int32))
        for each, found in zip(test, look(module, test), strict=True) if each.objects is not None
    ]))  # fmt: skip


def curve(cell: Cell, home: Slides, hospitals: Slides, scale: str, folder: Path) -> Curve:
    """Return what one arm reaches with every budget: foreground IoU on images that no training and no choice has seen."""
    tuning, recipe = TUNING[scale], RECIPES[scale]
    images, test = split(hospitals, int(cell.target), cell.seed)
    pool = tiles(images, tuning.side)
    known = [replace(each, domain=HOME) for each in home.images]
    recalled = [known[index] for index in in_random_order(np.arange(len(known)), cell.seed)[: tuning.recalled]]
    method = COMBINED if cell.arm.points else MASKS
    beside, marked = annotated(recalled, method, EXACT, cell.seed), annotated(pool, method, EXACT, cell.seed)
    order = in_random_order(np.arange(len(pool)), cell.seed).tolist()
    some = [pool[index] for index in order[: tuning.statistics]] if cell.arm.adapted else []
    start = module = begin(cell, known, recipe, folder)
    if some:
        renormalise(module, some)
    counts, scores = budgets(tuning.first, len(pool)), [figure(module, test)]
    chosen: list[int] = []
    minutes = [0.0]
    for number, count in enumerate(counts, start=1):
        if cell.arm.selected:
            rest = [index for index in range(len(pool)) if index not in chosen]
            chosen += [rest[index] for index in choose(module, [pool[index] for index in rest], count - len(chosen))]
        else:
            chosen = order[:count]
        given = [marked[index] for index in chosen]
        config = config_of(cell, replace(recipe, epochs=tuning.epochs), (HOME, AWAY), 1000 * cell.seed + number, cell.arm.points)
        module = train([*beside, *given], config, folder / cell.key / str(count), start.segmenter)
        if some:
            renormalise(module, some)
        scores.append(figure(module, test))
        minutes.append(expert_minutes(given))
    shutil.rmtree(folder / cell.key)
    return Curve([0, *counts], minutes, scores, len(test))
