"""``overread simulate``: what would choosing have saved? Rounds of annotation replayed on images whose labels are known."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np

import models
from models.card import DEFAULT_MODEL
from models.command import command_parser
from models.durable import write_whole
from models.errors import Refusal
from models.journal import Journal, writing
from models.pool import BEST, STRATEGIES, arrays
from models.predictor import Predictor
from models.seen import look_at_all, predictions
from training.config import write_json
from training.simulation import RANDOM, WHAT_IT_IS, Archive, Rounds, check, curves, summarise

PREDICTIONS, ROUNDS = "predictions.jsonl", "rounds.jsonl"
"""What is kept in the folder of the output: what the package says of each image, and every round that was replayed."""


def draw(summary: dict[str, Any], file: Path) -> None:
    """Draw AUROC against labels, a line a strategy and a band of one standard deviation, with all labels and none as limits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
    labels = np.array(summary["labels"])
    for strategy, found in summary["strategies"].items():
        mean, std = np.array(found["auroc"]), np.array(found["std"])
        color = "black" if strategy == RANDOM else None
        (line,) = axes.plot(labels, mean, label=strategy, linewidth=2.5 if strategy in (RANDOM, BEST) else 1, color=color)
        axes.fill_between(labels, mean - std, mean + std, color=line.get_color(), alpha=0.1, linewidth=0)
    axes.axhline(summary["all_labels"], color="grey", linestyle="--", linewidth=0.8, label="all labels of the pool")
    axes.axhline(summary["package_as_it_is"], color="grey", linestyle=":", linewidth=0.8, label="the package as it is")
    axes.set_xlabel("labels (simulation: only the last layer is trained again)")
    axes.set_ylabel("AUROC on other patients")
    axes.legend(fontsize=7)
    figure.savefig(file, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def read_archive(file: Path, predictor: Predictor, threads: int, store: Path) -> tuple[Archive, int]:
    """Read labelled images and what a package says of them.

    Parameters
    ----------
    file : Path
        CSV with the columns image (relative to it) and label, and patient where it is known.
    predictor : Predictor
    threads : int
    store : Path
        See :func:`models.seen.predictions`.

    Returns
    -------
    archive : Archive
    passed_over : int
        Images that cannot be read or are not accepted; each is listed on standard error.

    Raises
    ------
    Refusal
        ``data_invalid``, naming the row: a missing column, an empty cell, an unknown label, one image under two labels.
        ``folder_unavailable`` if the manifest's folder goes away. As :func:`models.seen.look_at_all` where ``store`` cannot be
        written.
    """
    classes = predictor.card.output.classes
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in ("image", "label") if name not in (reader.fieldnames or ())]
            records = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Refusal("data_invalid", f"The manifest cannot be read ({type(error).__name__}).") from error
    if missing:
        raise Refusal("data_invalid", f"The manifest lacks the column {missing[0]}.")
    for number, record in enumerate(records, start=1):
        if not (record["image"] or "").strip() or not (record["label"] or "").strip():
            raise Refusal("data_invalid", f"row {number}: a column is empty.")
        if record["label"].strip() not in classes:
            raise Refusal("data_invalid", f"row {number}: its label is not one of {', '.join(classes)}.")
    paths = [file.parent / record["image"].strip() for record in records]
    with predictions(store, predictor) as kept_predictions:
        seen = look_at_all(paths, file.parent, predictor, threads, "reading", kept_predictions)
    labels: dict[str, int] = {}
    kept = []
    for number, (record, each) in enumerate(zip(records, seen, strict=True), start=1):
        label = classes.index(record["label"].strip())
        if each.prediction is None:
            print(f"passed over: row {number}: [{each.error}] {each.detail}", file=sys.stderr)
        elif each.digest not in labels:
            labels[each.digest] = label
            kept.append((each, (record.get("patient") or "").strip() or each.patient, label))
        elif labels[each.digest] != label:
            raise Refusal("data_invalid", f"row {number}: this image has two labels that contradict each other.")
    if not kept:
        raise Refusal("data_invalid", "No image of the manifest can be read.")
    loss, chances, features = arrays([each for each, _, _ in kept], predictor)
    finding = classes.index(predictor.card.output.findings[0].label)
    patients = np.array([patient for _, patient, _ in kept])
    archive = Archive(np.array([label for _, _, label in kept]), patients, loss, chances, features, finding)
    return archive, len(records) - len(kept)


def main(argv: list[str]) -> int:
    """Run ``overread simulate``; returns 0, or 1 if an image could not be read."""
    parser = command_parser(
        "simulate",
        "Replay rounds of annotation on images whose labels are known, and draw what each way of choosing would have "
        f"saved against random. Given again, a run that was stopped goes on. {WHAT_IT_IS}",
        "overread simulate --manifest archive/manifest.csv --out simulation",
    )
    parser.add_argument(
        "--manifest", type=Path, required=True, metavar="FILE", help="CSV with image, label and, if known, patient"
    )
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="folder of a classifier's model package")
    parser.add_argument("--out", type=Path, required=True, help="folder for simulation.csv, .json and .png")
    parser.add_argument("--first", type=int, default=10, help="random labels at the start")
    parser.add_argument("--budget", type=int, default=10, help="labels a round")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--strategy", nargs="+", choices=tuple(STRATEGIES), metavar="NAME", default=list(STRATEGIES),
                        help=f"{'; '.join(STRATEGIES)}; random is always among them")  # fmt: skip
    parser.add_argument("--threads", type=int, default=2, help="images read side by side")
    options = parser.parse_args(argv)
    if min(options.first, options.budget, options.rounds, options.seeds, options.threads) < 1:
        raise Refusal("config_invalid", "--first, --budget, --rounds, --seeds and --threads must be at least 1.")
    plan = Rounds(options.first, options.budget, options.rounds)
    predictor = Predictor.load(options.model)
    archive, passed_over = read_archive(options.manifest, predictor, options.threads, options.out / PREDICTIONS)
    check(archive, plan, options.seeds, predictor.card.output.classes)
    made = f"overread {models.__version__}, archive {archive.sha256}, first {plan.first}, budget {plan.budget}"
    with Journal(options.out / ROUNDS, made) as kept:
        rows = curves(archive, list(dict.fromkeys([RANDOM, *options.strategy])), plan, options.seeds, kept)
    summary = summarise(rows, archive, options.seeds) | {
        "images": len(archive.labels), "passed_over": passed_over, "model": predictor.card.name, "model_sha256": predictor.sha256,
    }  # fmt: skip
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, ["strategy", "seed", "labels", "auroc", "accuracy"])
    writer.writeheader()
    writer.writerows(rows)
    with writing():
        write_whole(options.out / "simulation.csv", table.getvalue().encode())
        write_json(options.out / "simulation.json", summary)
        draw(summary, options.out / "simulation.png")
    if summary["random_gains"] <= 0:
        print("Random labels brought nothing here, from the first to the last: there is nothing that choosing could have saved.")
    for strategy, found in summary["strategies"].items():
        share = "does not reach random's end" if found["needs"] is None else f"needs {found['needs']:.0%} of random's labels"
        print(f"{strategy:<36} {share:<34} {found['difference']:+.3f} AUROC to random, mean over rounds")
    print(f"{WHAT_IT_IS}\nsee {options.out}")
    return 1 if passed_over else 0
