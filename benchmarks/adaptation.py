"""What does a hospital gain by images without labels? AdaBN, and consistency with pseudo-labels, with and without the source.

python benchmarks/adaptation.py --data FOLDER --scale small --work runs/benchmarks
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import generalization, report
from benchmarks.domain_training import Method, Recipe, Run, outputs
from benchmarks.domains import SOURCES, Domains, change, load, spec, to_tensor
from benchmarks.generalization import METRIC, MOST, PLAIN, RECIPES, SEEDS, interval, score
from models.errors import Refusal
from models.networks.classifier import Classifier
from models.networks.loss_prediction import LossPrediction
from training.adabn import adapt_statistics
from training.adaptation import adapt, in_batches
from training.adaptation_config import Adaptation
from training.config import RunConfig, make_config
from training.consistency import Material

PAGE = report.ROOT / "docs" / "adapt.md"
BASE = PLAIN.with_strong()
"""What is adapted: plain training with the augmentation that a practitioner would use, as in ``generalization.py``."""
SOURCE_ONLY, ADABN, WITH_SOURCE, WITHOUT_SOURCE = "source only", "AdaBN", "consistency", "consistency, without source"
METHODS = (SOURCE_ONLY, ADABN, WITH_SOURCE, WITHOUT_SOURCE)
DATA = ("cxr", "pacs")
TEST_SHARE = 0.5
"""Of the target's patients; the others' images are the unlabelled ones, so that no image that is scored was adapted to."""
STEPS = {"smoke": (1, 2), "small": (2, 50), "paper": (4, 100)}
"""Epochs of a training, and steps of an epoch."""


@dataclass(frozen=True)
class Cell:
    """One way of adapting one network."""

    data: str
    target: str
    method: str
    seed: int

    @property
    def key(self) -> str:
        """Name of the cell and of its line in the log."""
        return f"{self.data}-{self.target}-{self.method.replace(', ', '_').replace(' ', '_')}-{self.seed}"


def cells(scale: str) -> list[Cell]:
    """Return all cells of a scale, one seed of everything before the next."""
    seeds, most = (SEEDS[:1], 1) if scale == "smoke" else (SEEDS, None)
    return [
        Cell(name, target, method, seed)
        for seed in seeds
        for name in DATA
        for target in SOURCES[name].targets[:most]
        for method in METHODS
    ]


def base(cell: Cell, data: Domains, recipe: Recipe, folder: Path, method: Method = BASE) -> tuple[Classifier, LossPrediction]:
    """Return the network to adapt: that of ``generalization.py`` where it was trained there, or else trained and kept."""
    run = Run(data, method, recipe, cell.seed)
    kept = folder / f"{generalization.Cell(cell.data, cell.target, method, cell.seed).key}.pt"
    if not kept.exists():
        run.train(data.split(cell.target, cell.seed)[0])
        partial = kept.with_suffix(f".{os.getpid()}")  # another process may be at the same
        torch.save(run.state(), partial)
        partial.replace(kept)
    state = torch.load(kept, weights_only=True, map_location="cpu")
    run.network.load_state_dict(state["classifier"])
    run.head.load_state_dict(state["loss_prediction"])
    return run.network.cpu().eval(), run.head.cpu()


def halves(data: Domains, target: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the target's unlabelled images and those to test on; no patient is in both."""
    patients = np.unique(data.patients[target])
    tested = np.random.default_rng(seed).permutation(patients)[: round(TEST_SHARE * len(patients))]
    held = np.isin(data.patients[target], tested)
    return target[~held], target[held]


def config_of(cell: Cell, data: Domains, recipe: Recipe, scale: str) -> RunConfig:
    """Return the config of an adaptation, as ``overread adapt`` would make it."""
    epochs, steps = STEPS[scale]
    settings = Adaptation(
        method="consistency", domain=cell.target, base_sha256="", target_sha256="", labels_sha256=None,
        source=cell.method == WITH_SOURCE, seed=cell.seed, epochs=epochs,
    )  # fmt: skip
    home = sorted(set(data.domains.tolist()) - {cell.target})
    classes, taken = SOURCES[cell.data].classes, spec(cell.data, recipe.side)
    return make_config(
        seed=cell.seed, domains=tuple(home), leave_out=(), classes=classes, finding=classes[-1], input=taken,
        widths=recipe.widths, blocks=recipe.blocks, batch_size=recipe.batch, steps_per_epoch=steps, adaptation=settings,
        loss_prediction="none",
    )  # fmt: skip


def material_of(cell: Cell, data: Domains, unlabelled: NDArray[np.int64]) -> Material:
    """Return what is learnt from: the source's training images, if they are here, and the target's without their labels."""
    train = data.split(cell.target, cell.seed)[0] if cell.method == WITH_SOURCE else np.empty(0, dtype=np.int64)
    # Balanced as the data set is balanced in training: see SOURCES
    groups = data.domains[train] if SOURCES[cell.data].balance == "domain" else np.full(len(train), "source")
    return Material(to_tensor(data.images[train]), data.labels[train], groups.tolist(), to_tensor(data.images[unlabelled]))


def adapted(
    cell: Cell, data: Domains, recipe: Recipe, scale: str, unlabelled: NDArray[np.int64], folder: Path, method: Method = BASE
) -> tuple[Classifier, list[dict[str, Any]] | None]:
    """Return the network adapted by consistency, and its rounds; the network as it was, and None, where that is refused.

    Parameters
    ----------
    folder : Path
        Keeps the base and what came of it, so that ``annotation_cost.py`` does not train the same again. An interrupted one goes
        on from its rounds, which are removed in the end.
    """
    networks = base(cell, data, recipe, folder, method)
    of = generalization.Cell(cell.data, cell.target, method, cell.seed).key
    kept = folder / f"{of}-{'with' if cell.method == WITH_SOURCE else 'without'}-source-adapted.pt"
    with report.alone(folder / f".{kept.stem}.lock"):
        if not kept.exists():
            network, rounds = networks[0], None
            try:
                module, rounds = adapt(
                    networks, config_of(cell, data, recipe, scale), material_of(cell, data, unlabelled),
                    kept.with_suffix(""), lambda images, generator: change(images, cell.data, True, generator),
                )  # fmt: skip
                network = module.classifier
            except Refusal:  # nothing to learn from: the network stays as it is, as it would at a hospital
                pass
            partial = kept.with_suffix(".partial")
            torch.save({"classifier": network.state_dict(), "rounds": rounds}, partial)
            partial.replace(kept)
            shutil.rmtree(kept.with_suffix(""), ignore_errors=True)
    state = torch.load(kept, weights_only=True, map_location="cpu")
    networks[0].load_state_dict(state["classifier"])
    return networks[0].eval(), state["rounds"]


def run_cell(cell: Cell, data: Domains, recipe: Recipe, scale: str, folder: Path) -> dict[str, Any]:
    """Return the line of one cell: the score on test images of the target, and of the pseudo-labels of each round."""
    started = time.process_time()
    network, _ = base(cell, data, recipe, folder)
    unlabelled, test = halves(data, data.split(cell.target, cell.seed)[2], cell.seed)
    rounds: list[dict[str, Any]] | None = []
    if cell.method == ADABN:
        adapt_statistics(network, in_batches(to_tensor(data.images[unlabelled])))
    elif cell.method != SOURCE_ONLY:
        network, rounds = adapted(cell, data, recipe, scale, unlabelled, folder)
    logits = outputs(network, data.images[test])[0]
    return {
        "key": cell.key, "data": cell.data, "target": cell.target, "method": cell.method, "seed": cell.seed,
        "score": score(cell.data, logits, data.labels[test]), "unlabelled": len(unlabelled), "n": len(test),
        "rounds": rounds or [], "refused": rounds is None,
        "cpu_seconds": round(time.process_time() - started, 1),
    }  # fmt: skip


def paired(done: list[dict[str, Any]], name: str, method: str, against: str, target: str) -> NDArray[np.float64]:
    """Return the differences of two methods' scores on one target, or all, paired by seed and target."""
    table = {(line["target"], line["seed"], line["method"]): line["score"] for line in done if line["data"] == name}
    return np.array([
        value - table[where, seed, against] for (where, seed, row), value in sorted(table.items())
        if row == method and target in ("all", where) and (where, seed, against) in table
    ])  # fmt: skip


def summarise(done: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return rows and goals."""
    rows: list[dict[str, Any]] = []
    goals: list[dict[str, Any]] = []
    for name in dict.fromkeys(line["data"] for line in done):
        for method in METHODS:
            for target in ("all", *SOURCES[name].targets):
                mine = [
                    line for line in done
                    if (line["data"], line["method"]) == (name, method) and target in ("all", line["target"])
                ]  # fmt: skip
                if not mine:
                    continue
                part, refused = [line["score"] for line in mine], sum(line["refused"] for line in mine)
                row = {"data": name, "target": target, "method": method, "metric": METRIC[name], "n": len(part)}
                spread = float(np.std(part, ddof=1)) if len(part) > 1 else 0.0
                rows.append(row | {"mean": float(np.mean(part)), "std": spread, "refused": refused})
                gains = paired(done, name, method, SOURCE_ONLY, target)
                if method != SOURCE_ONLY and len(gains):
                    mean, low, high = interval(gains)
                    rows.append(row | {"method": f"{method} less {SOURCE_ONLY}", "mean": mean, "low": low, "high": high})
        for method, against in ((WITH_SOURCE, SOURCE_ONLY), (WITH_SOURCE, ADABN), (WITHOUT_SOURCE, SOURCE_ONLY)):
            gains = paired(done, name, method, against, "all")
            if len(gains):
                text = f"{name}: {METRIC[name]}, {method} less {against}, lower end of its paired interval"
                goals.append(report.goal(text, interval(gains)[1], 0.0))
    return rows, goals


def counted(row: dict[str, Any]) -> str:
    """Return the number of runs, and how many of them were refused, so that the network stayed as it was."""
    return f"{row['n']}, {row['refused']} of them refused" if row["refused"] else str(row["n"])


def table(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown tables: a row a method, a column a target, and the paired gain over all."""
    parts = []
    for name in dict.fromkeys(row["data"] for row in rows):
        mine = {(row["method"], row["target"]): row for row in rows if row["data"] == name}
        targets = [target for target in ("all", *SOURCES[name].targets) if any(where == target for _, where in mine)]
        lines = []
        for method in METHODS:
            found = [mine.get((method, target)) for target in targets]
            figures = [f"{row['mean']:.3f} ± {row['std']:.3f} ({counted(row)})" if row else "" for row in found]
            gain = mine.get((f"{method} less {SOURCE_ONLY}", "all"))
            lines.append([method, *figures, f"{gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})" if gain else ""])
        head = ["method", *targets, f"less {SOURCE_ONLY}, over all"]
        parts.append(
            f"`{name}`, {METRIC[name]} on test patients of the target (number of runs):\n\n" + report.markdown(head, lines)
        )
    return "\n\n".join(parts)


def draw(rows: list[dict[str, Any]], axes: Any) -> None:
    """Draw the mean gain over source only of every method and target, with its paired interval."""
    shown = [row for row in rows if "low" in row]
    for place, row in enumerate(shown):
        axes.plot([row["low"], row["high"]], [place, place], color="C0")
        axes.plot(row["mean"], place, "o", color="C0")
    labels = [f"{row['data']}, {row['target']}: {row['method'].removesuffix(f' less {SOURCE_ONLY}')}" for row in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=7)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_xlabel("accuracy or AUROC on the target, less the network that was not adapted")


def main() -> None:
    """Run the cells that are missing, then write the result."""
    options = report.cells_parser(__doc__, "folder with pacs and cxr", RECIPES).parse_args()
    torch.set_num_threads(1)
    folder = options.work / options.scale
    log = report.cell_log("adaptation", options.scale, folder)
    recipe = RECIPES[options.scale]

    @cache
    def data(of: str) -> Domains:
        return load(of, options.data, options.work / "cache", recipe.side, MOST[options.scale])

    todo = [] if options.summary else cells(options.scale)
    report.run_cells(
        log,
        todo,
        lambda cell: run_cell(cell, data(cell.data), recipe, options.scale, folder),
        lambda line: f"{line['score']:.3f}",
    )
    rows, goals = summarise(report.finished(log, cells(options.scale)))
    file = report.write("adaptation", options.scale, SEEDS, rows, goals)
    report.plot(file, lambda axes: draw(rows, axes), size=(7.5, 5.5))
    if options.scale == "small":
        report.fill(PAGE, "adaptation", table(rows))
    print(file)


if __name__ == "__main__":
    main()
