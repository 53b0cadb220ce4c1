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
    "time counts; if it has to stay, the last time before the curve is never below again"
)
LINE_COLOURS = dict(zip((arm.name for arm in ARMS), ("black", "C0", "C1", "C2", "C4", "C3"), strict=True))


def kind_of(data: str) -> str:
    """Return which goal a data set belongs to."""
    return "nuclei" if data == NUCLEI else "classifiers"


def reached(line: Line, base: Line, stays: bool = False) -> float | None:
    """Return the minutes of an arm until it has :data:`SHARE` of the baseline's figure with all labels; None if it never has.

    Parameters
    ----------
    stays : bool
        Until it is not below that with any more labels, instead of the first time that it is not.
    """
    minutes, scores, wanted = np.array(line["minutes"]), np.array(line["scores"]), SHARE * base["scores"][-1]
    if stays and (below := np.flatnonzero(scores < wanted)).size:
        minutes, scores = minutes[below[-1] :], scores[below[-1] :]
    return needed(minutes, scores, wanted)


def ratio(line: Line, base: Line, stays: bool = False) -> float:
    """Return how many times fewer minutes an arm takes than the baseline; ``stays`` as in :func:`reached`, of both.

    Never more than can be told: an arm that gets there without any label is counted with its smallest budget, and one that never
    does with 0. Where it needs no more than the baseline, and that no more than this budget, nothing more can be told than 1.
    """
    ours, theirs, smallest = reached(line, base, stays), reached(base, base, stays), line["minutes"][1]
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
    staying = np.array([ratio(*pair, stays=True) for pair in found])
    return {
        "metric": "minutes", "n": len(found), "reached": len(minutes), "mean": float(np.mean(minutes)) if minutes else None,
        "std": float(np.std(minutes, ddof=1)) if len(minutes) > 1 else 0.0, "ratio": float(np.median(ratios)),
        "ratio_low": float(ratios.min()), "ratio_high": float(ratios.max()), "rule": RULE,
        "staying": float(np.median(staying)), "staying_low": float(staying.min()), "staying_high": float(staying.max()),
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


def _ratio(row: Line, of: str) -> str:
    middle = row[of]
    return f"{middle:.1f} ({row[f'{of}_low']:.1f} to {row[f'{of}_high']:.1f})"


def table(rows: Sequence[Line], goals: Sequence[Line], whole: bool = True) -> str:
    """Return the Markdown: an arm a row; of every hospital, or over each kind alone. And what did not help, and the goals."""
    shown = {(row["data"], row["target"], row["arm"]): row for row in rows if row["metric"] == "minutes"}
    places = list(dict.fromkeys((data, target) for data, target, _ in shown if whole or target == "all"))
    parts = []
    for data, target in places:
        lines = [
            [arm.name, _minutes(row), *(_ratio(row, of) for of in ("ratio", "staying"))]
            for arm in ARMS if (row := shown.get((data, target, arm.name)))
        ]  # fmt: skip
        header = ["at the new hospital", "expert minutes (got there)", "times fewer, median (range)", "if it has to stay there"]
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
                    linewidth=2.5 if strong else 1.0, color=LINE_COLOURS[arm.name],
                )  # fmt: skip
        full = [row["mean"] for row in curves if (row["data"], row["target"], row["arm"]) == (data, target, BASELINE.name)]
        panel.axhline(SHARE * full[-1], color="grey", linestyle=":", linewidth=1)
        panel.set_xscale("symlog", linthresh=0.1)
        panel.set_xlim(left=0)
        panel.set_title(f"{data}, {target}", fontsize=9)
        panel.set_xlabel("expert minutes")
        panel.set_ylabel(FIGURE[data])
    known = {label: handle for panel in figure.axes for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(known.values(), known.keys(), loc="outside upper center", ncols=len(ARMS), fontsize=8)
