"""Does a classifier trained in some domains hold in one it never saw? Leave one domain out, for each method.

python benchmarks/generalization.py --data FOLDER --scale small --work runs/benchmarks
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from benchmarks import report
from benchmarks.domain_training import Method, Recipe, Run, outputs
from benchmarks.domains import SOURCES, Domains, load
from models.networks.normalization import gates
from models.uncertainty import softmax
from training.metrics import auroc

PAGE = report.ROOT / "docs" / "methods.md"
SEEDS = (0, 1, 2)
RECIPES = {
    "smoke": Recipe(side=32, widths=(4, 8, 8, 8), blocks=1, steps=2, batch=12, learning_rate=0.01),
    "small": Recipe(side=64, widths=(16, 32, 64, 128), blocks=2, steps=300, batch=48, learning_rate=0.01),
    "paper": Recipe(side=96, widths=(64, 128, 256, 512), blocks=2, steps=2000, batch=96, learning_rate=0.01),
}
"""``paper`` has the published number of steps and images a step (2,000 of 32 from each of three sources), but begins with random
weights, at the 96 pixels that the images have. The learning rate was chosen at the small scale among 0.01, 0.02, 0.05 and 0.1 by
plain training's source validation on one split of PACS, and is the same for all rows."""
MOST = {"smoke": 12, "small": 700, "paper": 10_000}
PLAIN, BIN, SAGNET = Method(), Method(batch_instance=True), Method(sagnet=True)
BOTH, MIXSTYLE = Method(batch_instance=True, sagnet=True), Method(mixstyle=True)
OURS = (BIN, SAGNET, BOTH)
METHODS = {
    "pacs": (PLAIN, *OURS, PLAIN.with_strong(), *(method.with_strong() for method in OURS), MIXSTYLE.with_strong()),
    "cxr": (PLAIN, *OURS, MIXSTYLE, PLAIN.with_strong(), *(method.with_strong() for method in OURS)),
    "wbc": (PLAIN, *OURS, MIXSTYLE, PLAIN.with_strong(), BOTH.with_strong()),
}
METRIC = {"pacs": "accuracy", "cxr": "auroc", "wbc": "balanced accuracy"}
ENOUGH = 5
"""Validation images of a class that a domain needs for a score of its own."""
RULE = "last step; nothing chosen on the target"


@dataclass(frozen=True)
class Cell:
    """One training run, and where its checkpoint lies."""

    data: str
    target: str
    method: Method
    seed: int

    @property
    def key(self) -> str:
        """Name of the cell, of its line in the log and of its checkpoint."""
        on = [name for name, value in vars(self.method).items() if value]
        return "-".join([self.data, self.target, *(on or ["plain"]), str(self.seed)])


def cells(scale: str) -> list[Cell]:
    """Return all cells of a scale, one seed of everything before the next."""
    seeds = SEEDS[:1] if scale == "smoke" else SEEDS
    most = 1 if scale == "smoke" else None
    return [
        Cell(name, target, method, seed)
        for seed in seeds
        for name in ("cxr", "wbc", "pacs")
        for target in SOURCES[name].targets[:most]
        for method in METHODS[name]
    ]


def score(name: str, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the data set's metric; NaN where it is not defined."""
    if METRIC[name] == "auroc":
        return auroc(labels == 1, softmax(logits, 1.0)[:, 1])
    right = logits.argmax(1) == labels
    if METRIC[name] == "accuracy":
        return float(right.mean())
    return float(np.mean([right[labels == value].mean() for value in np.unique(labels)]))


def home(data: Domains, logits: NDArray[np.float32], validation: NDArray[np.int64]) -> float:
    """Return the mean score of the source domains' validation images.

    Two of the X-rays' domains have a normal image or two among them, on which a score of their own is chance: domains with fewer
    than :data:`ENOUGH` images of a class are left out, unless all are.
    """
    classes = len(SOURCES[data.name].classes)
    parts = [validation[data.domains[validation] == name] for name in np.unique(data.domains[validation])]
    least = [int(np.bincount(data.labels[part], minlength=classes).min()) for part in parts]
    enough = min(ENOUGH, max(least))
    return float(np.mean([
        score(data.name, logits[part], data.labels[part]) for part, count in zip(parts, least, strict=True) if count >= enough
    ]))  # fmt: skip


def run_cell(cell: Cell, data: Domains, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Train one cell, keep its weights, return its line."""
    started = time.process_time()
    train, validation, target = data.split(cell.target, cell.seed)
    run = Run(data, cell.method, recipe, cell.seed)
    losses = run.train(train)
    torch.save(run.state(), folder / f"{cell.key}.pt")
    logits = outputs(run.network, data.images)[0]
    at_home = home(data, logits, validation)
    gate = torch.cat([torch.ones(1), *(rho.detach().flatten().cpu() for rho in gates(run.network))])[1:].numpy()
    return {
        "key": cell.key, "data": cell.data, "target": cell.target, "method": cell.method.name, "seed": cell.seed,
        "score": score(cell.data, logits[target], data.labels[target]), "validation": at_home,
        "accuracy": float((logits[target].argmax(1) == data.labels[target]).mean()), "loss": float(np.mean(losses[-20:])),
        "cpu_seconds": round(time.process_time() - started, 1), "n": len(target),
        "gates_open": float((gate > 0.9).mean()) if len(gate) else None,
        "gates_closed": float((gate < 0.1).mean()) if len(gate) else None,
    }  # fmt: skip


def interval(differences: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the mean of paired differences and its 95% interval (Student's t)."""
    mean = float(differences.mean())
    if len(differences) < 2:
        return mean, mean, mean
    half = float(stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences)))
    return mean, mean - half, mean + half


def difference(done: list[dict[str, Any]], name: str, method: Method, against: Method, target: str | None) -> NDArray[np.float64]:
    """Return the differences of two methods' scores, paired by seed and target."""
    table = {(line["target"], line["seed"], line["method"]): line["score"] for line in done if line["data"] == name}
    return np.array([
        value - table[where, seed, against.name] for (where, seed, row), value in sorted(table.items())
        if row == method.name and target in (None, where) and (where, seed, against.name) in table
    ])  # fmt: skip


def chosen(done: list[dict[str, Any]], name: str, methods: tuple[Method, ...]) -> Method:
    """Return the method of the best mean source validation: what can be known without the target."""
    return max(methods, key=lambda method: np.mean([
        line["validation"] for line in done if line["data"] == name and line["method"] == method.name
    ] or [-1.0]))  # fmt: skip


def summarise(done: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return rows and goals."""
    rows: list[dict[str, Any]] = []
    goals: list[dict[str, Any]] = []
    for name in sorted({line["data"] for line in done}):
        for method in METHODS[name]:
            mine = [line for line in done if line["data"] == name and line["method"] == method.name]
            for target in ("all", *SOURCES[name].targets):
                part = [line for line in mine if target in ("all", line["target"])]
                if part:
                    values = np.array([line["score"] for line in part])
                    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
                    rows.append({
                        "data": name, "target": target, "method": method.name, "metric": METRIC[name],
                        "mean": float(values.mean()), "std": spread, "n": len(values), "rule": RULE,
                        "source_validation": float(np.mean([line["validation"] for line in part])),
                    })  # fmt: skip
        for method in METHODS[name]:
            against = PLAIN.with_strong() if method.strong else PLAIN
            for target in ("all", *SOURCES[name].targets):
                pairs = difference(done, name, method, against, None if target == "all" else target)
                if method != against and len(pairs):
                    mean, low, high = interval(pairs)
                    rows.append({
                        "data": name, "target": target, "method": f"{method.name} less {against.name}", "metric": METRIC[name],
                        "mean": mean, "low": low, "high": high, "n": len(pairs), "rule": "paired by seed and target",
                    })  # fmt: skip
        goals += _goals(done, name)
    return rows, goals


def _goals(done: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    goals = []
    if name == "pacs":
        for against, methods in ((PLAIN, OURS), (PLAIN.with_strong(), tuple(method.with_strong() for method in OURS))):
            best = chosen(done, name, methods)
            pairs = difference(done, name, best, against, None)
            if len(pairs):
                mean, low, _ = interval(pairs)
                goals.append(
                    report.goal(f"PACS accuracy, {best.name} (chosen on source validation) less {against.name}", mean, 0.02)
                )
                goals.append(report.goal("the same, lower end of its paired interval", low, 0.0))
    if name == "cxr":
        best = chosen(done, name, (*OURS, *(method.with_strong() for method in OURS)))
        for target in SOURCES[name].targets:
            pairs = difference(done, name, best, PLAIN, target)
            if len(pairs):
                mean, low, _ = interval(pairs)
                goals.append(report.goal(f"AUROC on {target}, {best.name} (chosen on source validation) less plain", mean, 0.10))
                goals.append(report.goal("the same, lower end of its paired interval", low, 0.0))
    return goals


def table(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown table of the page on methods: a row a method, a column a target."""
    parts = []
    for name in sorted({row["data"] for row in rows}):
        shown = [row for row in rows if row["data"] == name and "std" in row]
        targets = list(dict.fromkeys(row["target"] for row in shown))
        lines = []
        for method in dict.fromkeys(row["method"] for row in shown):
            mine = {row["target"]: row for row in shown if row["method"] == method}
            figures = [
                f"{mine[target]['mean']:.3f} ± {mine[target]['std']:.3f} ({mine[target]['n']})"
                for target in targets
                if target in mine
            ]
            lines.append([method, *figures, *["" for _ in range(len(targets) - len(figures))]])
        parts.append(f"`{name}`, {METRIC[name]} (number of runs):\n\n" + report.markdown(["method", *targets], lines))
    return "\n\n".join(parts)


def draw(rows: list[dict[str, Any]], axes: Any) -> None:
    """Draw the mean difference from plain training of the same augmentation, with its paired interval."""
    shown = [row for row in rows if "low" in row and row["target"] == "all"]
    for place, row in enumerate(shown):
        axes.plot([row["low"], row["high"]], [place, place], color="C0")
        axes.plot(row["mean"], place, "o", color="C0")
    axes.set_yticks(range(len(shown)), [f"{row['data']}: {row['method'].split(' less ')[0]}" for row in shown], fontsize=7)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_xlabel("accuracy or AUROC there, less plain training with the same augmentation", fontsize=8)


def main() -> None:
    """Run the cells that are missing, then write the result."""
    parser = report.cells_parser(__doc__, "folder with pacs, cxr and wbc", RECIPES)
    parser.add_argument(
        "--weights", type=Path, help="begin with these weights of EfficientNet-Lite0; the result has a name of its own"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    name = "generalization" if options.weights is None else "generalization-pretrained"
    folder = options.work / (options.scale if options.weights is None else f"{options.scale}-pretrained")
    log = report.cell_log(name, options.scale, folder)
    recipe = replace(RECIPES[options.scale], start=options.weights)

    @cache
    def data(of: str) -> Domains:
        return load(of, options.data, options.work / "cache", recipe.side, MOST[options.scale])

    report.run_cells(
        log,
        [] if options.summary else cells(options.scale),
        lambda cell: run_cell(cell, data(cell.data), recipe, folder),
        lambda line: f"{line['score']:.3f} (home {line['validation']:.3f})",
    )
    done = report.finished(log, cells(options.scale))
    rows, goals = summarise(done)
    file = report.write(name, options.scale, SEEDS, rows, goals)
    report.plot(file, lambda axes: draw(rows, axes), size=(7.5, 5.5))
    if options.scale == "small" and options.weights is None:
        report.fill(PAGE, "generalization", table(rows))
    print(file)


if __name__ == "__main__":
    main()
