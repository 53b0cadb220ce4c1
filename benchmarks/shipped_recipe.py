"""Which recipe for the X-ray model that ships? Each of its two hospitals left out in turn, so nothing else has a say.

python benchmarks/shipped_recipe.py --data FOLDER --scale small --work runs/benchmarks
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from benchmarks import report
from benchmarks.domain_training import Method, Recipe, Run, outputs
from benchmarks.domains import SOURCES, Domains, load
from benchmarks.generalization import SEEDS, home, interval, score
from training.calibrate import cross_entropy

PAGE = report.ROOT / "docs" / "training.md"
HOSPITALS = SOURCES["cxr"].targets
BASE = Recipe(side=64, widths=(16, 32, 64, 128), blocks=2, steps=300, batch=48, learning_rate=0.01)
MOST = {"smoke": 40, "small": 700}
STRONG = Method(strong=True)


@dataclass(frozen=True)
class Variant:
    """What the model that ships could be trained by: pixels a side, steps, method."""

    side: int
    steps: int
    method: Method = STRONG

    @property
    def name(self) -> str:
        """Name of its row."""
        return f"{self.side} x {self.side} pixels, {self.steps} steps, {self.method.name}"


VARIANTS = {
    "smoke": (Variant(32, 2), Variant(32, 2, replace(STRONG, sagnet=True))),
    "small": (
        Variant(64, 300), Variant(64, 1000), Variant(128, 300),
        Variant(64, 300, replace(STRONG, sagnet=True)), Variant(64, 300, replace(STRONG, batch_instance=True, sagnet=True)),
    ),
}  # fmt: skip
REFERENCE = {"smoke": VARIANTS["smoke"][0], "small": Variant(128, 300)}
"""The size of the releases before: what the other variants are compared with."""


@dataclass(frozen=True)
class Cell:
    """One training run."""

    variant: Variant
    target: str
    seed: int

    @property
    def key(self) -> str:
        """Name of its line."""
        on = [name for name, value in vars(self.variant.method).items() if value]
        return "-".join([str(self.variant.side), str(self.variant.steps), *on, self.target, str(self.seed)])


def cells(scale: str) -> list[Cell]:
    """Return all cells of a scale, one seed of everything before the next."""
    seeds = SEEDS[:1] if scale == "smoke" else SEEDS
    return [Cell(variant, target, seed) for seed in seeds for variant in VARIANTS[scale] for target in HOSPITALS]


def run_cell(cell: Cell, data: Domains, scale: str) -> dict[str, Any]:
    """Train on one hospital, and return the figures at the other."""
    started = time.process_time()
    own = np.isin(data.domains, HOSPITALS)
    train, validation, target = (part[own[part]] for part in data.split(cell.target, cell.seed))
    recipe = replace(BASE, side=cell.variant.side, steps=cell.variant.steps)
    if scale == "smoke":
        recipe = replace(recipe, widths=(4, 8, 8, 8), blocks=1, batch=12)
    run = Run(data, cell.variant.method, recipe, cell.seed)
    run.train(train)
    logits = outputs(run.network, data.images)[0]
    return {
        "key": cell.key, "method": cell.variant.name, "target": cell.target, "seed": cell.seed, "n": len(target),
        "auroc": score("cxr", logits[target], data.labels[target]), "auroc_home": home(data, logits, validation),
        "loss": float(cross_entropy(logits[target], data.labels[target], 1.0).mean()),
        "cpu_seconds": round(time.process_time() - started, 1),
    }  # fmt: skip


def summarise(done: list[dict[str, Any]], scale: str) -> list[dict[str, Any]]:
    """Return a row a variant, hospital and metric, and the paired differences from the reference; none is a goal."""
    rows: list[dict[str, Any]] = []
    by = {(line["method"], line["target"], line["seed"]): line for line in done}
    for variant in VARIANTS[scale]:
        for target in ("both", *HOSPITALS):
            mine = {key: line for key, line in by.items() if key[0] == variant.name and target in ("both", key[1])}
            if not mine:
                continue
            for metric in ("auroc", "auroc_home", "loss"):
                values = [line[metric] for line in mine.values()]
                spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
                rows.append({
                    "method": variant.name, "target": target, "metric": metric, "mean": float(np.mean(values)), "std": spread,
                    "n": len(values),
                })  # fmt: skip
            other = [(REFERENCE[scale].name, *key[1:]) for key in mine]
            if variant != REFERENCE[scale] and all(key in by for key in other):
                gaps = np.array([line["auroc"] - by[key]["auroc"] for line, key in zip(mine.values(), other, strict=True)])
                mean, low, high = interval(gaps)
                rows.append({
                    "method": f"{variant.name} less {REFERENCE[scale].name}", "target": target, "metric": "auroc", "mean": mean,
                    "low": low, "high": high, "n": len(gaps),
                })  # fmt: skip
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown table of the page on training."""
    shown = {(row["method"], row["target"], row["metric"]): row for row in rows if "std" in row}
    columns = [("both", "auroc"), *((target, "auroc") for target in HOSPITALS), ("both", "auroc_home"), ("both", "loss")]

    def figure(method: str, target: str, metric: str) -> str:
        row = shown[method, target, metric]
        return f"{row['mean']:.3f} ± {row['std']:.3f} ({row['n']})"

    methods = dict.fromkeys(method for method, _, _ in shown)
    names = ["both left out in turn", *(f"{target} left out" for target in HOSPITALS), "at home", "cross-entropy abroad, nats"]
    return report.markdown(
        ["variant, AUROC unless said", *names], [[method, *(figure(method, *column) for column in columns)] for method in methods]
    )


def draw(rows: list[dict[str, Any]], axes: Any) -> None:
    """Draw AUROC at the hospital that was left out, a group a variant."""
    shown = [row for row in rows if "std" in row and row["metric"] == "auroc"]
    methods = list(dict.fromkeys(row["method"] for row in shown))
    for place, target in enumerate(("both", *HOSPITALS)):
        mine = {row["method"]: row for row in shown if row["target"] == target}
        axes.errorbar(
            [mine[method]["mean"] for method in methods], np.arange(len(methods)) + place / 5,
            xerr=[mine[method]["std"] for method in methods], fmt="o", label=target,
        )  # fmt: skip
    axes.axvline(0.5, color="grey", linewidth=0.8)
    axes.set_yticks(range(len(methods)), methods, fontsize=7)
    axes.set_xlabel("AUROC at the hospital left out")
    axes.legend(fontsize=7)


def main() -> None:
    """Run the cells that are missing, then write the result."""
    options = report.cells_parser(__doc__, "folder with cxr", VARIANTS).parse_args()
    torch.set_num_threads(1)
    log = report.cell_log("shipped_recipe", options.scale, options.work / options.scale)

    @cache
    def data(side: int) -> Domains:
        return load("cxr", options.data, options.work / "cache", side, MOST[options.scale])

    report.run_cells(
        log,
        [] if options.summary else cells(options.scale),
        lambda cell: run_cell(cell, data(cell.variant.side), options.scale),
        lambda line: f"{line['auroc']:.3f} (home {line['auroc_home']:.3f})",
    )
    rows = summarise(report.finished(log, cells(options.scale)), options.scale)
    file = report.write("shipped_recipe", options.scale, SEEDS, rows, [])
    report.plot(file, lambda axes: draw(rows, axes), size=(8.0, 3.5))
    if options.scale == "small":
        report.fill(PAGE, "shipped_recipe", table(rows))
    print(file)


if __name__ == "__main__":
    main()
