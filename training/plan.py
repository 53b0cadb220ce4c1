"""``overread plan``: how many labels a target needs, from a learning curve of a team's own labelled data."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.card import DEFAULT_MODEL
from models.command import command_parser
from models.durable import write_whole
from models.errors import Refusal
from models.journal import writing
from training.config import write_json
from training.learning_curve import HORIZON, MIN_SEEDS, MIN_SIZES, ROUNDS, Fit, Verdict, fit

Document = dict[str, Any]
Measured = tuple[int, int, float]
"""Labels, seed and score of one training."""

SCORES, JSON, TEXT, PICTURE, KEPT = "scores.csv", "plan.json", "plan.txt", "plan.png", "predictions.jsonl"


def read_scores(file: Path) -> list[Measured]:
    """Read measured sizes: a CSV with the columns labels, seed and score.

    Raises
    ------
    Refusal
        ``data_invalid`` with the number of the row.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise Refusal("data_invalid", f"--scores cannot be read ({type(error).__name__}).") from error
    found: dict[tuple[int, int], float] = {}
    for number, row in enumerate(rows, start=2):
        try:
            labels, seed, score = int(row["labels"]), int(row["seed"]), float(row["score"])
        except (KeyError, TypeError, ValueError) as error:
            raise Refusal(
                "data_invalid", f"Row {number} of --scores lacks labels, seed or score, or one is no number."
            ) from error
        if labels < 1 or not 0 <= score <= 1:
            raise Refusal("data_invalid", f"Row {number} of --scores: labels must be 1 or more, and score from 0 to 1.")
        if found.get((labels, seed), score) != score:
            raise Refusal("data_invalid", f"Row {number} of --scores contradicts another row of the same labels and seed.")
        found[labels, seed] = score
    if not found:
        raise Refusal("data_invalid", "--scores holds no row.")
    return [(labels, seed, score) for (labels, seed), score in sorted(found.items())]


def _finite(value: float, most: float) -> float | None:
    return float(np.ceil(value - 1e-9)) if value <= most else None


def rounds(largest: int, wanted: float) -> list[int]:
    """Return the labels after each of at most five rounds of equal growth, none of which doubles more than it must."""
    count = min(ROUNDS, max(1, int(np.ceil(wanted - largest))))
    return [int(np.ceil(largest * (wanted / largest) ** (step / count) - 1e-9)) for step in range(1, count + 1)]


def verdict_of(fitted: Fit, target: float, largest: int, best: float) -> Verdict:
    """Say whether a target can be reached, from the interval of the labels it needs."""
    _, low, high = fitted.labels(1 - target)
    if best >= target:
        return "reached"
    if low > HORIZON * largest:
        return "out_of_reach"
    return "reachable" if high <= HORIZON * largest else "not_known"


def plan(measured: Sequence[Measured], target: float, seconds: float | None) -> Document:
    """Return how many labels a target needs.

    Parameters
    ----------
    measured : sequence of (labels, seed, score)
    target : float, in (0, 1)
        Score to reach.
    seconds : float or None
        That one label takes.

    Returns
    -------
    dict
        verdict: "reached", "reachable", "out_of_reach" or "not_known". labels: value, low and high, None beyond a hundred times
        what was measured. rounds: labels after each. best_possible: the score that no number of labels exceeds.
    """
    sizes = sorted({labels for labels, _, _ in measured})
    means = {size: float(np.mean([score for labels, _, score in measured if labels == size])) for size in sizes}
    largest = sizes[-1]
    document: Document = {
        "target": target, "largest": largest, "horizon": int(HORIZON * largest),
        "measured": [{"labels": size, "score": score} for size, score in means.items()],
    }  # fmt: skip
    fitted = fit([row[0] for row in measured], [row[2] for row in measured])
    if fitted is None:
        why = f"A curve needs {MIN_SIZES} sizes with {MIN_SEEDS} seeds each, better seven with three."
        return document | {"verdict": "not_known", "why": why, "labels": None, "rounds": []}
    value, low, high = fitted.labels(1 - target)
    verdict = verdict_of(fitted, target, largest, means[largest])
    limit, least, most = fitted.asymptote()
    curve = fitted.curve
    document |= {
        "verdict": verdict, "why": _why(verdict, fitted, target),
        "curve": {"a": curve.a, "b": curve.b, "c": curve.c}, "used": list(fitted.used), "left_out": list(fitted.left_out),
        "follows_a_power_law": fitted.follows,
        "best_possible": {"value": 1 - limit, "low": 1 - most, "high": 1 - least},
        "labels": {name: _finite(number, HORIZON * largest) for name, number in (("value", value), ("low", low), ("high", high))},
        "rounds": [{"labels": size} for size in rounds(largest, value)]
        if verdict in {"reachable", "not_known"} and largest < value <= HORIZON * largest else [],
        "next": _next(fitted, largest),
    }  # fmt: skip
    if seconds is not None:
        document["seconds_per_label"] = seconds
        document["minutes"] = {
            name: None if number is None else max(0.0, number - largest) * seconds / 60
            for name, number in document["labels"].items()
        }
        for step in document["rounds"]:
            step["minutes"] = (step["labels"] - largest) * seconds / 60
    return document


def _next(fitted: Fit, largest: int) -> list[Document]:
    found = []
    for times in (2, 4, 8):
        error, low, high = fitted.error(times * largest)
        found.append({"labels": times * largest, "score": 1 - error, "low": 1 - high, "high": 1 - low})
    return found


def _why(verdict: Verdict, fitted: Fit, target: float) -> str:
    limit, low, high = (1 - value for value in fitted.asymptote())
    ceiling = f"The most that any number of labels gives is {limit:.3f} (95%: {high:.3f} to {low:.3f})."
    return {
        "reached": "The largest size that was measured reaches it.",
        "reachable": ceiling,
        "out_of_reach": f"{ceiling} More of these labels do not lead to {target:g}: change the model, the images or the labels.",
        "not_known": f"{ceiling} That is too wide to tell: measure a larger size, or more seeds, and plan again.",
    }[verdict]


def text(document: Document) -> str:
    """Return the plan in words."""
    lines = [f"target {document['target']:g}: {document['verdict'].replace('_', ' ')}. {document['why']}"]
    labels, minutes = document["labels"], document.get("minutes")

    def said(found: Document, unit: str) -> str:
        low, value, high = (found[name] for name in ("low", "value", "high"))
        if low is None:
            return f"more {unit} than a hundred times what was measured"
        ends = f"95%: {low:,.0f} " + ("and more, without a bound" if high is None else f"to {high:,.0f}")
        return f"at least {low:,.0f} {unit} (95%)" if value is None else f"{value:,.0f} {unit} ({ends})"

    if labels is not None:
        lines.append(f"needs {said(labels, 'labels')}; {document['largest']:,} are the most that was measured")
        lines += [f"beyond those, it takes {said(minutes, 'minutes')}"] if minutes else []
        if document["left_out"]:
            lines.append(f"left out, before the power law: {', '.join(map(str, document['left_out']))} labels")
        if not document["follows_a_power_law"]:
            lines.append("the sizes do not lie on a power law, even so: trust the interval less")
        lines += [
            f"with {row['labels']:,} labels: {row['score']:.3f} (95%: {row['low']:.3f} to {row['high']:.3f})"
            for row in document["next"]
        ]
    for number, step in enumerate(document["rounds"], start=1):
        time = f", {step['minutes']:,.0f} minutes in all" if "minutes" in step else ""
        lines.append(
            f"round {number}: to {step['labels']:,} labels{time}" + ("; then measure, and plan again" if number == 1 else "")
        )
    return "\n".join(lines) + "\n"


def draw(document: Document, measured: Sequence[Measured], file: Path) -> None:
    """Draw the measured sizes, the curve, and what it foretells."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([row[0] for row in measured], [row[2] for row in measured], "o", alpha=0.5, label="measured")
    axes.axhline(document["target"], color="grey", linestyle=":", label="target")
    if "curve" in document:
        n = np.geomspace(min(row[0] for row in measured), 8 * document["largest"], 100)
        curve = document["curve"]
        axes.plot(n, 1 - (curve["a"] * n ** -curve["b"] + curve["c"]), label="power law")
        rows = document["next"]
        middle = [row["score"] for row in rows]
        ends = [[row["score"] - row["low"] for row in rows], [row["high"] - row["score"] for row in rows]]
        axes.errorbar([row["labels"] for row in rows], middle, np.maximum(ends, 0), fmt=".", capsize=4, label="95% interval")
    axes.set(xscale="log", xlabel="labels", ylabel="score")
    axes.legend()
    figure.savefig(file, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "plan",
        "Say how many labels a target needs, from sizes that were measured (--scores), or from labelled images: a "
        "simple head on a model package's features is then trained at growing sizes.",
        "overread plan --model models/zoo/cxr-pneumonia --labels labels.csv --images scans/ --target 0.9",
    )
    parser.add_argument("--target", type=float, required=True, help="score to reach, between 0 and 1")
    parser.add_argument("--scores", type=Path, metavar="FILE.csv", help="columns labels, seed, score (higher is better)")
    parser.add_argument("--labels", type=Path, metavar="FILE.csv", help="columns file (from the folder of images) and label")
    parser.add_argument("--images", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--model", type=Path, default=DEFAULT_MODEL, metavar="PACKAGE", help="folder of a classifier's model package"
    )
    parser.add_argument("--score", choices=("accuracy", "auroc"), default="accuracy", help="of the head")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each size")
    parser.add_argument("--seconds-per-label", type=float, metavar="SECONDS", help="to say it in minutes too")
    parser.add_argument("--threads", type=int, default=2, help="images read side by side")
    parser.add_argument("--out", type=Path, default=Path("plan"), metavar="FOLDER", help="of the plan")
    return parser


def main(argv: list[str]) -> int:
    """Run ``overread plan``; returns 0, whatever the plan says."""
    parser = _parser()
    options = parser.parse_args(argv)
    if (options.scores is None) == (options.labels is None or options.images is None):
        parser.error("give --scores, or --labels with --images")
    if not 0 < options.target < 1 or options.seeds < 1 or options.threads < 1 or (options.seconds_per_label or 1) <= 0:
        raise Refusal("config_invalid", "--target must lie between 0 and 1, --seeds and --threads at least 1, seconds above 0.")
    if options.scores is not None:
        measured = read_scores(options.scores)
    else:
        from training.plan_features import measure  # scikit-learn, which --scores does not need

        measured = measure(
            options.model, options.labels, options.images, options.score, options.seeds, options.threads, options.out / KEPT
        )
    document = plan(measured, options.target, options.seconds_per_label)
    table = io.StringIO(newline="")
    csv.writer(table).writerows([("labels", "seed", "score"), *measured])
    with writing("config_invalid"):
        options.out.mkdir(parents=True, exist_ok=True)
    with writing():
        write_whole(options.out / SCORES, table.getvalue().encode())
        write_json(options.out / JSON, document)
        write_whole(options.out / TEXT, text(document).encode())
        draw(document, measured, options.out / PICTURE)
    print(text(document), end="")
    return 0
