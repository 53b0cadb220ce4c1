"""An adapted run, as any run: planned with its siblings, made from where it was interrupted, recorded with what is lost."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.errors import Refusal
from models.networks.domain_distance import grid_statistics, stage_statistics
from training.adabn import adapt_statistics
from training.adaptation import adapt, clear, first_ensemble, in_batches, pseudo_labels, share_of
from training.adaptation import trainings as count_trainings
from training.adaptation_config import Adaptation
from training.augmentation import augment
from training.classifier import PARTS, ClassifierTraining, load_weights, plan
from training.config import SEGMENTER, Run, RunConfig, read_run, sha256, verb_of, write_json
from training.consistency import AdaptationTraining, Change, Material, settings_of
from training.data import ImageSet
from training.export import TARGET, run_folders
from training.fit import WEIGHTS, save_weights
from training.held_out import REPORT as HELD_OUT
from training.held_out import finish, held_out_runs
from training.seen import seen_document
from training.target import Target, TargetLabels

REPORT = "adaptation.json"
MOST_STATISTICS = 1000
"""Images of the target whose statistics are kept for the domain distance."""

LOST = {
    "units": "All images are normalised by the target's statistics, those of the source too: units and figures that are measured "
    "on the source (calibrate, evaluate) are not the target's, and the model is not meant for the source any more.",
    "weights": "Only the normalisation statistics follow the target: no weight learnt anything of it.",
    "source": "No image of the source took part: nothing but the model's own opinion of the target was learnt from.",
    "loss_prediction": "Its loss prediction is that of the run before: it learnt nothing of how wrong the adapted model is.",
    "labels": "All labels of the target were trained on: its figures there need others.",
}
"""What an adaptation goes without -> how the output and the run's record say it."""


@dataclass(frozen=True)
class Here:
    """What all runs of one command share: the target, its labels, and the source's images where they may be here."""

    target: Target
    distances: dict[str, float]
    labels: TargetLabels | None
    labelled: ImageSet | None
    source: ImageSet | None


def base_of(folder: Path) -> Run:
    """Return the run to adapt.

    Raises
    ------
    Refusal
        ``config_invalid`` if it is a model package, a segmenter, or adapted already.
    """
    if not (folder / "run.json").exists() and (folder / "card.json").exists():
        raise Refusal(
            "config_invalid",
            "This is a model package: its graph cannot be trained. Give the folder of the run that it was released from, which "
            "holds run.json and model.pt.",
        )
    if verb_of(folder) == SEGMENTER:
        raise Refusal("config_invalid", "Only classifiers can be adapted; this run is a segmenter's.")
    run = read_run(folder)
    if run.config.adaptation is not None:
        raise Refusal("config_invalid", "This run is adapted already: give the run that it was made from.")
    return run


def plan_adaptation(base: Path, out: Path, settings: Adaptation) -> dict[Path, tuple[Path, RunConfig]]:
    """Return, by the folder to write, the run that is adapted and the config of what it becomes.

    Siblings are adapted by the same recipe. With the source at hand, so are the runs that held-out errors come from.

    Raises
    ------
    Refusal
        ``config_invalid`` if a run is missing, unfinished or damaged.
    """
    config = read_run(base).config
    with_held_out = settings.source and settings.method == "consistency"
    runs = plan(base, config) if with_held_out else {folder: read_run(folder).config for folder in run_folders(base)}
    found = {}
    for folder, each in runs.items():
        load_weights(folder, fitted=False)
        digest = sha256((folder / WEIGHTS).read_bytes())
        own = each.model_copy(update={"adaptation": settings.model_copy(update={"base_sha256": digest})})
        found[out / folder.relative_to(base)] = (folder, own)
    return found


def material_of(here: Here, config: RunConfig) -> Material:
    """Return what one run learns from: the training split of its own domains, the target's labels, the target."""
    sets = [here.source.where("train", config)] if here.source else []
    sets += [here.labelled] if here.labelled else []
    spec = config.input
    empty = np.empty((0, spec.channels, spec.height, spec.width), dtype=np.float32)
    return Material(
        labelled=torch.from_numpy(np.concatenate([empty, *(each.tensors for each in sets)])),
        labels=np.concatenate([np.empty(0, dtype=np.int64), *(each.labels for each in sets)]),
        domains=[row.domain for each in sets for row in each.rows],
        target=torch.from_numpy(here.target.tensors),
    )


@torch.no_grad()
def statistics(module: ClassifierTraining | AdaptationTraining, target: Target, seed: int) -> dict[str, torch.Tensor]:
    """Return what the domain distance is fitted to, of up to a thousand images of the target: a domain of the adapted model.

    They travel with the run, the images do not: means and deviations of channels (:mod:`models.networks.domain_distance`).
    """
    chosen = np.random.default_rng(seed).permutation(len(target.tensors))[:MOST_STATISTICS]
    classifier = module.classifier.eval()
    maps = [classifier.stage_maps(batch) for batch in in_batches(torch.from_numpy(target.tensors[chosen]))]
    return {
        "whole": torch.cat([stage_statistics(each) for each in maps]),
        "grid": torch.cat([grid_statistics(each) for each in maps]),
    }


def lost(config: RunConfig) -> list[str]:
    """Return which of :data:`LOST` an adapted run goes without."""
    settings = settings_of(config)
    adabn = settings.method == "adabn"
    held = {
        "units": True, "weights": adabn, "source": not settings.source and not adabn,
        "loss_prediction": (adabn or not settings.source) and config.loss_prediction != "none",
        "labels": settings.labels_sha256 is not None,
    }  # fmt: skip
    return [name for name in LOST if held[name]]


def change_of(config: RunConfig) -> Change:
    """Return the augmentation that a run was trained with."""
    return lambda images, generator: augment(images, config.input, config.flip, generator)


def to_fit(out: Path, config: RunConfig) -> bool:
    """Tell whether a run's loss prediction has to be fitted to held-out errors once more, and is not yet."""
    return config.loss_prediction == "held-out" and "loss_prediction" not in lost(config) and not (out / HELD_OUT).exists()


def check_first_round(base: Path, config: RunConfig, here: Here) -> None:
    """Refuse what the first pseudo-labels would be refused for: see :func:`training.adaptation.pseudo_labels`."""
    material, settings = material_of(here, config), settings_of(config)
    ensemble = first_ensemble(load_weights(base, fitted=False).classifier, material.target, change_of(config), settings.seed)
    pseudo_labels(ensemble, share_of(settings, 1), material)


def adapt_run(base: Path, out: Path, config: RunConfig, here: Here) -> None:
    """Adapt one run, from where it was interrupted, and write ``adaptation.json`` and ``model.pt``."""
    settings = settings_of(config)
    trained = load_weights(base, fitted=False)
    rounds: list[dict[str, Any]] = []
    module: ClassifierTraining | AdaptationTraining = trained
    if settings.method == "adabn":
        adapt_statistics(trained.classifier, in_batches(torch.from_numpy(here.target.tensors)))
    else:
        material = material_of(here, config)
        module, rounds = adapt((trained.classifier, trained.loss_prediction), config, material, out, change_of(config))
    if config.loss_prediction == "held-out" and "loss_prediction" in lost(config):
        shutil.copyfile(base / HELD_OUT, out / HELD_OUT)
    labelled = here.labels.rows if here.labels else ()
    target = {
        "images": len(here.target.digests),
        "patients": len(set(here.target.patients)),
        "passed_over": here.target.passed_over,
    }
    write_json(out / REPORT, {
        "target": target | here.distances, "labels": len(labelled),
        "seen": seen_document((row.original, row.patient) for row in labelled),
        "rounds": rounds, "lost": [LOST[name] for name in lost(config)],
    })  # fmt: skip
    state: dict[str, Any] = {name: module.get_submodule(name).state_dict() for name in PARTS}
    save_weights(state | {TARGET: statistics(module, here.target, settings.seed)}, out)
    clear(out)


def fit_loss(out: Path, config: RunConfig, here: Here) -> None:
    """Fit an adapted run's loss prediction to the errors of adapted runs on what they did not see."""
    if here.source is None:
        raise ValueError("held-out errors need the source")
    needed = (out, *held_out_runs(out, config).configs)
    classifiers = {each: load_weights(each, fitted=False).classifier for each in needed}
    finish(out, classifiers, here.source.where("train", config))


def minutes(base: Path, config: RunConfig, here: Here) -> float:
    """Return how long one run takes on this machine, by the time of two steps on a copy."""
    module = load_weights(base, fitted=False)
    size = min(config.batch_size, len(here.target.tensors))
    timed = AdaptationTraining(module.classifier, module.loss_prediction, config, 0, lambda images, _: images).train()
    batch = torch.from_numpy(here.target.tensors[:size])
    labels = torch.zeros(size, dtype=torch.int64)
    started = 0.0
    for step in range(3):
        if step == 1:
            started = time.perf_counter()
        drawn = torch.Generator().manual_seed(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16-mixed"):
            changed = change_of(config)(torch.cat([batch, batch]), drawn)
            task, _, consistency = timed.losses(changed[:size], labels, labels, changed[size:], drawn)
        torch.autograd.grad(task + consistency, list(timed.classifier.parameters()))
    settings = settings_of(config)
    return (time.perf_counter() - started) / 2 * settings.epochs * config.steps_per_epoch * count_trainings(settings) / 60
