"""``overread evaluate``: measure the exported graph through the predictor that serves it, or check a released card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from models.card import Calibration, Figure, InputSpec, ModelCard, ObjectSpec, OutputSpec, SegmenterCard, Triage, read_package
from models.command import command_parser
from models.errors import Refusal
from models.predictor import Graph, Predictor
from models.triage import judge
from training.adapted import REPORT as ADAPTATION
from training.calibrate import REPORT as CALIBRATION
from training.classifier import sibling
from training.config import SEGMENTER, RunConfig, read_json, read_run, sha256, verb_of, write_json
from training.data import ImageSet, Row, load_images, read_manifest, split_of
from training.export import read_graph
from training.metrics import CALLS, METRICS, Columns, bootstrap, tell_refused
from training.seen import seen_document, together
from training.sources import Sources, add_sources, read_sources
from training.unseen import UNSEEN, expected

REPORT = "evaluation.json"
TOLERANCE = 1e-3
UNDEFINED = "Not defined: only one class, or no error or nothing but errors, among these images."
SUBGROUP_METRICS = ("auroc", "sensitivity", "specificity", "accuracy")
UNKNOWN_SUBGROUPS = ("sex", "age")


def columns(predictor: Predictor, images: ImageSet, size: int = 32) -> dict[str, NDArray[Any]]:
    """Predict, and line up what the metrics need.

    Returns
    -------
    dict of str to ndarray, each of shape (N,)
        positive (the label is the finding), probability (of the finding), called (at or above the operating point, whatever the
        verdict), wrong (called is not positive), confidence and correct (of the most probable class), true_loss (cross-entropy,
        nats), predicted_loss, loss_score, entropy, domain_distance, review, refuse (the verdict of the card's defaults).
    """
    card = predictor.card
    finding = card.output.findings[0]
    tensors = images.tensors
    found = [
        prediction for start in range(0, len(tensors), size)
        for prediction in predictor.predict_tensor(tensors[start : start + size])
    ]  # fmt: skip
    probabilities = np.array([list(prediction.probabilities.values()) for prediction in found])
    probability = np.array([prediction.probabilities[finding.label] for prediction in found])
    positive = images.labels == card.output.classes.index(finding.label)
    called = probability >= finding.operating_point
    verdicts = np.array([judge(prediction, card.triage).verdict for prediction in found])
    own = probabilities[np.arange(len(found)), images.labels]
    result: dict[str, NDArray[Any]] = {
        "positive": positive, "probability": probability, "called": called, "wrong": called != positive,
        "confidence": probabilities.max(axis=1), "correct": probabilities.argmax(axis=1) == images.labels,
        "true_loss": -np.log(np.maximum(own, 1e-12)), "review": verdicts == "review", "refuse": verdicts == "refuse",
    }  # fmt: skip
    for name in ("predicted_loss", "loss_score", "entropy", "domain_distance"):
        result[name] = np.array([getattr(prediction, name) for prediction in found])
    return result


def figures_of(
    where: dict[str, str],
    metrics: Sequence[str],
    table: Mapping[str, NDArray[Any]],
    patients: Sequence[str],
    definitions: Mapping[str, Callable[[Columns], float]] = METRICS,
    undefined: str = UNDEFINED,
) -> list[Figure]:
    """Return the figures of one domain or subgroup, with their intervals.

    Parameters
    ----------
    where : dict
        The fields that name it.
    metrics : sequence of str
        Keys of ``definitions``.
    table : mapping of str to ndarray, each of shape (N,)
    patients : sequence of str
        N of them, resampled with all their images.
    definitions : mapping of str to callable
    undefined : str
        The note of a figure that has no value.
    """
    intervals = bootstrap(metrics, table, patients, definitions=definitions)
    figures = []
    for name in metrics:
        figure: dict[str, Any] = {
            **where,
            "metric": name,
            "n": len(patients),
            "value": None,
            "low": None,
            "high": None,
            "note": "",
        }
        value, interval = definitions[name](table), intervals[name]
        if np.isnan(value):
            figure["note"] = undefined
        elif interval is None:
            figure |= {"value": value, "note": "No interval: too few images of one kind to resample patients."}
        else:
            figure |= {"value": value, "low": interval[0], "high": interval[1]}
        figures.append(Figure(**figure))
    return figures


def measure(table: Mapping[str, NDArray[Any]], rows: Sequence[Row], held_out: Literal["patients", "domain"]) -> list[Figure]:
    """Return the figures of every domain among the rows, with subgroups by view where the manifest states it.

    Parameters
    ----------
    table : mapping
        Of :func:`columns`.
    rows : sequence of Row
        In the same order.
    held_out : "patients" or "domain"
    """
    figures: list[Figure] = []
    for domain in sorted({row.domain for row in rows}):
        chosen = [index for index, row in enumerate(rows) if row.domain == domain]
        views = {f"view={rows[index].view or 'unknown'}" for index in chosen}
        for subgroup in ["all", *sorted(views)]:
            members = np.array([
                index for index in chosen if subgroup in ("all", f"view={rows[index].view or 'unknown'}")
            ])  # fmt: skip
            part = {name: column[members] for name, column in table.items()}
            patients = [rows[index].patient for index in members]
            where = {"domain": domain, "held_out": held_out, "subgroup": subgroup}
            metrics = [name for name in METRICS if name != UNSEEN or name in table]
            found = figures_of(where, metrics if subgroup == "all" else SUBGROUP_METRICS, part, patients)
            figures += tell_refused(found, CALLS, part["refuse"])
        for name in UNKNOWN_SUBGROUPS:
            note = f"The {name} of these patients is not known to us."
            figures.append(
                Figure(
                    domain=domain, held_out=held_out, subgroup=f"{name}=unknown", metric="auroc", value=None, low=None, high=None,
                    n=len(chosen), note=note,
                )
            )  # fmt: skip
    return figures


def draft_parts(folder: Path, spec: InputSpec, output: type[OutputSpec] | type[ObjectSpec]) -> tuple[bytes, dict[str, Any]]:
    """Return the exported graph of a run whose card is not written yet, and the parts of the card that predicting needs.

    Parameters
    ----------
    folder : Path
        Of the run.
    spec : InputSpec
        Of its config.
    output : type
        What the calibration's ``output`` is.

    Raises
    ------
    Refusal
        ``config_invalid`` if the run is not exported or calibrated, or was exported again after it was calibrated.
    """
    graph = read_graph(folder)
    report = read_json(folder / CALIBRATION, "The run has no calibration.json: overread calibrate writes it.")
    if report.get("model_sha256") != sha256(graph):
        raise Refusal("config_invalid", "The run was exported again after its calibration: calibrate it again.")
    try:
        return graph, {
            "input": spec,
            "calibration": Calibration.model_validate(report.get("calibration")),
            "output": output.model_validate(report.get("output")),
            "triage": Triage.model_validate(report.get("triage")),
        }
    except ValidationError as error:
        raise Refusal("config_invalid", "calibration.json of the run does not validate.") from error


def draft(folder: Path) -> Predictor:
    """Return the predictor of a run whose card is not written yet; refuses as :func:`draft_parts`."""
    graph, parts = draft_parts(folder, read_run(folder).config.input, OutputSpec)
    # Not a card that could ship: only the parts that predicting needs.
    return Predictor(ModelCard.model_construct(**parts), Graph(graph, threads=2), sha256(graph))


def held_out_patients(predictor: Predictor, images: ImageSet, config: RunConfig) -> list[Figure]:
    """Return the figures of the test split: domains seen in training, patients not."""
    test = images.where("test", config)
    return measure(columns(predictor, test), test.rows, "patients")


def held_out_domains(folder: Path, images: ImageSet) -> list[Figure]:
    """Return the figures of each domain left out, measured with the sibling that never saw it, on all its images.

    The loss that is expected on an unseen domain is that of the errors of the other siblings, on the other domains.
    """
    unseen = {domain: images.of(domain) for domain in read_run(folder).config.leave_out}
    tables = {domain: columns(draft(sibling(folder, domain)), part) for domain, part in unseen.items()}
    said = expected(tables, draft(folder).card.calibration)
    return [
        figure for domain, table in tables.items()
        for figure in measure(table | ({UNSEEN: said[domain]} if domain in said else {}), unseen[domain].rows, "domain")
    ]  # fmt: skip


def compare(card: ModelCard | SegmenterCard, figures: Sequence[Figure]) -> int:
    """Print how far figures measured again lie from the card's; return 0 if all hold within 0.001, else 1."""
    kinds = {figure.held_out for figure in figures}
    show(figures)
    gap, where = largest_gap([figure for figure in card.evaluation if figure.held_out in kinds], figures)
    held = gap <= TOLERANCE
    print(
        f"largest difference from the card: {gap:.1e}" + (f" ({where})" if where else "") + (": holds" if held else ": DIFFERS")
    )
    return 0 if held else 1


def largest_gap(card: Sequence[Figure], measured: Sequence[Figure]) -> tuple[float, str]:
    """Return the largest difference between the card's figures and those measured again, and where it lies.

    Parameters
    ----------
    card : sequence of Figure
        Those of the same ``held_out`` as are ``measured``.

    Returns
    -------
    gap : float
        Infinite where a figure is missing on either side or defined on only one.
    where : str
    """

    def key(figure: Figure) -> str:
        return f"{figure.metric}, {figure.domain}, {figure.subgroup}, held out: {figure.held_out}"

    theirs, ours = ({key(figure): figure for figure in side} for side in (card, measured))
    worst, where = 0.0, ""
    for name in sorted(set(theirs) | set(ours)):
        for field in ("value", "low", "high", "n"):
            first, second = (getattr(side[name], field) if name in side else None for side in (theirs, ours))
            both_absent = name in theirs and name in ours and first is None and second is None
            gap = 0.0 if both_absent else float("inf") if first is None or second is None else abs(first - second)
            if gap > worst:
                worst, where = gap, name
    return worst, where


def _load(data: Path | Sources, config: RunConfig, expected: str, *, test_only: bool = False) -> ImageSet:
    manifest = read_manifest(data, config.domains, config.classes, config.label_domains)
    if manifest.sha256 != expected:
        raise Refusal("data_invalid", "These are not the rows and images that the model was made from.")
    rows = [row for row in manifest.rows if not test_only or split_of(row.patient, config) == "test"]
    return load_images(rows, config.input, "reading")


def check_package(package: Path, data: Path | Sources, run: Path | None) -> int:
    """Measure a released package again; return 0 if the card's figures hold within 0.001, else 1."""
    predictor = Predictor.load(package, threads=2)
    card = predictor.card
    config = RunConfig.model_validate(card.training.config)
    images = _load(data, config, card.training.data_sha256, test_only=run is None)
    figures = held_out_patients(predictor, images, config)
    if run is not None:
        figures += held_out_domains(run, images)
    if card.calibration.unseen_loss_knots is None:  # a release before
        figures = [figure for figure in figures if figure.metric != UNSEEN]
    return compare(card, figures)


def of_segmenter(target: Path) -> bool:
    """Tell whether a folder is a segmenter's model package or run."""
    if (target / "card.json").exists():
        return isinstance(read_package(target)[0], SegmenterCard)
    return verb_of(target) == SEGMENTER


def show(figures: Sequence[Figure]) -> None:
    """Print the figures of whole domains."""
    for figure in figures:
        if figure.subgroup == "all" and figure.value is not None:
            interval = f"{figure.low:.3f} to {figure.high:.3f}" if figure.low is not None else "no interval"
            print(f"{figure.domain:<20} held out: {figure.held_out:<9} {figure.metric:<28} {figure.value:.3f}  {interval}")


def main(argv: list[str]) -> int:
    """Run ``overread evaluate``; returns 0, or 1 if a released card's figures are not found again."""
    parser = command_parser(
        "evaluate",
        "Measure a calibrated run on the test split and each domain left out, and write evaluation.json; or, given a "
        "released model package, measure it again and compare with its card.",
        "overread evaluate models/zoo/cxr-pneumonia --data cxr",
    )
    parser.add_argument("target", type=Path, metavar="RUN|PACKAGE", help="folder of a run, or of a model package")
    add_sources(parser, "the folder given to overread train", "the label package given to overread train")
    parser.add_argument("--run", type=Path, help="with a package: its run, to measure the domains left out too")
    options = parser.parse_args(argv)
    if of_segmenter(options.target):
        from training.segmenter_evaluate import evaluate_segmenter  # it builds on this module

        return evaluate_segmenter(options.target, read_sources(options, "segmentation"))
    sources = read_sources(options, "classification")
    if (options.target / "card.json").exists():
        return check_package(options.target, sources, options.run)
    if options.run is not None:
        parser.error("--run goes with a model package")
    run = read_run(options.target)
    predictor = draft(options.target)
    images = _load(sources, run.config, run.data_sha256)
    figures = held_out_patients(predictor, images, run.config) + held_out_domains(options.target, images)
    show(figures)
    calibration = (options.target / CALIBRATION).read_bytes()
    used = seen_document((row.original, row.patient) for row in images.rows if split_of(row.patient, run.config) != "test")
    more = read_json(options.target / ADAPTATION, "Run 'overread adapt' again.").get("seen") if run.config.adaptation else None
    report = {"model_sha256": predictor.sha256, "calibration_sha256": sha256(calibration), "seen": together(used, more)}
    write_json(options.target / REPORT, report | {"figures": [figure.model_dump(mode="json") for figure in figures]})
    return 0
