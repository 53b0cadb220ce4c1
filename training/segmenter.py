"""``overread train segmenter``: nuclei from points, by PseudoEdgeNet, Voronoi and cluster labels, or both."""

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

from models.command import command_parser
from models.errors import Refusal
from models.networks.loss_prediction import LossPrediction
from models.networks.normalization import use_batch_instance
from models.networks.pseudo_edge import PseudoEdge
from models.networks.segmenter import Segmenter
from training.augmentation import stain_jitter
from training.config import read_input_spec, refuse_other, versions, write_json
from training.data import SPLITS
from training.fit import WEIGHTS, adamw, fit_batches, load_safely, memory_format, rate
from training.losses import dice_losses, edge_loss, pairwise_loss, partial_cross_entropy, point_loss, ranking_loss
from training.segmenter_config import SegmenterConfig, SegmenterRun, make_segmenter_config, read_segmenter_run
from training.segmenter_crops import crop_loader
from training.segmenter_data import Tissues, read_tissues
from training.sources import Sources, add_sources, read_sources

PARTS = ("segmenter", "loss_prediction")
"""What is kept of a run: the edge network and its attention were for training alone."""
METHODS = ("edges", "normalization", "loss_prediction")
"""Fields of the config that the command line offers by their names, beside the switches."""
SWITCHES = ("crf", "stain")
SUPERVISION = ("points", "voronoi", "cluster", "masks")


class SegmenterTraining(lightning.LightningModule):
    """Cross-entropy where something is known, and what the config switches on: edges, like colours, the loss prediction.

    Parameters
    ----------
    config : SegmenterConfig

    References
    ----------
    Yoo, Yoo and Paeng, "PseudoEdgeNet: Nuclei Segmentation only with Point Annotations", MICCAI 2019, arXiv:1906.02924: f, g and
    h are trained together, f alone is used afterwards. Qu et al., "Weakly Supervised Deep Nuclei Segmentation using Points
    Annotation in Histopathology Images", MIDL 2019: half Voronoi, half cluster labels. Yoo and Kweon, "Learning Loss for Active
    Learning", CVPR 2019, arXiv:1905.03677, section 3.1: one joint loss.
    """

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        self.segmenter = Segmenter(config.input.channels, config.widths, config.blocks)
        self.loss_prediction = LossPrediction(config.widths)
        self.pseudo_edge: PseudoEdge | None = None
        if config.edges != "none":
            attention = config.attention_widths if config.edges == "pseudo_edge_attention" else ()
            self.pseudo_edge = PseudoEdge(config.input.channels, config.edge_width, attention)
        if config.normalization == "batch_instance":
            use_batch_instance(self.segmenter)

    def losses(self, images: Tensor, labels: Tensor, joint: bool) -> tuple[Tensor, Tensor]:
        """Return the loss of the segmentation, and the ranking loss of the scores against each crop's 1 - Dice.

        Parameters
        ----------
        images : Tensor, shape (N, 3, H, W)
        labels : Tensor, int8, shape (N, K, H, W)
            Of :func:`training.segmenter_crops.supervision`; the ranking looks at the last of them, the one that knows most.
        joint : bool
            Whether the ranking loss's gradient reaches the encoder.
        """
        config = self.config
        maps = self.segmenter.stage_maps(images)
        logits = self.segmenter.decode(maps, (images.shape[2], images.shape[3])).float()
        probabilities = torch.sigmoid(logits)
        kinds = list(labels.unbind(dim=1))
        compared = [partial_cross_entropy(logits[:, 0], kind) for kind in kinds]
        if config.labels in ("voronoi", "cluster"):
            compared[0] = point_loss(logits[:, 0], kinds[0], config.boundary_weight)
        task = torch.stack(compared).mean()
        if self.pseudo_edge is not None:
            task = task + config.edge_weight * edge_loss(probabilities, self.pseudo_edge(images).float())
        if config.crf:
            # At half the resolution, at which the logits were made
            colours = functional.avg_pool2d(images.float() * config.input.std + config.input.mean, 2)
            sigmas = config.crf_place_sigma, config.crf_colour_sigma
            task = task + config.crf_weight * pairwise_loss(
                functional.avg_pool2d(probabilities, 2), colours, config.crf_radius, *sigmas
            )
        if config.loss_prediction != "joint":
            return task, torch.zeros(())
        scores = self.loss_prediction(maps if joint else [stage.detach() for stage in maps]).float()
        return task, ranking_loss(scores, dice_losses(logits[:, 0] >= 0, kinds[-1]), config.ranking_margin)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Take one step; everything random in it depends on the seed and the step alone, so a run can go on after a kill."""
        images, labels = batch
        step = self.global_step
        if self.config.stain:
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
            images = stain_jitter(images.cpu(), self.config.input, generator).to(images.device)
        images = images.contiguous(memory_format=memory_format(self.config))
        task, ranking = self.losses(images, labels, step < self.config.loss_gradient_until * self.config.total_steps)
        self.log_dict({"loss": task, "ranking": ranking}, prog_bar=True, on_step=False, on_epoch=True)
        return task + self.config.loss_weight * ranking

    def configure_optimizers(self) -> Any:
        """Return AdamW over every network that takes part."""
        networks = [self.segmenter, self.loss_prediction, *([] if self.pseudo_edge is None else [self.pseudo_edge])]
        optimiser = adamw(networks, self.config)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step, self.config.total_steps))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def load_segmenter(folder: Path) -> SegmenterTraining:
    """Return the finished model of a run, in evaluation mode; an edge network in it is new, and of no use.

    Raises
    ------
    Refusal
        ``config_invalid`` if the run is missing or not finished.
    """
    run = read_segmenter_run(folder)
    if not (folder / WEIGHTS).exists():
        raise Refusal("config_invalid", "The run is not finished: give the training command again, and it goes on.")
    weights = load_safely(folder / WEIGHTS)
    module = SegmenterTraining(run.config)
    for name in PARTS:
        module.get_submodule(name).load_state_dict(weights[name])
    return module.eval()


def check_splits(images: Tissues, config: SegmenterConfig) -> None:
    """Refuse splits that cannot be trained on, calibrated or measured.

    Raises
    ------
    Refusal
        ``data_invalid`` unless every domain has an image in each split.
    """
    for split in SPLITS:
        present = {each.domain for each in images.where(split, config)}
        for domain in config.domains:
            if domain not in present:
                message = f"The domain {domain} has no group of images in the split {split}: add images, or try another --seed."
                raise Refusal("data_invalid", message)


def _command(config: SegmenterConfig, options: argparse.Namespace, sources: Sources) -> str:
    words = ["overread", "train", "segmenter", *sources.words, "--domains", *config.domains, "--label", config.label]
    words += ["--input", options.input.name, "--epochs", str(config.epochs), "--precision", config.precision]
    words += ["--seed", str(config.seed)]
    if config.labels != SegmenterConfig.model_fields["labels"].default:
        words += ["--supervision", config.labels]
    for name in METHODS:
        if getattr(config, name) != SegmenterConfig.model_fields[name].default:
            words += [f"--{name.replace('_', '-')}", getattr(config, name)]
    words += [f"--{name}" for name in SWITCHES if getattr(config, name)]
    return shlex.join([*words, "--out", "RUN"])


def _run(config: SegmenterConfig, images: Tissues, command: str) -> SegmenterRun:
    trained_on = {}
    for domain in config.domains:
        groups = [each.group for each in images.where("train", config) if each.domain == domain]
        trained_on[domain] = (len(groups), len(set(groups)))
    return SegmenterRun(config=config, data_sha256=images.sha256, trained_on=trained_on, command=command, versions=versions())


def _parser() -> argparse.ArgumentParser:
    fields = SegmenterConfig.model_fields
    parser = command_parser(
        "train segmenter",
        "Train a segmenter of nuclei from points, or from masks. Give the same command again after an interruption: "
        "it goes on from the last checkpoint.",
        "overread train segmenter --data nuclei --domains dsb18_256x320_purple --label nucleus \\\n"
        "    --input training/specs/tissue.json --supervision cluster --edges pseudo_edge_attention --seed 0 --out runs/nuclei",
    )
    add_sources(parser, "folder with manifest.csv: image, domain, label_map or points")
    parser.add_argument("--domains", nargs="+", metavar="DOMAIN", help="train on these, and on the label package's")
    parser.add_argument("--label", required=True, help="what an object is, such as nucleus")
    parser.add_argument("--input", type=Path, required=True, help="JSON file: how a tile becomes a tensor")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=fields["epochs"].default, help="of 30 batches of 8 crops")
    parser.add_argument("--supervision", choices=SUPERVISION, default="voronoi",
                        help="what pixels are compared with; points are simulated from masks where none are given")  # fmt: skip
    parser.add_argument("--edges", choices=("none", "pseudo_edge", "pseudo_edge_attention"), default="none")
    parser.add_argument("--crf", action="store_true", help="near pixels of like colour shall be of one kind")
    parser.add_argument("--stain", action="store_true", help="jitter the stains")
    parser.add_argument("--normalization", choices=("batch", "batch_instance"), default="batch")
    parser.add_argument("--loss-prediction", choices=("joint", "none"), default="joint")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default=fields["precision"].default)
    parser.add_argument("--workers", type=int, choices=range(17), default=0, metavar="N", help="processes that cut crops")
    return parser


def _seconds_per_step(config: SegmenterConfig) -> float:
    """Time a forward and backward pass after one that is not timed, on a network of its own and noise."""
    module = SegmenterTraining(config).to(memory_format=memory_format(config))
    images = torch.randn(config.batch_size, 3, config.crop, config.crop).contiguous(memory_format=memory_format(config))
    labels = torch.randint(-1, 2, (config.batch_size, 1, config.crop, config.crop))
    for _ in range(2):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16-mixed"):
            task, ranking = module.losses(images, labels, True)
        torch.autograd.backward(task + ranking)
    return time.perf_counter() - started


def main(argv: list[str]) -> int:
    """Run ``overread train segmenter``; returns 0."""
    options = _parser().parse_args(argv)
    if str(options.labels) in SUPERVISION:  # as the commands in older cards say it
        message = f"--labels names a label package; what pixels are compared with is --supervision {options.labels}."
        raise Refusal("config_invalid", message)
    sources = read_sources(options, "segmentation")
    domains, label_domains = sources.domains(options.domains)
    config = make_segmenter_config(
        seed=options.seed, domains=domains, label=options.label, input=read_input_spec(options.input),
        epochs=options.epochs, precision=options.precision, labels=options.supervision,
        labels_sha256=sources.labels_sha256, label_domains=label_domains,
        **{name: getattr(options, name) for name in (*METHODS, *SWITCHES)},
    )  # fmt: skip
    # Everything is read, the test images too: what cannot be read is refused before time is spent.
    images = read_tissues(sources, config)
    check_splits(images, config)
    run = _run(config, images, _command(config, options, sources))
    refuse_other(run, options.out)
    if (options.out / WEIGHTS).exists():
        print("This run is finished; nothing to do. Next: overread export")
        return 0
    train = images.where("train", config)
    minutes = _seconds_per_step(config) * config.total_steps / 60
    print(f"{len(images.images)} images, {len(train)} of them to train on; {config.total_steps} steps: about {minutes:.0f} "
          "minutes on this machine, if nothing else runs on it", flush=True)  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "run.json", run.model_dump(mode="json"))
    torch.manual_seed(config.seed)
    fit_batches(SegmenterTraining(config), PARTS, config, crop_loader(train, config, options.workers), options.out)
    print("finished. Next: overread export")
    return 0
