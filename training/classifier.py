"""``overread train classifier``: a classifier with its loss prediction module, and its leave-one-domain-out siblings."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer

from models.command import command_parser
from models.errors import Refusal
from models.networks.loss_prediction import LossPrediction
from models.networks.normalization import use_batch_instance
from models.networks.style import StyleHead, content_maps
from training.augmentation import augment
from training.config import Run, RunConfig, fold_of, make_config, read_input_spec, read_run, refuse_other, versions, write_json
from training.data import Manifest, check_splits, load_images, read_manifest, split_of
from training.fit import WEIGHTS, adamw, fit, load_safely, memory_format, rate
from training.held_out import REPORT as HELD_OUT
from training.held_out import finish, held_out_runs
from training.losses import ranking_loss
from training.sources import Sources, add_sources, read_sources
from training.start import Start, make_classifier, read_start
from training.style import adversarial_optimizer, style_steps

PARTS = ("classifier", "loss_prediction")
METHODS = ("backbone", "style", "normalization", "loss_prediction")
"""Fields of the config that the command line offers by their names."""
SIZES = ("steps_per_epoch", "batch_size")
"""The same, numbers."""


class ClassifierTraining(lightning.LightningModule):
    """Cross-entropy, and what the config switches on: the ranking loss of the loss prediction module, SagNet's steps, BIN.

    Parameters
    ----------
    config : RunConfig
    start : Start, optional
        Weights of the classifier to begin with.

    References
    ----------
    Yoo and Kweon, "Learning Loss for Active Learning", CVPR 2019, arXiv:1905.03677, section 3.1: one joint loss; section
    5.1: late in training the module's gradient no longer reaches the features. Of styles: :mod:`training.style`; of
    normalisation: :mod:`models.networks.normalization`.
    """

    def __init__(self, config: RunConfig, start: Start | None = None) -> None:
        super().__init__()
        self.config = config
        self.classifier = make_classifier(config, start)
        if config.normalization == "batch_instance":
            use_batch_instance(self.classifier)
        self.loss_prediction = LossPrediction(self.classifier.widths)
        self.style_head = StyleHead(self.classifier, config.style_stage) if config.style == "sagnet" else None
        self.style_optimizers: tuple[Optimizer, Optimizer] | None = None
        self._resumed: list[Any] = []

    def losses(self, images: Tensor, labels: Tensor, joint: bool, styles: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy, and the ranking loss of the scores against each image's cross-entropy.

        Parameters
        ----------
        images : Tensor, shape (N, C, H, W)
        labels : Tensor, int64, shape (N,)
        joint : bool
            Whether the ranking loss's gradient reaches the features.
        styles : Generator, optional
            Given, the content head sees randomised styles.
        """
        if styles is None:
            maps = self.classifier.stage_maps(images)
        else:
            maps = content_maps(self.classifier, images, self.config.style_stage, styles)
        true_losses = functional.cross_entropy(
            self.classifier.classify(self.classifier.pool(maps)).float(), labels, reduction="none"
        )
        if self.config.loss_prediction != "joint":
            return true_losses.mean(), torch.zeros(())
        scores = self.loss_prediction(maps if joint else [stage.detach() for stage in maps]).float()
        return true_losses.mean(), ranking_loss(scores, true_losses, self.config.ranking_margin)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Take one step."""
        images, labels = batch
        task, ranking = self.step_losses(images, labels, self.global_step)
        self.log_dict({"loss": task, "ranking": ranking}, prog_bar=True, on_step=False, on_epoch=True)
        return task + self.config.loss_weight * ranking

    def step_losses(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Augment a batch, take the steps of a style head where there is one, and return the losses as :meth:`losses` does.

        Everything random in it depends on the seed and the step alone, so a run can go on after a kill.
        """
        torch.manual_seed(self.config.seed * 1_000_003 + step)
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        images = augment(images.cpu(), self.config.input, self.config.flip, generator).to(images.device)
        joint = step < self.config.loss_gradient_until * self.config.total_steps
        images = images.contiguous(memory_format=memory_format(self.config))
        if self.style_head is not None and self.style_optimizers is not None:
            for optimizer in self.style_optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = self.config.learning_rate * self.rate(step)
            style_steps(
                self.classifier, self.style_head, self.config.style_stage, images, labels, self.style_optimizers,
                self.config.adversarial_weight, generator,
            )  # fmt: skip
        return self.losses(images, labels, joint, None if self.style_head is None else generator)

    def rate(self, step: int) -> float:
        """Return the factor of the learning rate: a linear warm-up and a cosine to zero, by step."""
        return rate(step, self.config.total_steps)

    def configure_optimizers(self) -> Any:
        """Return AdamW, with the gates of BIN as a group of their own that every step brings back into [0, 1]."""
        optimiser = adamw([self.classifier, self.loss_prediction], self.config)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self.rate)
        if self.style_head is not None:
            of_head = torch.optim.AdamW(self.style_head.parameters(), weight_decay=self.config.weight_decay)
            self.style_optimizers = of_head, adversarial_optimizer(self.classifier, self.config.style_stage, 0.0)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state of the optimisers that Lightning does not step."""
        checkpoint["style_optimizers"] = [optimizer.state_dict() for optimizer in self.style_optimizers or ()]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember it: the optimisers do not exist yet."""
        self._resumed = checkpoint.get("style_optimizers", [])

    def on_train_start(self) -> None:
        """Give it back, once the parameters are where they are trained."""
        for optimizer, state in zip(self.style_optimizers or (), self._resumed, strict=False):
            optimizer.load_state_dict(state)


def seconds_per_step(config: RunConfig, start: Start | None, images: Tensor, labels: Tensor, steps: int = 3) -> float:
    """Time steps of a training that is thrown away: all that the config switches on, and the optimisers.

    Parameters
    ----------
    config : RunConfig
    start : Start or None
    images, labels : Tensor
        One batch.
    steps : int
        Steps timed after one that is not.
    """
    module = ClassifierTraining(config, start).to(memory_format=memory_format(config)).train()
    optimizer = module.configure_optimizers()["optimizer"]
    started = 0.0
    for step in range(steps + 1):
        if step == 1:
            started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16-mixed"):
            task, ranking = module.step_losses(images, labels, step)
        optimizer.zero_grad()
        torch.autograd.backward(task + config.loss_weight * ranking)
        optimizer.step()
    return (time.perf_counter() - started) / steps


def load_weights(folder: Path, fitted: bool = True) -> ClassifierTraining:
    """Return the finished model of a run, in evaluation mode; if not ``fitted``, its loss prediction may still be to do.

    Raises
    ------
    Refusal
        ``config_invalid`` if the run is missing or not finished.
    """
    run = read_run(folder)
    if not (folder / WEIGHTS).exists():
        raise Refusal("config_invalid", "The run is not finished: give the training command again, and it goes on.")
    if fitted and run.config.loss_prediction == "held-out" and not (folder / HELD_OUT).exists():
        raise Refusal("config_invalid", "Its loss prediction is not fitted: give the training command again, and it goes on.")
    weights = load_safely(folder / WEIGHTS)
    module = ClassifierTraining(run.config)
    for name in PARTS:
        module.get_submodule(name).load_state_dict(weights[name])
    return module.eval()


def sibling(folder: Path, domain: str) -> Path:
    """Return the folder, inside a run's, of the sibling that never saw ``domain``."""
    return folder / f"without_{domain}"


def plan(folder: Path, config: RunConfig) -> dict[Path, RunConfig]:
    """Return the configs of a run, of its siblings, and of what their held-out errors need, by folder."""
    runs = {folder: config}
    for domain in config.leave_out:
        runs |= plan(sibling(folder, domain), config.without(domain))
    if config.loss_prediction == "held-out":
        runs = held_out_runs(folder, config).configs | runs
    return {folder: config} | runs


def _command(config: RunConfig, options: argparse.Namespace, sources: Sources) -> str:
    words = ["overread", "train", "classifier", *sources.words]
    words += ["--domains", *config.domains, "--leave-out", *config.leave_out]
    words += ["--classes", *config.classes, "--finding", config.finding, "--input", options.input.name]
    words += ["--epochs", str(config.epochs), "--precision", config.precision, "--seed", str(config.seed)]
    for name in (*METHODS, *SIZES):
        if getattr(config, name) != RunConfig.model_fields[name].default:
            words += [f"--{name.replace('_', '-')}", str(getattr(config, name))]
    if config.start_sha256 is not None:
        words += ["--weights", "WEIGHTS"]
    return shlex.join([*words, "--out", "RUN"])


def _run(config: RunConfig, manifest: Manifest, command: str) -> Run:
    trained_on = {}
    for domain in config.domains:
        patients = [
            row.patient for row in manifest.rows
            if row.domain == domain and split_of(row.patient, config) == "train"
            and (config.fold is None or fold_of(row.patient, config.seed) == config.fold)
        ]  # fmt: skip
        trained_on[domain] = (len(patients), len(set(patients)))
    return Run(config=config, data_sha256=manifest.sha256, trained_on=trained_on, command=command, versions=versions())


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "train classifier",
        "Train a classifier and its loss prediction module, and the same recipe without each domain in turn. "
        "Give the same command again after an interruption: it goes on from the last checkpoint.",
        "overread train classifier --data cxr --domains kermany_guangzhou nih_chestxray --classes normal pneumonia \\\n"
        "    --finding pneumonia --input training/specs/chest_xray.json --seed 0 --out runs/cxr",
    )
    add_sources(parser, "folder with manifest.csv: image, label, domain, patient")
    parser.add_argument("--domains", nargs="+", metavar="DOMAIN", help="train on these, and on the label package's")
    parser.add_argument("--leave-out", nargs="*", metavar="DOMAIN", help="siblings to train without these; default: each")
    parser.add_argument("--classes", nargs="+", required=True, metavar="LABEL", help="labels, in the order of the logits")
    parser.add_argument("--finding", required=True, metavar="LABEL", help="the class reported as a finding")
    parser.add_argument("--input", type=Path, required=True, help="JSON file: how an image becomes a tensor")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=RunConfig.model_fields["epochs"].default)
    parser.add_argument("--steps-per-epoch", type=int, metavar="BATCHES", help="default: 50")
    parser.add_argument("--batch-size", type=int, metavar="IMAGES", help="default: 64")
    parser.add_argument("--backbone", choices=("residual", "efficientnet_lite0"), default="residual")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="begin with these: model.pt of a run, or any state dict")
    parser.add_argument("--style", choices=("none", "sagnet"), default="none", help="sagnet: style-agnostic training")
    parser.add_argument("--normalization", choices=("batch", "batch_instance"), default="batch")
    parser.add_argument("--loss-prediction", choices=("joint", "held-out", "none"), default="joint",
                        help="held-out: fitted to errors on images that another run did not see")  # fmt: skip
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default=RunConfig.model_fields["precision"].default)
    return parser


def main(argv: list[str]) -> int:
    """Run ``overread train classifier``; returns 0."""
    options = _parser().parse_args(argv)
    sources = read_sources(options, "classification")
    (domains, label_domains), leave_out = sources.domains(options.domains), options.leave_out
    if leave_out is None:
        leave_out = domains if len(domains) > 1 else []
    start = read_start(options.weights) if options.weights else None
    config = make_config(
        seed=options.seed, domains=domains, leave_out=leave_out, classes=options.classes, finding=options.finding,
        input=read_input_spec(options.input), epochs=options.epochs, precision=options.precision,
        start_sha256=start.sha256 if start else None, labels_sha256=sources.labels_sha256,
        label_domains=label_domains,
        **{name: getattr(options, name) for name in METHODS},
        **{name: value for name in SIZES if (value := getattr(options, name)) is not None},
    )  # fmt: skip
    make_classifier(config, start)  # weights that do not fit are refused here, before any image is read
    manifest = read_manifest(sources, config.domains, config.classes, config.label_domains)
    check_splits(manifest.rows, config)
    command = _command(config, options, sources)
    runs = {}
    for folder, each_config in plan(options.out, config).items():
        same = each_config.domains == config.domains
        seen = manifest if same else read_manifest(sources, each_config.domains, config.classes, config.label_domains)
        runs[folder] = _run(each_config, seen, command)
    for folder, run in runs.items():
        refuse_other(run, folder)
    unfinished = {folder: each for folder, each in runs.items() if not (folder / WEIGHTS).exists()}
    to_fit = [
        folder for folder, each in runs.items()
        if each.config.loss_prediction == "held-out" and not (folder / HELD_OUT).exists()
    ]  # fmt: skip
    if not unfinished and not to_fit:
        print("This run is finished; nothing to do. Next: overread export")
        return 0
    # Every image is decoded, those of the test patients too: what cannot be read is refused before time is spent.
    images = load_images(manifest.rows, config.input, "reading")
    batch = images.where("train", config)
    some = slice(0, config.batch_size)
    each = seconds_per_step(config, start, torch.from_numpy(batch.tensors[some]), torch.from_numpy(batch.labels[some]))
    minutes = each * config.total_steps * len(unfinished) / 60
    print(f"{len(manifest.rows)} images, {len(batch.rows)} of them to train on; {len(unfinished)} models of {config.total_steps} "
          f"steps: about {minutes:.0f} minutes on this machine, if nothing else runs on it", flush=True)  # fmt: skip
    for folder, each_run in unfinished.items():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "run.json", each_run.model_dump(mode="json"))
        torch.manual_seed(config.seed)
        module = ClassifierTraining(each_run.config, start)
        fit(module, PARTS, each_run.config, images.where("train", each_run.config), folder)
    for folder in to_fit:
        held_out = held_out_runs(folder, runs[folder].config)
        classifiers = {run: load_weights(run, fitted=False).classifier for run in (folder, *held_out.configs)}
        finish(folder, classifiers, images.where("train", runs[folder].config))
        print(f"{folder}: loss prediction fitted to held-out errors ({held_out.errors})", flush=True)
    print("finished. Next: overread export")
    return 0
