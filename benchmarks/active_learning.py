"""How few labels reach what random ones reach? Rounds of annotation, chosen by every selection from the same start.

python benchmarks/active_learning.py --data FOLDER --scale small --work runs/benchmarks
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.active_training import Indices, Model, Pool, Protocol, Seen, build, cifar10, cxr, describe, look, score, train
from benchmarks.generalization import PAGE, SEEDS, interval
from models.selection import at_random, badge, core_set, margin, most_doubtful, select, typical
from models.uncertainty import entropy
from training.simulation import needed

SMALL, RESNET18 = (16, 32, 64, 128), (64, 128, 256, 512)
PROTOCOLS = {
    "smoke": {
        "cxr": Protocol(32, (4, 8, 8, 8), 1, 0, 6, 2, 60, 12, 0, 2, 2, 0.01, 60),
        "cifar10": Protocol(32, (4, 8, 8, 8), 1, 20, 20, 2, 100, 20, 1, 2, 0, 0.1, 400),
    },
    "small": {
        "cxr": Protocol(64, SMALL, 1, 0, 25, 8, 10_000, 32, 0, 80, 300, 0.01, 700),
        "cifar10": Protocol(32, SMALL, 1, 500, 500, 5, 5_000, 64, 20, 300, 0, 0.1, 20_000),
    },
    "paper": {
        "cxr": Protocol(128, RESNET18, 2, 0, 25, 8, 10_000, 64, 0, 400, 2_000, 0.01, 10_000),
        "cifar10": Protocol(32, RESNET18, 2, 1_000, 1_000, 9, 10_000, 128, 200, 1, 0, 0.1, 50_000),
    },
}
"""On ``cifar10``, ``paper`` is the published protocol; only the stem differs, which halves the image here. In every round every
selection begins anew: on ``cifar10`` with random weights, on ``cxr`` with those of the model of the first hospital, never with
those of the round before."""
METRIC = {"cifar10": "accuracy", "cxr": "auroc"}
RANDOM, OURS = "random", "learned loss, balance and diversity"
CONTROL = "random, trained jointly"
"""The images of random, so that what training jointly costs can be told from what choosing by the learned loss brings."""
SHARE = 0.65
"""Of random's labels, which is what the learned loss needs on CIFAR-10 according to the paper."""


@dataclass(frozen=True)
class Choosing:
    """What a selection may look at.

    Attributes
    ----------
    seen : Seen
        Of the part of the pool that is scored in this round.
    labelled : ndarray, shape (L, D)
        Features of what was labelled of the pool.
    groups : ndarray or None
        Patients.
    budget, seed : int
    """

    seen: Seen
    labelled: NDArray[np.float32]
    groups: NDArray[np.str_] | None
    budget: int
    seed: int


@dataclass(frozen=True)
class Selection:
    """How to choose, and whether the network is trained jointly with its loss prediction."""

    choose: Callable[[Choosing], Indices]
    joint: bool = False


def balanced(given: Choosing) -> Indices:
    """Choose by predicted loss, with balance and diversity; one image a patient while there are enough patients."""
    seen = given.seen
    predicted = seen.probabilities.argmax(axis=1)
    enough = given.groups is not None and len(np.unique(given.groups)) >= given.budget
    chosen = select(seen.loss, predicted, seen.features, given.budget, given.groups if enough else None)
    return np.array([choice.index for choice in chosen], dtype=np.int64)


SELECTIONS = {
    RANDOM: Selection(lambda given: at_random(len(given.seen.loss), given.budget, given.seed)),
    "entropy": Selection(lambda given: most_doubtful(entropy(given.seen.probabilities), given.budget)),
    "margin": Selection(lambda given: most_doubtful(margin(given.seen.probabilities), given.budget)),
    "core-set": Selection(lambda given: core_set(given.seen.features, given.labelled, given.budget)),
    "BADGE": Selection(lambda given: badge(given.seen.probabilities, given.seen.features, given.budget, given.seed)),
    "TypiClust": Selection(lambda given: typical(given.seen.features, given.labelled, given.budget, given.seed)),
    CONTROL: Selection(lambda given: at_random(len(given.seen.loss), given.budget, given.seed), joint=True),
    "learned loss": Selection(lambda given: most_doubtful(given.seen.loss, given.budget), joint=True),
    OURS: Selection(balanced, joint=True),
}


@dataclass(frozen=True)
class Cell:
    """All rounds of one selection."""

    data: str
    selection: str
    seed: int

    @property
    def key(self) -> str:
        """Name of the cell and of its line in the log."""
        return f"{self.data}-{self.selection.replace(', ', ' ').replace(' ', '_')}-{self.seed}"


def cells(scale: str) -> list[Cell]:
    """Return all cells of a scale, one seed of everything before the next."""
    seeds = SEEDS[:1] if scale == "smoke" else SEEDS
    return [Cell(data, selection, seed) for seed in seeds for data in METRIC for selection in SELECTIONS]


def begin(pool: Pool, protocol: Protocol, joint: bool, seed: int, file: Path) -> tuple[Model, Indices]:
    """Return the model that the first round begins with, from ``file`` if it is there, and the labels it has of the pool."""
    labelled = np.random.default_rng(seed).permutation(pool.pool)[: protocol.first]
    model = build(pool, protocol, seed)
    if not file.exists():
        steps = protocol.base_steps or steps_of(protocol, len(labelled))
        train(model, pool, np.concatenate([pool.known, labelled]), protocol, steps, joint, seed)
        partial = file.with_suffix(f".{os.getpid()}")  # another process may be at the same
        torch.save(model.state(), partial)
        partial.replace(file)
    model.load(torch.load(file, weights_only=True, map_location="cpu"))
    return model, labelled


def steps_of(protocol: Protocol, labels: int) -> int:
    """Return the number of steps of a round with so many labels."""
    return max(protocol.least, round(protocol.passes * labels / protocol.batch))


def run_cell(cell: Cell, pool: Pool, protocol: Protocol, folder: Path) -> dict[str, Any]:
    """Return the line of one cell: the score after every round, and what was chosen in each."""
    started = time.process_time()
    selection = SELECTIONS[cell.selection]
    kind = "joint" if selection.joint else "plain"
    start = folder / f"active_learning-{cell.data}-{kind}-{cell.seed}.pt"
    model, labelled = begin(pool, protocol, selection.joint, cell.seed, start)
    scores, rounds = [score(pool, model)], []
    for number in range(1, protocol.rounds + 1):
        seed = 1000 * cell.seed + number
        rest = np.setdiff1d(pool.pool, labelled)
        part = np.random.default_rng(seed).permutation(rest)[: protocol.scored]
        seen = look(model, pool.images[part])
        groups = None if pool.groups is None else pool.groups[part]
        given = Choosing(seen, look(model, pool.images[labelled]).features, groups, protocol.each, seed)
        chosen = selection.choose(given)
        rounds.append(describe(seen, pool.labels[part], chosen))
        labelled = np.concatenate([labelled, part[chosen]])
        model = build(pool, protocol, seed)
        if protocol.base_steps:
            model.load(torch.load(start, weights_only=True, map_location="cpu"))
        everything = np.concatenate([pool.known, labelled])
        train(model, pool, everything, protocol, steps_of(protocol, len(labelled)), selection.joint, seed)
        scores.append(score(pool, model))
    return {
        "key": cell.key, "data": cell.data, "method": cell.selection, "seed": cell.seed, "labels": protocol.labels,
        "scores": scores, "rounds": rounds, "test": len(pool.test), "pool": len(pool.pool),
        "cpu_seconds": round(time.process_time() - started, 1),
    }  # fmt: skip


def summarise(done: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return rows and goals. Selections are compared on the seeds that random has, too."""
    rows: list[dict[str, Any]] = []
    goals: list[dict[str, Any]] = []
    for data, metric in METRIC.items():
        base = {line["seed"]: np.array(line["scores"]) for line in done if line["data"] == data and line["method"] == RANDOM}
        for method in SELECTIONS:
            mine = [line for line in done if line["data"] == data and line["method"] == method and line["seed"] in base]
            if not mine:
                continue
            row = {"data": data, "method": method, "n": len(mine)}
            labels, curves = np.array(mine[0]["labels"]), np.array([line["scores"] for line in mine])
            spread = curves.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(len(labels))
            for count, mean, std in zip(labels.tolist(), curves.mean(axis=0).tolist(), spread.tolist(), strict=True):
                rows.append(row | {"labels": count, "metric": metric, "mean": mean, "std": std})
            randoms = np.array([base[line["seed"]] for line in mine])
            found = needed(labels, curves.mean(axis=0), float(randoms.mean(axis=0)[-1]))
            share = 1.0 if found is None else found / float(labels[-1])
            last = row | {"labels": int(labels[-1])}
            rows.append(last | {"metric": "share of random's labels needed", "mean": share, "reached": found is not None})
            if method != RANDOM:
                mean, low, high = interval((curves - randoms)[:, 1:].mean(axis=1))
                text = f"{metric} less random's, mean over rounds"
                rows.append(last | {"metric": text, "mean": mean, "low": low, "high": high})
            for name in mine[0]["rounds"][0]:
                values = np.array([[part[name] for part in line["rounds"]] for line in mine]).mean(axis=1)
                deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
                rows.append(row | {"labels": "all rounds", "metric": name, "mean": float(values.mean()), "std": deviation})
            if method == OURS:
                text = f"{data}: share of labels saved against random by {OURS}; 0 if random's final {metric} is not reached"
                goals.append(report.goal(text, 1 - share, round(1 - SHARE, 2)))
    return rows, goals


def table(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown tables of the page on methods: a row a selection, a column a number of labels."""
    parts = []
    for data, metric in METRIC.items():
        shown = [row for row in rows if row["data"] == data]
        counts = sorted({row["labels"] for row in shown if row["metric"] == metric})[::-1][::2][::-1]
        lines = []
        for method in dict.fromkeys(row["method"] for row in shown):
            mine = {(row["metric"], row["labels"]): row for row in shown if row["method"] == method}
            figures = [f"{mine[metric, count]['mean']:.3f} ± {mine[metric, count]['std']:.3f}" for count in counts]
            share = mine["share of random's labels needed", counts[-1]]
            gain = mine.get((f"{metric} less random's, mean over rounds", counts[-1]))
            lines.append([
                method, share["n"], *figures, f"{share['mean']:.0%}" if share["reached"] else "not reached",
                f"{gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})" if gain else "",
            ])  # fmt: skip
        if lines:
            header = ["selection", "runs", *(f"{count} labels" for count in counts), "needs", "mean over rounds, less random"]
            parts.append(f"`{data}`, {metric}:\n\n" + report.markdown(header, lines))
    return "\n\n".join(parts)


def draw(rows: list[dict[str, Any]], axes: Any) -> None:
    """Draw the metric against the labels, a panel a data set, a line a selection, a band of one standard deviation."""
    figure = axes.figure
    axes.remove()
    for panel, (data, metric) in zip(figure.subplots(1, len(METRIC)), METRIC.items(), strict=True):
        for method in SELECTIONS:
            mine = [row for row in rows if (row["data"], row["method"], row["metric"]) == (data, method, metric)]
            labels, mean, std = (np.array([row[name] for row in mine]) for name in ("labels", "mean", "std"))
            width = 2.5 if method in (RANDOM, OURS) else 1.0
            (line,) = panel.plot(labels, mean, label=method, linewidth=width, color="black" if method == RANDOM else None)
            panel.fill_between(labels, mean - std, mean + std, color=line.get_color(), alpha=0.1, linewidth=0)
        panel.set_xlabel(f"{data}: labels of the pool")
        panel.set_ylabel(metric)
    panel.legend(fontsize=6)


def main() -> None:
    """Run the cells that are missing, then write the result."""
    options = report.cells_parser(__doc__, "folder with cifar10 and cxr", PROTOCOLS).parse_args()
    torch.set_num_threads(1)
    folder, cache = options.work / options.scale, options.work / "cache"
    log = report.cell_log("active_learning", options.scale, folder)

    def run(cell: Cell) -> dict[str, Any]:
        protocol = PROTOCOLS[options.scale][cell.data]
        if cell.data == "cxr":
            return run_cell(cell, cxr(options.data, cache, protocol.side, protocol.most, cell.seed), protocol, folder)
        return run_cell(cell, cifar10(options.data, cache, protocol.most), protocol, folder)

    todo = [] if options.summary else cells(options.scale)
    report.run_cells(log, todo, run, lambda line: str(np.round(line["scores"], 3).tolist()))
    rows, goals = summarise(report.finished(log, cells(options.scale)))
    file = report.write("active_learning", options.scale, SEEDS, rows, goals)
    report.plot(file, lambda axes: draw(rows, axes), size=(9.0, 4.0))
    if options.scale == "small":
        report.fill(PAGE, "active_learning", table(rows))
    print(file)


if __name__ == "__main__":
    main()
