"""``overread certify``: what a model does at a site, with intervals, from a small sample of labels."""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import models
from models.card import DEFAULT_MODEL, ModelCard
from models.certificate import Answers, View, compare, figures, predictive_limits, triage
from models.certificate_page import page
from models.command import command_parser
from models.durable import write_whole
from models.errors import Refusal
from models.estimates import Sample
from models.journal import writing
from models.predictor import Predictor
from models.promised import Targets, add_targets, targets_of, words_of
from models.sampling import by_doubt, draw, even
from models.site import Row, Site, names_of, predict_site
from models.site_labels import COLUMNS, Label, is_draw, join, read_labels

Document = dict[str, Any]
MIN_LABELS = 20
"""Fewer labels leave an interval that says nothing, and hold less often than they should."""
STORE, JSON, HTML = "predictions.jsonl", "report.json", "report.html"


def write_draw(site: Site, predictor: Predictor, out: Path, size: int, by: str, seed: int) -> None:
    """Draw images to be labelled, and write their names with the probability of each, and a record of the draw beside it.

    Raises
    ------
    Refusal
        ``output_exists`` if there is such a file; ``config_invalid`` if the site has fewer images, or it cannot be written.
    """
    rows = site.answered
    if out.exists():
        raise Refusal("output_exists", "--labels exists already; a draw is not written over labels.")
    if not 1 <= size <= len(rows):
        raise Refusal("config_invalid", f"--draw must be 1 to {len(rows)}, the images of the site that the model answers.")
    answers, card = Answers.of(rows, predictor.card), predictor.card
    view = View.of(card.output.findings[0], card, answers)
    chances = even(len(rows), size) if by == "random" else by_doubt(answers.probabilities, view.called, view.kind, size)
    record = {
        "by": by, "size": size, "seed": seed, "site_sha256": site.sha256, "model_sha256": predictor.sha256,
        "overread": models.__version__, "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }  # fmt: skip
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(COLUMNS)
    for index in draw(chances, seed):
        writer.writerow([rows[index]["file"], "", repr(float(chances[index])), rows[index]["image_sha256"]])
    try:
        # The record first: without it a draw is not taken, and with the record alone it can be drawn again
        write_whole(_record(out), (json.dumps(record, indent=1) + "\n").encode())
        write_whole(out, table.getvalue().encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise Refusal("config_invalid", f"--labels cannot be written ({type(error).__name__}).") from error


def _record(labels: Path) -> Path:
    return labels.with_suffix(".draw.json")


def _drawn(labels: Path) -> Document | None:
    """Return the record of the draw; None if the labels were not drawn by us, so that nothing is known of the site back then.

    Raises
    ------
    Refusal
        ``data_invalid`` if they were and it is missing, or cannot be read.
    """
    if not _record(labels).exists():
        if is_draw(labels):
            raise Refusal(
                "data_invalid",
                "The record of the draw, .draw.json, is not beside --labels: without it nobody knows whether the site is still "
                "the same. Keep both together; labels that were drawn otherwise go without the column image_sha256.",
            )
        return None
    try:
        record: Document = json.loads(_record(labels).read_text())
        record["site_sha256"], int(record["size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refusal("data_invalid", "The record of the draw beside --labels cannot be read.") from error
    return record


def _not_labelled(record: Document, labels: Sequence[Label]) -> int:
    """Return how many images of a draw have no label, whether their line is empty or was taken out.

    Raises
    ------
    Refusal
        ``data_invalid`` if there are more labels than images that were drawn.
    """
    left = int(record["size"]) - len(labels)
    if left < 0:
        raise Refusal("data_invalid", f"--labels has {-left} labels more than images were drawn; only those may be in it.")
    return left


def _sample(index: NDArray[np.int64], labels: Sequence[Label], count: int, response: float) -> tuple[Sample, bool]:
    """Return the sample among ``count`` images, and whether every image was as likely as any other."""
    given = [label.probability for label in labels]
    if None in given:
        return Sample(index, np.full(len(index), len(index) / count)), True
    known = np.array(given, dtype=np.float64)
    # Drawn and not labelled: those that are stand for them too
    return Sample(index, known * response), bool(np.ptp(known) <= 1e-9)


def _checked(classes: Sequence[str]) -> None:
    if len(classes) < MIN_LABELS:
        raise Refusal("too_few_labels", f"{len(classes)} labelled images can be used; an interval needs {MIN_LABELS} at least.")
    if len(set(classes)) < 2:
        raise Refusal(
            "one_class", "All labelled images are of one class: nothing can be said of the others. Label more, or draw by doubt."
        )


def traced(card: ModelCard, sha256: str) -> Document:
    """Return what a report says of a model package: name, version, and the digests of the package and its graph."""
    return {"name": card.name, "version": card.version, "sha256": sha256, "model_sha256": card.model_sha256}


def _against(
    predictor: Predictor, site: Site, other: Predictor, theirs: Site, labels: Sequence[Label], response: float
) -> Document:
    """Compare on the images that both answer."""
    before = {row["image_sha256"]: row for row in theirs.answered}
    rows: list[Row] = [row for row in site.answered if row["image_sha256"] in before]
    index, found = join(labels, site, rows)
    _checked([label.label for label in found])
    sample, _ = _sample(index, found, len(rows), response)
    classes = np.array([predictor.card.output.classes.index(label.label) for label in found])
    old = Answers.of([before[row["image_sha256"]] for row in rows], predictor.card)
    differences = compare(predictor.card, Answers.of(rows, predictor.card), other.card.output.findings, old, classes, sample)
    return {"model": traced(other.card, other.sha256), "images": len(rows), "labels": len(found), "figures": differences}


def _same_task(predictor: Predictor, other: Predictor) -> None:
    ours, theirs = (item.card.output for item in (predictor, other))
    if set(ours.classes) != set(theirs.classes) or {f.label for f in ours.findings} != {f.label for f in theirs.findings}:
        raise Refusal("config_invalid", "--against is a model of other classes or findings.")


def certify(card: ModelCard, site: Site, labels: Sequence[Label], empty: int, targets: Targets) -> Document:
    """Return the document of a site, without what it came from.

    Parameters
    ----------
    card : ModelCard
    site : Site
    labels : sequence of Label
    empty : int
        Images that were drawn and not labelled.
    targets : Targets

    Raises
    ------
    Refusal
        ``too_few_labels``, ``one_class``, or ``data_invalid`` if labels contradict each other.
    """
    rows = site.answered
    index, found = join(labels, site, rows)
    _checked([label.label for label in found])
    sample, random = _sample(index, found, len(rows), len(labels) / (len(labels) + empty))
    answers = Answers.of(rows, card)
    classes = np.array([card.output.classes.index(label.label) for label in found])
    refused = len(site.rows) - len(rows)
    views = [View.of(finding, card, answers) for finding in card.output.findings]
    notes = []
    if empty:
        notes.append(f"{empty} images were drawn and not labelled: the figures hold if what they have in common is chance.")
    if len(found) < len(labels):
        notes.append(f"{len(labels) - len(found)} labels are of images that the model refuses, cannot read, or has twice.")
    if any(label.probability is None for label in found):
        notes.append("The labels do not say how they were drawn: the figures hold if it was at random.")
    patients = len({site.patients.get(rows[place]["image_sha256"], place) for place in index.tolist()})
    if patients < len(found):
        notes.append(
            f"The {len(found)} labelled images are of {patients} patients. Images of one patient are not independent: the "
            "intervals are too narrow, and promises are broken more often than they say. Label one image a patient."
        )
    if refused > len(rows):
        notes.append("The model refuses most of the site: the figures are about the smaller part that it answers.")
    limits = [limit for view in views for limit in predictive_limits(view, classes, sample, *targets[:2])]
    return {
        "site": {"images": len(site.rows), "answered": len(rows), "refused": refused, "failed": dict(site.failed),
                 "sha256": site.sha256},
        "labels": {"n": len(found), "drawn": "at random" if random else "by doubt", "not_labelled": empty},
        "notes": notes,
        "figures": figures(card, answers, classes, sample),
        "limits": limits if random else None,
        "triage": [triage(view, answers, classes, sample, card, refused, targets[2]) for view in views] if random else None,
    }  # fmt: skip


def _command(options: argparse.Namespace) -> str:
    """Return the command of a report, with stand-ins for folders and files, whose names may be a patient's."""
    words = ["overread", "certify", "--site", "IMAGES", "--labels", "LABELS", "--model", "PACKAGE", "--out", "REPORT"]
    words += ["--weights", options.weights] if options.weights else []
    words += ["--against", "OTHER"] if options.against else []
    return shlex.join([*words, *words_of(targets_of(options))])


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "certify",
        "Measure a model at a site by a small sample of labels and its own predictions for every image: error, "
        "sensitivity, specificity, predictive values and loss with intervals, limits with a promise, another version beside it.",
        "overread certify --site scans/ --labels to_label.csv --draw 50   # then fill in the labels, and",
        "overread certify --site scans/ --labels to_label.csv --out report",
    )
    parser.add_argument("--site", type=Path, required=True, metavar="FOLDER", help="the site's images")
    parser.add_argument(
        "--labels", type=Path, required=True, metavar="N.csv", help="columns file (from the site's folder) and label"
    )
    parser.add_argument(
        "--model", type=Path, default=DEFAULT_MODEL, metavar="PACKAGE", help="folder of a classifier's model package"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report"), metavar="REPORT", help="folder of the report; predictions are kept there"
    )
    parser.add_argument("--draw", type=int, metavar="N", help="write --labels: N images to be labelled, with their probabilities")
    parser.add_argument("--by", choices=("random", "doubt"), default="random", help="how they are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--weights", metavar="COLUMN", help="of --labels: the probability with which each image was drawn")
    parser.add_argument("--against", type=Path, metavar="PACKAGE", help="another version to compare with")
    add_targets(parser)
    parser.add_argument("--threads", type=int, default=2, help="images read side by side")
    return parser


def main(argv: list[str]) -> int:
    """Run ``overread certify``; returns 0, or 1 if files of the site could not be predicted."""
    options = _parser().parse_args(argv)
    targets = targets_of(options)
    if options.threads < 1 or options.seed < 0:
        raise Refusal("config_invalid", "--threads must be at least 1, --seed at least 0.")
    predictor = Predictor.load(options.model)
    names = names_of(options.site)
    if options.draw is not None:
        site = predict_site(options.site, names, predictor, options.out / STORE, options.threads)
        write_draw(site, predictor, options.labels, options.draw, options.by, options.seed)
        print(f"{options.draw} of {len(site.answered)} images drawn; fill in the labels of {options.labels}")
        return 1 if site.failed else 0
    labels, empty = read_labels(options.labels, options.weights, predictor.card.output.classes, names)
    _checked([label.label for label in labels])
    record = _drawn(options.labels)
    empty = empty if record is None else _not_labelled(record, labels)
    other = Predictor.load(options.against) if options.against else None
    if other is not None:
        _same_task(predictor, other)
    site = predict_site(options.site, names, predictor, options.out / STORE, options.threads)
    if record is not None and record["site_sha256"] != site.sha256:
        raise Refusal("data_invalid", "The site's files are not those that the labels were drawn from: draw again, or undo it.")
    document = {
        "overread": models.__version__, "created": datetime.now(UTC).strftime("%Y-%m-%d"),
        "model": traced(predictor.card, predictor.sha256),
        "command": _command(options), **certify(predictor.card, site, labels, empty, targets), "comparison": None,
    }  # fmt: skip
    document["labels"] |= {"sha256": hashlib.sha256(options.labels.read_bytes()).hexdigest(), "draw": record}
    if other is not None:
        theirs = predict_site(options.site, names, other, options.out / STORE, options.threads)
        document["comparison"] = _against(predictor, site, other, theirs, labels, len(labels) / (len(labels) + empty))
    write_report(document, options.out)
    return 1 if site.failed else 0


def write_report(document: Document, out: Path) -> None:
    """Write a whole document as JSON and as a page into a folder, and print its figures.

    Raises
    ------
    Refusal
        ``config_invalid`` if the folder cannot be written, ``storage_full`` if there is no room.
    """
    with writing("config_invalid"):
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / HTML, page(document).encode())
        write_whole(out / JSON, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    _show(document)
    print(f"see {out / HTML}")


def _show(document: Document) -> None:
    for figure in document["figures"]:
        if figure["value"] is not None:
            rho = "none" if figure["correlation"] is None else f"{figure['correlation']:.2f}"
            print(
                f"{figure['metric']:<26} {figure['value']:.3f}  {figure['low']:.3f} to {figure['high']:.3f}  "
                f"from {figure['n']} labels, correlation {rho}, {100 * figure['narrower']:.0f}% narrower than by labels alone"
            )
