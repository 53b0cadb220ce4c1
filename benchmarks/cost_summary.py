"""From finished curves to minutes, ratios, goals, tables and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.active_learning import needed
from benchmarks.cost_cells import ARMS, BASELINE, NUCLEI, TOGETHER
from benchmarks.generalization import METRIC

Line = dict[str, Any]
SHARE = 0.95
"""Of the figure that the baseline reaches with all labels of the pool."""
GOALS = {"nuclei": 5.0, "classifiers": 3.0}
FIGURE = METRIC | {NUCLEI: "foreground IoU"}
RULE = (
    "minutes until 95% of what the baseline of the same seed reaches with all labels of the pool, linear between budgets; ratios "
    "are paired by hospital and seed, 0 where an arm does not get there, and never of less than its smallest budget; the first "
    "time counts"
)


def kind_of(data: str) -> str:
    """Return which goal a data set belongs to."""
    return "nuclei" if data == NUCLEI else "classifiers"


def reached(line: Line, base: Line) -> float | None:
    """Return the minutes of an arm until it has :data:`SHARE` of the baseline's figure with all labels; None if it never has."""
    return needed(np.array(line["minutes"]), np.array(line["scores"]), SHARE * base["scores"][-1])


def ratio(line: Line, base: Line) -> float:
    """Return how many times fewer minutes an arm takes than the baseline.

    Never more than can be told: an arm that gets there without any label is counted with its smallest budget, and one that never
    does with 0. Where it needs no more than the baseline, and that no more than this budget, nothing more can be told than 1.
    """
    ours, theirs, smallest = reached(line, base), reached(base, base), line["minutes"][1]
    if theirs is None:  # its last point is the figure itself
        raise ValueError("a baseline always reaches its own figure")
    if ours is None:
        return 0.0
    return 1.0 if ours <= theirs <= smallest else theirs / max(ours, smallest)


def pairs(done: Sequence[Line], arm: str, data: Sequence[str], target: str | None = None) -> list[tuple[Line, Line]]:
    """Return the lines of an arm with the baseline's of the same hospital and seed, where both are finished."""
    base = {(line["data"], line["target"], line["seed"]): line for line in done if line["arm"] == BASELINE.name}
    return [
        (line, base[key]) for line in done
        if line["arm"] == arm and line["data"] in data and target in (None, line["target"])
        and (key := (line["data"], line["target"], line["seed"])) in base
    ]  # fmt: skip


def row_of(found: Sequence[tuple[Line, Line]]) -> Line:
    """Return mean, spread and number of the minutes of those that got there, how many did, and the paired ratios."""
    minutes = [value for pair in found if (value := reached(*pair)) is not None]
    ratios = np.array([ratio(*pair) for pair in found])
    return {
        "metric": "minutes", "n": len(found), "reached": len(minutes), "mean": float(np.mean(minutes)) if minutes else None,
        "std": float(np.std(minutes, ddof=1)) if len(minutes) > 1 else 0.0, "ratio": float(np.median(ratios)),
        "ratio_low": float(ratios.min()), "ratio_high": float(ratios.max()), "rule": RULE,
        "test": [min(line["test"] for line, _ in found), max(line["test"] for line, _ in found)],
    }  # fmt: skip


def summarise(done: Sequence[Line]) -> tuple[list[Line], list[Line]]:
    """Return rows (minutes of each arm at each hospital and over all of a kind, and every point of the curves) and goals."""
    rows: list[Line] = []
    goals = []
    places = list(dict.fromkeys((line["data"], line["target"]) for line in done))
    kinds = {kind: [data for data, _ in places if kind_of(data) == kind] for kind in GOALS}
    for arm in ARMS:
        for data, target in places:
            if found := pairs(done, arm.name, [data], target):
                rows.append({"data": data, "target": target, "arm": arm.name, **row_of(found)})
                rows += _points([line for line, _ in found], arm.name)
        for kind, data_sets in kinds.items():
            if found := pairs(done, arm.name, data_sets):
                rows.append({"data": kind, "target": "all", "arm": arm.name, **row_of(found)})
    for kind, at_least in GOALS.items():
        if found := pairs(done, TOGETHER.name, kinds[kind]):
            text = f"{kind}: times fewer expert minutes, {TOGETHER.name}, median of hospitals and runs"
            goals.append(report.goal(text, row_of(found)["ratio"], at_least))
    return rows, goals


def _points(lines: Sequence[Line], arm: str) -> list[Line]:
    """Return the mean curve of an arm at one hospital. Pools of seeds may differ in size: whole pools are one point."""
    found = []
    for place, count in enumerate(lines[0]["labels"]):
        values = np.array([line["scores"][place] for line in lines if place < len(line["scores"])])
        found.append({
            "data": lines[0]["data"], "target": lines[0]["target"], "arm": arm, "metric": FIGURE[lines[0]["data"]],
            "labels": count, "minutes": float(np.mean([line["minutes"][place] for line in lines if place < len(line["scores"])])),
            "mean": float(values.mean()), "std": float(values.std(ddof=1)) if len(values) > 1 else 0.0, "n": len(values),
        })  # fmt: skip
    return found


def _minutes(row: Line) -> str:
    if row["mean"] is None:
        return f"not reached (0 of {row['n']})"
    return f"{row['mean']:.1f} ± {row['std']:.1f} ({row['reached']} of {row['n']})"


def table(rows: Sequence[Line], goals: Sequence[Line], whole: bool = True) -> str:
    """Return the Markdown: an arm a row; of every hospital, or over each kind alone. And what did not help, and the goals."""
    shown = {(row["data"], row["target"], row["arm"]): row for row in rows if row["metric"] == "minutes"}
    places = list(dict.fromkeys((data, target) for data, target, _ in shown if whole or target == "all"))
    parts = []
    for data, target in places:
        lines = [
            [arm.name, _minutes(row), f"{row['ratio']:.1f} ({row['ratio_low']:.1f} to {row['ratio_high']:.1f})"]
            for arm in ARMS if (row := shown.get((data, target, arm.name)))
        ]  # fmt: skip
        header = ["at the new hospital", "expert minutes (got there)", "times fewer, median (range)"]
        few, many = next(row["test"] for (*place, _), row in shown.items() if place == [data, target])
        images = str(few) if few == many else f"{few} to {many}"
        parts.append(f"{data}, {target} ({images} test images a run):\n\n{report.markdown(header, lines)}")
    idle = [
        f"{arm} ({data})" for (data, target, arm), row in shown.items()
        if target == "all" and arm != BASELINE.name and row["ratio"] <= 1
    ]  # fmt: skip
    if idle:
        parts.append(f"Did not lower the minutes: {', '.join(idle)}.")
    return "\n\n".join([*parts, report.verdicts(goals)])


def draw(rows: Sequence[Line], axes: Any) -> None:
    """Draw the figure against expert minutes, a panel a hospital, a line an arm."""
    figure = axes.figure
    axes.remove()
    curves = [row for row in rows if row["metric"] != "minutes"]
    places = list(dict.fromkeys((row["data"], row["target"]) for row in curves))
    columns = min(4, len(places))
    panels = figure.subplots(-(-len(places) // columns), columns, squeeze=False).ravel()
    for panel in panels[len(places) :]:
        panel.remove()
    for panel, (data, target) in zip(panels, places, strict=False):
        for arm in ARMS:
            mine = [row for row in curves if (row["data"], row["target"], row["arm"]) == (data, target, arm.name)]
            if mine:
                strong = arm in (BASELINE, TOGETHER)
                panel.plot(
                    [row["minutes"] for row in mine], [row["mean"] for row in mine], ".-", label=arm.name,
                    linewidth=2.5 if strong else 1.0, color="black" if arm == BASELINE else None,
                )  # fmt: skip
        full = [row["mean"] for row in curves if (row["data"], row["target"], row["arm"]) == (data, target, BASELINE.name)]
        panel.axhline(SHARE * full[-1], color="grey", linestyle=":", linewidth=1)
        panel.set_xscale("symlog", linthresh=0.1)
        panel.set_title(f"{data}, {target}", fontsize=9)
        panel.set_xlabel("expert minutes")
        panel.set_ylabel(FIGURE[data])
    panels[0].legend(fontsize=6)
