"""``overread adapt``: a trained classifier to a new hospital, from images without labels, or with a few."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from models.command import command_parser
from models.errors import Refusal
from models.journal import writing
from training.adaptation import clear
from training.adaptation import trainings as count_trainings
from training.adaptation_config import Adaptation
from training.adapted import LOST, Here, adapt_run, base_of, check_first_round, fit_loss, lost, minutes, plan_adaptation, to_fit
from training.config import Run, RunConfig, read_run, refuse_other, versions, write_json
from training.consistency import settings_of
from training.data import load_images
from training.evaluate import draft
from training.export import load_run_images
from training.fields import problem
from training.fit import WEIGHTS
from training.sources import Sources, add_sources, read_sources
from training.target import check_target, read_labels, read_target

SETTINGS = ("rounds", "members", "epochs")
"""Fields of :class:`Adaptation` that the command line offers by their names; they mean nothing to adabn."""


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "adapt",
        "Adapt a trained, exported and calibrated classifier to a new hospital by its images alone: style "
        "consistency and rounds of pseudo-labels by an ensemble, or its normalisation statistics (adabn). What comes of it is a "
        "run like any other. Give the same command again after an interruption: it goes on.",
        "overread adapt runs/cxr --data cxr --unlabelled scans/ --domain city_hospital --out runs/cxr-city",
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--unlabelled", type=Path, required=True, metavar="FOLDER", help="images of the new hospital")
    parser.add_argument("--domain", required=True, metavar="NAME", help="name of the new hospital or scanner")
    parser.add_argument("--out", type=Path, required=True, help="folder of the adapted run")
    add_sources(
        parser,
        "the folder given to overread train, where it may be here; the output says what is lost without",
        "the label package given to overread train, if any",
    )
    parser.add_argument("--target-labels", type=Path, metavar="FILE|PACKAGE",
                        help="a few labels of the new hospital: CSV with image and label, or a label package")  # fmt: skip
    parser.add_argument("--method", choices=("consistency", "adabn"), default="consistency")
    for name, what in zip(SETTINGS, ("of pseudo-labels", "networks of the ensemble", "of one training"), strict=True):
        default = Adaptation.model_fields[name].default
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{what}; {default} unless given")
    parser.add_argument("--seed", type=int, default=0, help="of the adaptation; the run's splits stay")
    return parser


def _settings(options: argparse.Namespace, config: RunConfig, source: bool) -> Adaptation:
    """Return the settings without their digests; refuses what the method does not use, and what is out of range."""
    given = {name: getattr(options, name) for name in SETTINGS if getattr(options, name) is not None}
    if options.method == "adabn" and (source or options.target_labels is not None or given):
        raise Refusal("config_invalid", "--method adabn takes statistics of the target alone: no source, no labels, no rounds.")
    if options.domain in config.domains:
        raise Refusal("config_invalid", "--domain names a domain that the run was trained on.")
    digests: dict[str, Any] = {"base_sha256": "", "target_sha256": "", "labels_sha256": None}
    try:
        return Adaptation(
            method=options.method, domain=options.domain, source=source, seed=options.seed, **digests, **given
        )  # fmt: skip
    except ValidationError as error:
        raise Refusal("config_invalid", f"--{problem(error)}") from error


def _read(options: argparse.Namespace, config: RunConfig, sources: Sources | None) -> Here:
    """Read and check everything, before any time is spent on training."""
    predictor = draft(options.run)
    labels = None
    if options.target_labels is not None:
        labels = read_labels(options.target_labels, config.classes, options.domain, config.input)
    target = read_target(options.unlabelled, config.input)
    if labels is not None:
        target = target.without(labels.digests)
    guided = labels is not None and {row.label for row in labels.rows} == set(range(len(config.classes)))
    distances = check_target(target, predictor, guided)
    print(f"target: {len(target.digests)} images to learn from, {target.passed_over} files passed over; median distance "
          f"{distances['median']:.2f}, nothing is said beyond {distances['limit']:.2f}", flush=True)  # fmt: skip
    labelled = load_images(labels.rows, config.input, "reading labelled images") if labels else None
    return Here(target, distances, labels, labelled, load_run_images(options.run, sources) if sources else None)


def _command(options: argparse.Namespace, sources: Sources | None) -> str:
    words = ["overread", "adapt", "RUN", "--unlabelled", "IMAGES", "--domain", options.domain, "--method", options.method]
    words += sources.words if sources else []
    words += ["--target-labels", "LABELS"] if options.target_labels is not None else []
    for name in SETTINGS:
        if getattr(options, name) is not None:
            words += [f"--{name}", str(getattr(options, name))]
    return shlex.join([*words, "--seed", str(options.seed), "--out", "ADAPTED"])


def _run(base: Path, config: RunConfig, here: Here, command: str) -> Run:
    before = read_run(base)
    labelled = here.labels.rows if here.labels else ()
    patients = len(set(here.target.patients)) + len({row.patient for row in labelled})  # unknown who is in both
    trained_on = before.trained_on | {settings_of(config).domain: (len(here.target.digests) + len(labelled), patients)}
    return Run(
        config=config, data_sha256=before.data_sha256, trained_on=trained_on, command=f"{before.command} && {command}",
        versions=versions(),
    )  # fmt: skip


def main(argv: list[str]) -> int:
    """Run ``overread adapt``; returns 0."""
    options = _parser().parse_args(argv)
    base = base_of(options.run)
    sources = read_sources(options, "classification") if options.data is not None or options.labels is not None else None
    settings = _settings(options, base.config, sources is not None)
    here = _read(options, base.config, sources)
    digests = {"target_sha256": here.target.sha256, "labels_sha256": here.labels.sha256 if here.labels else None}
    planned = plan_adaptation(options.run, options.out, settings.model_copy(update=digests))
    runs = {out: _run(folder, config, here, _command(options, sources)) for out, (folder, config) in planned.items()}
    for out, run in runs.items():
        refuse_other(run, out)
    for name in lost(runs[options.out].config):
        print(LOST[name], flush=True)
    unfinished = [out for out in runs if not (out / WEIGHTS).exists()]
    for out in set(runs) - set(unfinished):
        clear(out)  # what a kill left that came between the weights and this
    if not unfinished and not any(to_fit(out, run.config) for out, run in runs.items()):
        print("This run is finished; nothing to do. Next: overread export")
        return 0
    if options.method == "consistency":
        for out in unfinished:
            check_first_round(planned[out][0], runs[out].config, here)
        each = minutes(options.run, runs[options.out].config, here)
        print(f"{len(unfinished)} models of {count_trainings(settings)} trainings: about {each * len(unfinished):.0f} minutes on "
              "this machine, if nothing else runs on it", flush=True)  # fmt: skip
    with writing():
        for out in unfinished:
            with writing("config_invalid"):
                out.mkdir(parents=True, exist_ok=True)
                write_json(out / "run.json", runs[out].model_dump(mode="json"))
            adapt_run(planned[out][0], out, runs[out].config, here)
            print(f"{out}: adapted", flush=True)
        for out, run in runs.items():
            if to_fit(out, run.config):
                fit_loss(out, run.config, here)
                print(f"{out}: loss prediction fitted to held-out errors", flush=True)
    print("finished. Next: overread export")
    return 0
