"""Tissue with real instances, and how a segmenter is trained on what was marked in it: the same for every row."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from models.card import InputSpec
from models.networks.segmenter import Segmenter
from training.config import read_input_spec
from training.fit import CHECKPOINT, WEIGHTS, fit_batches, load_safely
from training.segmenter import PARTS, SegmenterTraining
from training.segmenter_config import SegmenterConfig
from training.segmenter_crops import crop_loader, tensors
from training.segmenter_data import MERGED, Tissue, read_tissues
from training.simulated_annotations import simulate_points, simulate_scribbles

FOLDS = 3
PREFIXES = {"dsb18": "dsb18", "monuseg": "monuseg"}
"""Of the domains of each set of images."""
SPEC = Path(__file__).resolve().parents[1] / "training" / "specs" / "tissue.json"
POINT_SECONDS, MASK_SECONDS = 14 * 60 / 600, 115 * 60 / 600
"""Of an expert, a nucleus: published times of 14 and 115 minutes for an image of 1000 x 1000 pixels with some 600 nuclei."""
STROKE_SECONDS = POINT_SECONDS * 10.9 / 2.4
"""Of an expert, a stroke, on a nucleus or on background: no time of nuclei is published. Assumed is the ratio of a stroke to a
first point in everyday photographs, 10.9 s to 2.4 s (Bearman et al., "What's the Point: Semantic Segmentation with Point
Supervision", ECCV 2016, arXiv:1506.02106), whose objects are larger: it is rather too much."""


@dataclass(frozen=True)
class Recipe:
    """What all rows of a scale share.

    Attributes
    ----------
    widths, blocks : tuple of int, int
        Of the segmenter.
    edge_width, attention_widths : int, tuple of int
        Of the edge network and its attention.
    epochs, steps_per_epoch, batch_size, crop : int
    most : int
        Images a fold.
    side : int, pixels
        Images are cut to this, around their centre, where they are larger.
    looked_at : int
        Pixels of training images, at most (but at least one image), on which the separation is chosen.
    """

    widths: tuple[int, ...]
    blocks: int
    edge_width: int
    attention_widths: tuple[int, ...]
    epochs: int
    steps_per_epoch: int
    batch_size: int
    crop: int
    most: int = 1000
    side: int = 1000
    looked_at: int = 1_000_000

    def config(self, method: Method, domains: tuple[str, ...], seed: int) -> SegmenterConfig:
        """Return the config of one run. No row predicts its loss, so that all have the same loss but for their labels."""
        return SegmenterConfig(
            seed=seed, label="nucleus", domains=domains, input=input_spec(), labels=method.labels, edges=method.edges,
            crf=method.crf, loss_prediction="none", epochs=self.epochs, steps_per_epoch=self.steps_per_epoch,
            batch_size=self.batch_size, crop=self.crop, widths=self.widths, blocks=self.blocks, edge_width=self.edge_width,
            attention_widths=self.attention_widths,
        )  # fmt: skip


@dataclass(frozen=True)
class Method:
    """What a row differs by: fields of :class:`training.segmenter_config.SegmenterConfig`, and a name."""

    name: str
    labels: Literal["points", "voronoi", "cluster", "masks"]
    edges: Literal["none", "pseudo_edge", "pseudo_edge_attention"] = "none"
    crf: bool = False


@dataclass(frozen=True)
class Marks:
    """How nuclei are marked: options of :func:`training.simulated_annotations.simulate_points`, or strokes; and a name."""

    name: str
    jitter: float = 0.0
    missing: float = 0.0
    doubled: float = 0.0
    share: float = 1.0
    complete: bool = True
    strokes: bool = False


@dataclass(frozen=True)
class Slides:
    """Images with real instances, the fold of each, in which it is tested on, and its patient, or else its look-alikes."""

    images: tuple[Tissue, ...]
    folds: NDArray[np.int64]
    patients: NDArray[np.str_]

    def train(self, fold: int, share: float, seed: int) -> list[Tissue]:
        """Return a share of the images of the other folds, at least one, drawn at random; smaller shares are parts of larger."""
        others = np.flatnonzero(self.folds != fold)
        chosen = np.random.default_rng(seed).permutation(others)[: max(1, round(share * len(others)))]
        return [self.images[index] for index in np.sort(chosen)]

    def test(self, fold: int) -> list[Tissue]:
        """Return the images of a fold."""
        return [self.images[index] for index in np.flatnonzero(self.folds == fold)]


def input_spec() -> InputSpec:
    """Return how a tile becomes a tensor: as for the segmenter that ships."""
    return read_input_spec(SPEC)


def read_slides(folder: Path, name: str, recipe: Recipe) -> Slides:
    """Read ``folder/nuclei``: the images of one set whose touching nuclei have labels of their own.

    In MoNuSeg, images of one hospital stay together; in DSB2018, which names no slides, images that look alike
    (:func:`training.segmenter_data.look_alikes`).
    """
    with (folder / "nuclei" / "manifest.csv").open(newline="", encoding="utf-8") as stream:
        domains = {row["domain"] for row in csv.DictReader(stream) if row["label_kind"] != MERGED}
    mine = tuple(sorted(domain for domain in domains if domain.startswith(PREFIXES[name])))
    everything = read_tissues(folder / "nuclei", recipe.config(Method("", "voronoi"), mine, 0)).images
    images = [each for each in everything if each.objects is not None]
    patients = np.array([each.group for each in images])
    if name == "monuseg":
        images = [replace(each, group=each.domain) for each in images]
    fold = assign_folds(images)
    kept = np.sort(np.concatenate([np.flatnonzero(fold == number)[: recipe.most] for number in range(FOLDS)]))
    return Slides(tuple(cut(images[index], recipe.side) for index in kept), fold[kept], patients[kept])


def assign_folds(images: Sequence[Tissue]) -> NDArray[np.int64]:
    """Return the fold of each image: groups, the largest first, each into the fold that has fewest images of its kind.

    The kind is the domain, unless a domain is a group; then all are of one kind.
    """
    fold = np.zeros(len(images), np.int64)
    kinds = [each.domain if each.domain != each.group else "" for each in images]
    for kind in sorted(set(kinds)):
        members = [index for index, value in enumerate(kinds) if value == kind]
        groups: dict[str, list[int]] = {}
        for index in members:
            groups.setdefault(images[index].group, []).append(index)
        filled = np.zeros(FOLDS, np.int64)
        for group in sorted(groups.values(), key=lambda group: (-len(group), group[0])):
            fold[group] = np.argmin(filled)
            filled[fold[group[0]]] += len(group)
    return fold


def cut(image: Tissue, side: int) -> Tissue:
    """Return the centre of an image, of ``side`` pixels where it is larger; its annotation stays that of the whole."""
    if image.objects is None or image.foreground is None:
        raise ValueError("an image without masks cannot be tested on")
    window = tuple(
        slice((length - side) // 2, (length - side) // 2 + side) if length > side else slice(None)
        for length in image.objects.shape
    )
    return replace(image, colours=image.colours[window], objects=image.objects[window], foreground=image.foreground[window])


def annotated(images: Sequence[Tissue], method: Method, marks: Marks, seed: int) -> list[Tissue]:
    """Return images with what the row's annotators gave, and nothing else: full masks, or points or strokes in place of them."""
    if method.labels == "masks":
        return list(images)
    given = []
    for each in images:
        if each.objects is None:
            raise ValueError("marks are simulated from masks, and there are none")
        own = 100_000 * seed + each.number
        if marks.strokes:
            annotation = simulate_scribbles(each.objects, own)
        else:
            options = marks.jitter, marks.missing, marks.doubled, marks.share, marks.complete
            annotation = simulate_points(each.objects, own, *options)
        given.append(replace(each, annotation=annotation, objects=None, foreground=None))
    return given


def expert_minutes(images: Sequence[Tissue]) -> float:
    """Return the expert's minutes that went into :func:`annotated` images."""
    seconds = sum(
        POINT_SECONDS * len(each.annotation.points) + STROKE_SECONDS * len(each.annotation.scribbles)
        if each.objects is None
        else MASK_SECONDS * (len(np.unique(each.objects)) - int((each.objects == 0).any()))
        for each in images
    )
    return seconds / 60


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Drop the progress bars of some hundred runs."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def train(images: Sequence[Tissue], config: SegmenterConfig, folder: Path, start: Segmenter | None = None) -> SegmenterTraining:
    """Return the trained module; a run that was killed goes on, a finished one is read from ``folder``.

    With ``start`` it begins with that segmenter's weights, in place of random ones.
    """
    torch.manual_seed(config.seed)  # networks of one seed begin with the same weights, whatever the method
    module = SegmenterTraining(config)
    if start is not None:
        module.segmenter.load_state_dict(start.state_dict())
    if not (folder / WEIGHTS).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with _without_bars():
            fit_batches(module, PARTS, config, crop_loader(images, config, 0), folder)
        (folder / CHECKPOINT).unlink()
    weights: dict[str, Any] = load_safely(folder / WEIGHTS)
    for name in PARTS:
        module.get_submodule(name).load_state_dict(weights[name])
    return module.eval()


def look(module: SegmenterTraining, images: Sequence[Tissue]) -> list[NDArray[np.float32]]:
    """Return the foreground probabilities of whole images, each float32, shape (rows, columns)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    segmenter = module.segmenter.to(device).eval()
    found = []
    for each in images:
        with torch.inference_mode():
            logits = segmenter(torch.from_numpy(tensors(each.colours[None], module.config.input)).to(device))
        found.append(torch.sigmoid(logits)[0, 0].float().cpu().numpy())
    return found
