"""Does a learning curve tell what larger sizes bring? The larger sizes are hidden, foretold, and compared with what came.

python benchmarks/plan.py --data FOLDER --scale small --work runs/benchmarks
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from benchmarks import report
from benchmarks.simple_features import head, load
from training.learning_curve import fit

IMAGES = {"smoke": 4000, "small": 16_000, "paper": 50_000}
SEEDS = {"smoke": 3, "small": 8, "paper": 12}
SMALLEST = {"cifar10": 100, "pacs": 50}
TEST = 0.2
TEAM = 3
"""Seeds that a team measures."""
TEAMS = 20
HIDDEN = (2, 4, 8)
"""How many times more labels than the largest size that a team measured."""
PAGE = report.ROOT / "docs" / "plan.md"

Scores = dict[int, dict[int, float]]
"""Labels -> seed -> accuracy."""


def measure(name: str, data: Path, cache: Path, scale: str) -> Scores:
    """Return the accuracy of a head on simple features at doubling sizes."""
    features, labels, _, _ = load(name, data, cache, IMAGES[scale])
    test = round(TEST * len(labels))
    sizes = [SMALLEST[name] << step for step in range(12) if SMALLEST[name] << step <= len(labels) - test]
    scores: Scores = {size: {} for size in sizes}
    for seed in range(SEEDS[scale]):
        order = np.random.default_rng(seed).permutation(len(labels))
        for size in sizes:
            chosen = order[test : test + size]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model = head().fit(features[chosen], labels[chosen])
            scores[size][seed] = float(model.score(features[order[:test]], labels[order[:test]]))
        print(f"{name}, seed {seed}: " + " ".join(f"{scores[size][seed]:.3f}" for size in sizes), flush=True)
    return scores


def foretold(name: str, scores: Scores) -> list[dict[str, Any]]:
    """Return a row for every hidden size: what teams of three seeds foretell of it, and how often they are right."""
    sizes, seeds = sorted(scores), sorted(next(iter(scores.values())))
    teams = list(itertools.combinations(seeds, TEAM))
    teams = [teams[i] for i in np.random.default_rng(0).permutation(len(teams))[:TEAMS]]
    rows = []
    for times in HIDDEN:
        found: list[tuple[float, ...]] = []
        for cut in range(5, len(sizes)):
            hidden = sizes[cut - 1] * times
            if hidden not in scores:
                continue
            came = 1 - float(np.mean(list(scores[hidden].values())))
            for team in teams:
                known = [(size, scores[size][seed]) for size in sizes[:cut] for seed in team]
                curve = fit([size for size, _ in known], [score for _, score in known])
                if curve is None:
                    raise ValueError("five sizes of three seeds are enough")
                error, low, high = curve.error(hidden)
                labels, fewest, most = curve.labels(came)
                found.append((
                    error - came, low <= came <= high, high - low, fewest <= hidden <= most, labels / hidden,
                    1 - scores[sizes[cut - 1]][team[0]] - came,
                ))  # fmt: skip
        if found:
            table = np.array(found, dtype=np.float64)
            rows.append({
                "data": name, "times": times, "n": len(found), "bias": float(-table[:, 0].mean()),
                "gap": float(np.abs(table[:, 0]).mean()), "gain": float(table[:, 5].mean()),
                "coverage": float(table[:, 1].mean()), "width": float(table[:, 2].mean()),
                "labels_coverage": float(table[:, 3].mean()), "labels_ratio": float(np.median(np.minimum(table[:, 4], 100))),
            })  # fmt: skip
    return rows


def goals_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the goals, met or not."""
    accuracy, labels = (min(row[name] for row in rows) for name in ("coverage", "labels_coverage"))
    nearness = min(1 - row["gap"] / row["gain"] for row in rows if row["times"] == 4)
    return [
        report.goal("share of intervals that hold the hidden accuracy, smallest row", accuracy, 0.9),
        report.goal("share of intervals that hold the hidden number of labels, smallest row", labels, 0.9),
        report.goal("1 - mean gap over the gain in accuracy, 4 times the labels, smallest row", nearness, 0.5),
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    return report.markdown(
        ["data", "labels, times those measured", "gain in accuracy", "mean gap of what was foretold", "bias",
         "intervals that held it", "mean width", "labels foretold / needed, median", "intervals that held the labels"],
        [
            [row["data"], row["times"], f"{row['gain']:.3f}", f"{row['gap']:.3f}", f"{row['bias']:+.3f}",
             f"{row['coverage']:.2f}", f"{row['width']:.3f}", f"{row['labels_ratio']:.2f}", f"{row['labels_coverage']:.2f}"]
            for row in rows
        ],
    )  # fmt: skip


def draw(measured: dict[str, Scores], axes: Any) -> None:
    """Draw every measured size, and what the first team foretells from the smaller ones."""
    for name, scores in measured.items():
        sizes = sorted(scores)
        means = [np.mean(list(scores[size].values())) for size in sizes]
        (line,) = axes.plot(sizes, means, "o", label=f"{name}, came")
        known = [size for size in sizes if size * 4 <= sizes[-1]]
        curve = fit([size for size in known for _ in range(TEAM)], [scores[size][seed] for size in known for seed in range(TEAM)])
        if curve is not None:
            grid = np.geomspace(sizes[0], sizes[-1], 60)
            told = np.array([curve.error(n) for n in grid])
            axes.plot(grid, 1 - told[:, 0], color=line.get_color(), label=f"{name}, foretold from up to {known[-1]}")
            axes.fill_between(grid, 1 - told[:, 2], 1 - told[:, 1], color=line.get_color(), alpha=0.15)
    axes.set(xscale="log", xlabel="labels", ylabel="accuracy")
    axes.legend(fontsize=8)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10 and pacs")
    parser.add_argument("--scale", choices=tuple(IMAGES), required=True)
    parser.add_argument("--work", type=Path, required=True, help="where features are kept")
    options = parser.parse_args()
    measured = {name: measure(name, options.data, options.work / "cache", options.scale) for name in SMALLEST}
    rows = [row for name, scores in measured.items() for row in foretold(name, scores)]
    rows += [
        {"data": name, "labels": size, "n": len(seeds), "accuracy": float(np.mean(list(seeds.values())))}
        for name, scores in measured.items() for size, seeds in scores.items()
    ]  # fmt: skip
    hidden = [row for row in rows if "times" in row]
    goals = goals_of(hidden) if options.scale != "smoke" else []
    file = report.write("plan", options.scale, range(SEEDS[options.scale]), rows, goals)
    report.plot(file, lambda axes: draw(measured, axes))
    if options.scale == "small":
        report.fill(PAGE, "plan", f"{table(hidden)}\n\n{report.verdicts(goals)}")
    print(file)


if __name__ == "__main__":
    main()
