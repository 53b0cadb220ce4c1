"""``overread release``: from the reports of a run to a model package, once."""

from __future__ import annotations

import argparse
import math
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from models.card import Figure, IntendedUse, ModelCard, SegmenterCard, Source, card_bytes, read_package
from models.command import command_parser
from models.comparison import REPORT as COMPARISON
from models.comparison import SEEN, Comparison
from models.durable import sync, write_whole
from models.errors import Refusal
from training.calibrate import REPORT as CALIBRATION
from training.compare import MARGIN, Side, compare, predictor_of, show
from training.config import SEGMENTER, Run, RunConfig, read_json, read_run, sha256, verb_of, write_json
from training.evaluate import REPORT as EVALUATION
from training.export import read_graph
from training.fields import problem
from training.seen import Seen, package_bytes, read_document
from training.segmenter_config import SegmenterRun, read_segmenter_run


class Credit(BaseModel):
    """Licence, credit and link of one data set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    licence: str
    credit: str
    link: str


class About(BaseModel):
    """What only people know: for whom the model is meant, and where its images come from, a domain each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    intended_use: IntendedUse
    sources: dict[str, Credit]


def read_about(file: Path) -> About:
    """Read an :class:`About` document.

    Raises
    ------
    Refusal
        ``config_invalid`` if it cannot be read or lacks a field, or a text in it is empty.
    """
    try:
        about = About.model_validate_json(file.read_bytes())
    except OSError as error:
        raise Refusal("config_invalid", f"The document about the model cannot be read ({type(error).__name__}).") from error
    except ValidationError as error:
        raise Refusal("config_invalid", f"About the model, {problem(error)}") from error
    texts = [
        *about.intended_use.model_dump().values(),
        *(text for each in about.sources.values() for text in each.model_dump().values()),
    ]
    if not all(text.strip() for text in texts):
        raise Refusal("config_invalid", "About the model: a text is empty.")
    return about


def _sources(run: Run | SegmenterRun, about: About) -> tuple[Source, ...]:
    sources = []
    for domain, (images, patients) in run.trained_on.items():
        if domain not in about.sources:
            raise Refusal("config_invalid", f"Licence, credit and link of the domain {domain} are missing.")
        sources.append(Source(domain=domain, images=images, patients=patients, **about.sources[domain].model_dump()))
    return tuple(sources)


def _figures(folder: Path, run: Run | SegmenterRun, model_sha256: str) -> tuple[Figure, ...]:
    report = read_json(folder / EVALUATION, "The run has no evaluation.json: overread evaluate writes it.")
    if report.get("model_sha256") != model_sha256:
        raise Refusal("config_invalid", "The evaluation is of another export: evaluate again.")
    if report.get("calibration_sha256") != sha256((folder / CALIBRATION).read_bytes()):
        raise Refusal("config_invalid", "The evaluation is of another calibration: evaluate again.")
    try:
        figures = tuple(Figure.model_validate(figure) for figure in report.get("figures", ()))
    except ValidationError as error:
        raise Refusal("config_invalid", "evaluation.json of the run does not validate.") from error
    classifies = isinstance(run.config, RunConfig)
    main = "auroc" if classifies else "foreground_iou"
    measured = {(figure.domain, figure.held_out) for figure in figures if figure.metric == main and figure.subgroup == "all"}
    for domain in run.config.domains:
        for held_out in ("patients", "domain") if classifies and len(run.config.domains) > 1 else ("patients",):
            if (domain, held_out) not in measured:
                raise Refusal("config_invalid", f"No figure for the domain {domain}, held out: {held_out}.")
    return figures


def make_card(folder: Path, name: str, version: str, about: About) -> tuple[ModelCard | SegmenterCard, bytes]:
    """Put the card together from the reports.

    Returns
    -------
    card : ModelCard or SegmenterCard
    graph : bytes
        ``model.onnx``.

    Raises
    ------
    Refusal
        ``config_invalid`` on any gap: a report that is missing, incomplete, or of another file.
    """
    run: Run | SegmenterRun
    kind: type[ModelCard | SegmenterCard]
    if verb_of(folder) == SEGMENTER:
        run, kind, task = read_segmenter_run(folder), SegmenterCard, "segmentation"
    else:
        run, kind, task = read_run(folder), ModelCard, "classification"
    graph = read_graph(folder)
    digest = sha256(graph)
    calibration = read_json(folder / CALIBRATION, "The run has no calibration.json: overread calibrate writes it.")
    if calibration.get("model_sha256") != digest:
        raise Refusal("config_invalid", "The calibration is of another export: calibrate again.")
    document: dict[str, Any] = {
        "schema_version": 1, "name": name, "version": version, "task": task,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "model_sha256": digest, "card_sha256": "0" * 64,
        "input": run.config.input, "intended_use": about.intended_use, "evaluation": _figures(folder, run, digest),
        "training": {
            "command": run.command, "seed": run.config.seed, "data_sha256": run.data_sha256, "sources": _sources(run, about),
            "config": run.config.model_dump(mode="json"), "versions": run.versions,
        },
        **{part: calibration.get(part) for part in ("output", "calibration", "triage")},
    }  # fmt: skip
    try:
        return kind.model_validate(document), graph
    except ValidationError as error:
        raise Refusal("config_invalid", f"The card's field {problem(error)}") from error


def settled(card: ModelCard | SegmenterCard, package: Path) -> ModelCard | SegmenterCard:
    """Return the card that is there already where it differs in its date alone, so that a release keeps its identity."""
    there = _in_place(package)
    if there is not None and card_bytes(there.model_copy(update={"created": card.created})) == card_bytes(card):
        return there
    return card


def _beside(package: Path, what: str) -> Path:
    return package.with_name(f".{package.name}.{what}")


def _in_place(package: Path) -> ModelCard | SegmenterCard | None:
    """Return the card of the package that is there, if one is; first put right what a release that was killed left."""
    old = _beside(package, "old")
    if old.exists() and not package.exists():
        old.rename(package)
    shutil.rmtree(old, ignore_errors=True)
    return read_package(package)[0] if package.exists() else None


def release(card: ModelCard | SegmenterCard, graph: bytes, package: Path, beside: dict[str, bytes]) -> bool:
    """Write a model package, unless there is one.

    Whatever ends the process, a whole package is left: in its place, or, between two renames, the old one beside it, which the
    next release puts back.

    Parameters
    ----------
    card : ModelCard or SegmenterCard
        As :func:`settled` gives it.
    graph : bytes
    package : Path
    beside : dict of str to bytes
        Files that lie in the package and are no part of its identity; they are written in any case.

    Returns
    -------
    bool
        False if the same release is there already.

    Raises
    ------
    Refusal
        ``output_exists`` if another release with this version, or a later one, is there; ``package_invalid`` if what is there is
        no package.
    """
    there = _in_place(package)
    if there is not None:
        if card_bytes(there) == card_bytes(card):
            for name, content in beside.items():
                write_whole(package / name, content)
            return False
        if _order(card.version) <= _order(there.version):
            raise Refusal("output_exists", f"Version {there.version} is there and is another release: give a higher --version.")
    part = _beside(package, "part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    files = {"model.onnx": graph, "card.json": card_bytes(card)} | beside
    for name, content in files.items():
        (part / name).write_bytes(content)
    read_package(part)  # what is put in place has been read back
    sync(*(part / name for name in files), part)
    if there is not None:
        package.rename(_beside(package, "old"))
    part.rename(package)
    sync(package.parent)
    shutil.rmtree(_beside(package, "old"), ignore_errors=True)
    return True


def _compared(card: ModelCard | SegmenterCard, graph: bytes, seen: Seen | None, options: argparse.Namespace) -> Comparison:
    """Compare, and keep the comparison with the run, whatever it says.

    Raises
    ------
    Refusal
        ``candidate_worse`` if it is worse and no reason was given; as :func:`training.compare.compare` says.
    """
    reason = options.accept_worse
    if options.margin < 0 or not math.isfinite(options.margin):
        raise Refusal("config_invalid", "--margin must be 0 or more.")
    if reason is not None and (not reason.strip() or len(reason) > 512):
        raise Refusal("config_invalid", "--accept-worse needs a reason of at most 512 characters.")
    candidate = Side(predictor_of(card, graph, sha256(card_bytes(card))), seen)
    comparison = compare(options.current, candidate, options.compare, options.domains, options.margin, reason)
    write_json(options.run / COMPARISON, comparison.model_dump(mode="json"))
    show(comparison)
    if comparison.worse and reason is None:
        raise Refusal("candidate_worse", f"{' '.join(comparison.worse)} --accept-worse releases it all the same.")
    return comparison


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("."))


def main(argv: list[str]) -> int:
    """Run ``overread release``; returns 0."""
    parser = command_parser(
        "release",
        "Write the model package, model.onnx and card.json, from the reports of a run. Any gap is refused.",
        "overread release runs/cxr --name cxr-pneumonia --version 1.2.0 \\\n"
        "    --about training/specs/cxr-pneumonia.json --out my-models",
    )
    parser.add_argument("run", type=Path, help="folder of the run, evaluated")
    parser.add_argument("--name", required=True)
    parser.add_argument("--version", required=True, help="such as 1.0.0; a higher one replaces what is there")
    parser.add_argument(
        "--about", type=Path, required=True, help="JSON file: intended use, and the sources' licences and credits"
    )
    parser.add_argument("--out", type=Path, required=True, help="the package becomes a folder in this one")
    gate = parser.add_argument_group("comparison with the package in use; a worse one is not released")
    gate.add_argument("--current", type=Path, metavar="PACKAGE", help="folder of the package in use")
    gate.add_argument("--compare", type=Path, metavar="FOLDER", help="manifest.csv and images that neither was made from")
    gate.add_argument("--domains", nargs="+", default=(), help="which of the folder's domains; all by default")
    gate.add_argument("--margin", type=float, default=MARGIN, help="most that the loss may grow, by its interval's upper end")
    gate.add_argument("--accept-worse", metavar="REASON", help="release it even if it is worse; the reason is kept")
    options = parser.parse_args(argv)
    if (options.current is None) != (options.compare is None) or (options.accept_worse is not None and not options.current):
        parser.error("--current and --compare go together, and --accept-worse goes with them")
    card, graph = make_card(options.run, options.name, options.version, read_about(options.about))
    package = options.out / options.name
    card = settled(card, package)
    seen = read_document(read_json(options.run / EVALUATION, "The run has no evaluation.json.").get("seen"))
    beside = {} if seen is None else {SEEN: package_bytes(seen, card.model_sha256)}
    if options.current is not None:
        comparison = _compared(card, graph, seen, options)
        beside[COMPARISON] = (comparison.model_dump_json(indent=1) + "\n").encode()
    written = release(card, graph, package, beside)
    print(f"{package}: version {card.version} " + ("written" if written else "is there already; nothing to do"))
    return 0
