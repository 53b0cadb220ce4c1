"""From finished cells of the benchmark of nuclei to rows, goals, a page and a picture."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import numpy as np

from benchmarks import nuclei_cells, report
from benchmarks.nuclei_cells import ATTENTION, COMBINED, CURVE_FOLD, MASKS, METHODS, RIVAL, TEST_FOLDS, Cell
from benchmarks.nuclei_scores import METRICS, RULE, at_minutes, interval

Line = dict[str, Any]
IOU, AJI = METRICS[0], METRICS[2]
TITLES = dict(zip(METRICS, ("IoU", "Dice", "AJI", "PQ", "F1"), strict=True))
NOISY, OTHERWISE = (
    tuple(Cell("", 0, COMBINED, marks, 1.0, 0).row for marks in part) for part in (nuclei_cells.NOISY, nuclei_cells.OTHERWISE)
)
ROWS = (*(method.name for method in METHODS), *NOISY)
FIRST = ("trained with", "expert minutes", "processor seconds")
PAIRED = "paired by image and run; 95%: bootstrap of seeds and of groups of images"
Samples = list[tuple[int, str, float, float]]


def lines_of(done: list[Line], data: str, row: str, share: float = 1.0, fold: int | None = None) -> list[Line]:
    """Return the finished cells of a row."""
    return [
        line for line in done
        if (line["data"], line["row"], line["share"]) == (data, row, share) and fold in (None, line["fold"])
    ]  # fmt: skip


def values_of(lines: list[Line], metric: str) -> dict[tuple[int, int], tuple[str, float]]:
    """Return group and value of every (seed, image)."""
    return {
        (line["seed"], image): (group, value)
        for line in lines for image, group, value in zip(line["images"], line["groups"], line[metric], strict=True)
    }  # fmt: skip


def samples(first: list[Line], second: list[Line], metric: str, ratio: bool) -> Samples:
    """Return what :func:`benchmarks.nuclei_scores.interval` takes: values of two rows, where both have them, paired."""
    ours, theirs = values_of(first, metric), values_of(second, metric)
    both = sorted(ours.keys() & theirs.keys())
    pairs = [(key[0], ours[key][0], ours[key][1], theirs[key][1]) for key in both]
    return [(seed, group, mine, other) if ratio else (seed, group, mine - other, 1.0) for seed, group, mine, other in pairs]


def figures(lines: list[Line], metric: str) -> dict[str, Any]:
    """Return mean over images, their spread, the spread of runs, and how many there are of each."""
    values: dict[int, list[float]] = {}
    for (_, image), (_, value) in values_of(lines, metric).items():
        values.setdefault(image, []).append(value)
    images = np.array([np.mean(each) for each in values.values()])
    seeds = sorted({line["seed"] for line in lines})
    runs = [np.mean(np.concatenate([line[metric] for line in lines if line["seed"] == seed])) for seed in seeds]
    return {
        "mean": float(images.mean()), "std": float(images.std(ddof=1)) if len(images) > 1 else 0.0, "n": len(images),
        "std_of_seeds": float(np.std(runs, ddof=1)) if len(runs) > 1 else 0.0, "seeds": len(seeds),
        "minutes": float(np.mean([line["minutes"] for line in lines])),
        "cpu_seconds": float(np.median([line["cpu_seconds"] for line in lines])),
    }  # fmt: skip


def summarise(done: list[Line]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return rows and goals."""
    rows: list[dict[str, Any]] = []
    goals: list[dict[str, Any]] = []
    for data in TEST_FOLDS:
        table = {row: lines for row in ROWS if (lines := lines_of(done, data, row))}
        for row, lines in table.items():
            rows += [{"data": data, "row": row, "metric": name, **figures(lines, name), "rule": RULE} for name in METRICS]
        rows += _differences(data, table)
        rows += _otherwise(done, data)
        rows += _curve(done, data) + _equal_minutes(done, data)
        goals += _goals(data, rows)
    return rows, goals


def _difference(data: str, row: str, pairs: Samples, metric: str, kind: str) -> dict[str, Any]:
    mean, low, high = interval(pairs)
    return {
        "data": data, "row": row, "metric": f"{metric}, {kind}", "mean": mean, "low": low, "high": high, "n": len(pairs),
        "rule": PAIRED,
    }  # fmt: skip


def _differences(data: str, table: dict[str, list[Line]]) -> list[dict[str, Any]]:
    """Return each row less each before it, the noisy ones less the exact one, and shares of what full masks reach."""
    rows = []
    methods = [row for row in table if row not in NOISY]
    pairs = [(second, first) for first, second in combinations(methods, 2)]
    pairs += [(row, COMBINED.name) for row in NOISY if {row, COMBINED.name} <= table.keys()]
    for metric in (IOU, AJI):
        for second, first in pairs:
            apart = samples(table[second], table[first], metric, ratio=False)
            if apart:
                rows.append(_difference(data, f"{second} less {first}", apart, metric, "difference"))
        for row in methods if MASKS.name in table else []:
            share = samples(table[row], table[MASKS.name], metric, ratio=True)
            if share and row != MASKS.name:
                rows.append(_difference(data, row, share, metric, "share of full masks'"))
    return rows


def _otherwise(done: list[Line], data: str) -> list[dict[str, Any]]:
    """Return what other ways to mark reach, the combined supervision by exact points beside them, and how they differ."""
    rows = []
    exact, where = lines_of(done, data, COMBINED.name, fold=CURVE_FOLD), {"fold": CURVE_FOLD, "one_fold": True}
    table = {row: lines for row in OTHERWISE if (lines := lines_of(done, data, row))}
    if table and exact:
        for row, lines in {COMBINED.name: exact, **table}.items():
            rows += [
                {"data": data, "row": row, **where, "metric": name, **figures(lines, name), "rule": RULE} for name in METRICS
            ]
    for row, lines in table.items():
        for metric in (IOU, AJI):
            apart = samples(lines, exact, metric, ratio=False)
            if apart:
                rows.append(_difference(data, f"{row} less {COMBINED.name}", apart, metric, "difference") | where)
    return rows


def _budgets(done: list[Line], data: str, row: str) -> dict[float, list[Line]]:
    """Return the finished cells of a row where less is annotated, by share, the smallest first."""
    shares = sorted({line["share"] for line in done if (line["data"], line["row"]) == (data, row)})
    found = {share: lines_of(done, data, row, share, CURVE_FOLD) for share in shares}
    return {share: lines for share, lines in found.items() if lines}


def _curve(done: list[Line], data: str) -> list[dict[str, Any]]:
    return [
        {"data": data, "row": method.name, "fold": CURVE_FOLD, "share": share, "metric": IOU, **figures(lines, IOU), "rule": RULE}
        for method in (COMBINED, MASKS) for share, lines in _budgets(done, data, method.name).items()
    ]  # fmt: skip


def _equal_minutes(done: list[Line], data: str) -> list[dict[str, Any]]:
    """Return by how much points exceed masks of the same expert minutes.

    The minutes are, seed by seed, those of all points, or of the fewest masks where even these take longer: points can then
    not use them up, which is to the advantage of masks.
    """
    found: Samples = []
    minutes = []
    points, masks = (_budgets(done, data, method.name) for method in (COMBINED, MASKS))
    for seed in sorted({line["seed"] for line in done}):
        of_points, of_masks = (
            [line for lines in budgets.values() for line in lines if line["seed"] == seed] for budgets in (points, masks)
        )
        if not of_points or len(of_masks) < 2:
            continue
        spent = max(of_points[-1]["minutes"], of_masks[0]["minutes"])
        ours, theirs = (
            at_minutes(spent, [line["minutes"] for line in part], np.array([line[IOU] for line in part]))
            for part in (of_points, of_masks)
        )
        found += [(seed, group, float(value), 1.0) for group, value in zip(of_masks[0]["groups"], ours - theirs, strict=True)]
        minutes.append(spent)
    if not found:
        return []
    row = _difference(data, f"{COMBINED.name} less {MASKS.name}", found, IOU, "difference at equal expert minutes")
    return [row | {"fold": CURVE_FOLD, "minutes": float(np.mean(minutes))}]


def _goals(data: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = {(row["row"], row["metric"]): row for row in rows if row["data"] == data}
    share, goals = "share of full masks'", []
    both = f"{COMBINED.name} less {MASKS.name}", f"{IOU}, difference at equal expert minutes"
    wanted = [
        ((ATTENTION.name, f"{IOU}, {share}"), "mean", 0.94, f"PseudoEdgeNet with h, {share} foreground IoU"),
        ((COMBINED.name, f"{IOU}, {share}"), "mean", 0.97, f"combined (fixed beforehand), {share} foreground IoU"),
        ((COMBINED.name, f"{AJI}, {share}"), "mean", 0.90, f"combined (fixed beforehand), {share} AJI"),
        *(((f"{row} less {COMBINED.name}", f"{IOU}, difference"), "mean", -0.03, f"{row}: IoU less that of exact points")
          for row in NOISY),
        (both, "low", 0.0, "IoU of points less that of masks at equal expert minutes, lower end of the interval"),
    ]  # fmt: skip
    for key, which, at_least, text in wanted:
        if key in found:
            goals.append(report.goal(f"{data}: {text}", found[key][which], at_least))
    return goals


def _span(row: dict[str, Any]) -> str:
    return f"{row['mean']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"


def page(rows: list[dict[str, Any]], goals: list[dict[str, Any]]) -> str:
    """Return the Markdown of the page on nuclei: a table a set of images, what can be told apart, budgets, goals."""
    parts = []
    for data in TEST_FOLDS:
        mine = [row for row in rows if row["data"] == data and "share" not in row]
        found = {(row["row"], row["metric"]): row for row in mine if "one_fold" not in row}
        names = [name for name in ROWS if (name, IOU) in found]
        if not names:
            continue
        shares = {name: found.get((name, f"{IOU}, share of full masks'")) for name in names}
        lines = [[*_cells(found, name), f"{share['mean']:.0%}" if share else ""] for name, share in shares.items()]
        first = found[names[0], IOU]
        parts.append(f"`{data}`, {first['n']} test images, {first['seeds']} runs of each:")
        parts.append(report.markdown([*FIRST, *TITLES.values(), "IoU, of full masks'"], lines))
        parts.append(report.markdown(["IoU", "difference (95% interval)", ""], _order(found)))
        parts += _page_otherwise({(row["row"], row["metric"]): row for row in mine if "one_fold" in row})
        parts += [
            f"At equal expert minutes ({row['minutes']:.0f}), points less masks: IoU {_span(row)}."
            for (_, metric), row in found.items() if metric.endswith("at equal expert minutes")
        ]  # fmt: skip
    return "\n\n".join([*parts, report.verdicts(goals)])


def _cells(found: dict[tuple[str, str], dict[str, Any]], name: str) -> list[str]:
    values = [found[name, metric] for metric in METRICS]
    first = [name, f"{values[0]['minutes']:.0f}", f"{values[0]['cpu_seconds']:.0f}"]
    return [*first, *(f"{value['mean']:.3f} ± {value['std']:.3f}" for value in values)]


def _page_otherwise(found: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    """Return the table of other ways to mark, in one fold; nothing as long as none is finished."""
    names = [name for name in (COMBINED.name, *OTHERWISE) if (name, IOU) in found]
    if not names:
        return []
    keys = {name: (f"{name} less {COMBINED.name}", f"{IOU}, difference") for name in names}
    lines = [[*_cells(found, name), _span(found[keys[name]]) if keys[name] in found else ""] for name in names]
    text = f"Marked otherwise, or in part, in fold {CURVE_FOLD + 1} alone, {found[names[0], IOU]['n']} test images:"
    return [text, report.markdown([*FIRST, *TITLES.values(), "IoU less that of exact points"], lines)]


def _order(found: dict[tuple[str, str], dict[str, Any]]) -> list[list[str]]:
    """Return each row less the next one by mean IoU, and the noisy ones less the exact one, and whether they differ for sure."""
    names = sorted((m.name for m in METHODS if (m.name, IOU) in found), key=lambda name: -found[name, IOU]["mean"])
    pairs = [*pairwise(names), *((row, COMBINED.name) for row in NOISY if (row, IOU) in found)]
    if (RIVAL.name, COMBINED.name) not in pairs and (COMBINED.name, RIVAL.name) not in pairs:
        pairs.append((COMBINED.name, RIVAL.name))  # what edges add
    lines = []
    for first, second in pairs:
        row = found.get((f"{first} less {second}", f"{IOU}, difference"))
        if row is None:
            turned = found.get((f"{second} less {first}", f"{IOU}, difference"))
            if turned is None:
                continue
            row = {"mean": -turned["mean"], "low": -turned["high"], "high": -turned["low"]}
        lines.append([f"{first} less {second}", _span(row), "" if row["low"] > 0 or row["high"] < 0 else "not told apart"])
    return lines


def draw(rows: list[dict[str, Any]], axes: Any) -> None:
    """Draw foreground IoU against expert minutes, a panel a set of images; a band of one standard deviation of the runs."""
    figure = axes.figure
    axes.remove()
    for panel, data in zip(figure.subplots(1, len(TEST_FOLDS)), TEST_FOLDS, strict=True):
        for method, label in ((COMBINED, "points (combined)"), (MASKS, "full masks")):
            mine = [row for row in rows if (row["data"], row["row"]) == (data, method.name) and "share" in row]
            minutes, mean, std = (np.array([row[name] for row in mine]) for name in ("minutes", "mean", "std_of_seeds"))
            (line,) = panel.plot(minutes, mean, "o-", label=label)
            panel.fill_between(minutes, mean - std, mean + std, color=line.get_color(), alpha=0.15, linewidth=0)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:.0f}")
        panel.set_xlabel(f"{data}: expert minutes for the training images")
        panel.set_ylabel("foreground IoU on test images")
    panel.legend(fontsize=8)
