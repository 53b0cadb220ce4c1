"""``overread export``: a finished run becomes ``model.onnx``, with the domain distance fitted and folded in."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn

from models.card import GRAPH_INPUT, GRAPH_OUTPUTS
from models.command import command_parser
from models.durable import write_whole
from models.errors import Refusal
from models.networks.classifier import Classifier
from models.networks.domain_distance import DomainDistance, ViewDistance, grid_statistics, stage_statistics
from models.networks.loss_prediction import LossPrediction
from models.networks.normalization import fold_normalization
from models.predictor import Graph
from training.classifier import load_weights, sibling
from training.config import SEGMENTER, RunConfig, read_run, verb_of
from training.data import ImageSet, load_images, read_manifest
from training.fit import WEIGHTS, load_safely
from training.segmenter_config import SegmenterConfig
from training.sources import Sources, add_sources, read_sources

GRAPH = "model.onnx"
TARGET = "target"
"""In the ``model.pt`` of an adapted run: statistics of its target, which is a domain of the distance without images here."""
TOLERANCE = 1e-4
LEAST_SCALE = 1e-2
"""Of a statistic, as a share of its own size or of the usual scale: what varies less among the training images."""
BATCHES = (1, 3, 8)


class ServedClassifier(nn.Module):
    """Everything that is served, in one pass: see :data:`models.card.GRAPH_OUTPUTS`.

    Without a loss prediction module the loss score is the softmax entropy.
    """

    def __init__(self, classifier: Classifier, loss_prediction: LossPrediction | None, distance: ViewDistance) -> None:
        super().__init__()
        self.classifier = classifier
        self.loss_prediction = loss_prediction
        self.distance = distance

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return logits (N, K), features (N, D), loss score (N,), domain distance (N,) and heatmap (N, K, h, w)."""
        maps = self.classifier.stage_maps(image)
        features = self.classifier.pool(maps)
        distance = self.distance(maps)
        logits = self.classifier.classify(features)
        if self.loss_prediction is None:
            likely = torch.log_softmax(logits, dim=1)
            score = -(likely.exp() * likely).sum(dim=1)
        else:
            score = self.loss_prediction(maps)
        return logits, features, score, distance, self.classifier.heatmap(maps)


def fit_distance(statistics: NDArray[np.float32], domains: Sequence[str]) -> DomainDistance:
    """Fit the distance to training images.

    Parameters
    ----------
    statistics : ndarray, float32, shape (N, P, S)
        Of :mod:`models.networks.domain_distance`: S values at each of P positions.
    domains : sequence of str
        Domain of each image.

    Notes
    -----
    The covariance at a position is the mean of the domains' own (Ledoit-Wolf shrunk, after scaling to unit variance), so that
    a domain with many images does not decide alone what is usual. It is whitened by its Cholesky factor: W^T W is its inverse.
    A value that hardly varies among the images has the scale :data:`LEAST_SCALE` times its size instead: finer differences than
    that are below what single precision and other processors give again.
    """
    whitenings, centres, origins = zip(
        *(_whiten(part, domains) for part in statistics.transpose(1, 0, 2).astype(np.float64)), strict=True
    )
    return DomainDistance(*(
        torch.from_numpy(np.stack(parts, axis=axis).astype(np.float32))
        for parts, axis in ((whitenings, 0), (centres, 1), (origins, 0))
    ))  # fmt: skip


def _whiten(
    values: NDArray[np.float64], domains: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    names = np.array(domains)
    members = [values[names == name] for name in np.unique(names)]
    means = np.stack([part.mean(axis=0) for part in members])
    origin = means.mean(axis=0)
    scale = np.sqrt(np.mean([part.var(axis=0) for part in members], axis=0))
    # A channel that is dead on the training images has no scale of its own: the usual one of its neighbours stands in
    scale = np.maximum(scale, LEAST_SCALE * np.maximum(np.abs(means).max(axis=0), np.median(scale))) + 1e-6
    covariance = np.mean([LedoitWolf().fit((part - part.mean(axis=0)) / scale).covariance_ for part in members], axis=0)
    whitening = np.linalg.inv(np.linalg.cholesky(covariance)) / scale
    return whitening, (means - origin) @ whitening.T, origin


@torch.no_grad()
def build(folder: Path, images: ImageSet) -> ServedClassifier:
    """Return the module to export.

    Parameters
    ----------
    folder : Path
        A finished run.
    images : ImageSet
        Its training split, on which the domain distance is fitted, without augmentation; of an adapted run, on the target's
        statistics too.
    """
    trained = load_weights(folder)
    whole, grid = [], []
    for start in range(0, len(images.rows), 64):
        maps = trained.classifier.stage_maps(torch.from_numpy(images.tensors[start : start + 64]))
        whole.append(stage_statistics(maps))
        grid.append(grid_statistics(maps))
    domains = [row.domain for row in images.rows]
    if trained.config.adaptation is not None:
        target = load_safely(folder / WEIGHTS)[TARGET]
        whole.append(target["whole"])
        grid.append(target["grid"])
        domains += [trained.config.adaptation.domain] * len(target["whole"])
    distance = ViewDistance(*(fit_distance(torch.cat(parts).numpy(), domains) for parts in (whole, grid)))
    served = None if trained.config.loss_prediction == "none" else trained.loss_prediction
    return ServedClassifier(fold_normalization(trained.classifier), served, distance).eval()


def _strip(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes: stack traces that name this machine's folders, and so change the file's digest."""
    graph = model.graph
    values = [*graph.value_info, *graph.input, *graph.output, *graph.initializer]
    for part in (model, graph, *graph.node, *values):
        del part.metadata_props[:]
        part.doc_string = ""


def to_onnx(served: nn.Module, config: RunConfig | SegmenterConfig, outputs: Sequence[str] = GRAPH_OUTPUTS) -> bytes:
    """Return the ONNX graph: names of :mod:`models.card`, any batch size, all weights inside."""
    spec = config.input
    example = torch.zeros(2, spec.channels, spec.height, spec.width)
    stream = io.BytesIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations, which nobody here can act on
        program = torch.onnx.export(
            served, (example,), dynamo=True, verbose=False, input_names=[GRAPH_INPUT], output_names=list(outputs),
            dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False,
        )  # fmt: skip
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    model = program.model_proto
    _strip(model)
    onnx.checker.check_model(model)
    stream.write(model.SerializeToString())
    return stream.getvalue()


@torch.no_grad()
def largest_difference(served: nn.Module, graph: Graph, tensors: NDArray[np.float32]) -> float:
    """Return the largest difference of any output between torch and onnxruntime, over batches of 1, 3 and 8.

    It is absolute up to 1 and relative beyond, since a distance has no bound.

    Parameters
    ----------
    tensors : ndarray, float32, shape (N, C, H, W)
        Real images, at least 8.
    """
    worst = 0.0
    for size in BATCHES:
        for start in range(0, len(tensors) - size + 1, size):
            batch = tensors[start : start + size]
            for found, expected in zip(graph.values(batch), served(torch.from_numpy(batch)), strict=True):
                wanted = expected.numpy()
                worst = max(worst, float((np.abs(found - wanted) / np.maximum(np.abs(wanted), 1)).max()))
    return worst


def export(folder: Path, images: ImageSet) -> tuple[int, float]:
    """Write ``model.onnx`` of one run of a classifier; 48 images of the calibration split are compared."""
    config = read_run(folder).config
    served = build(folder, images.where("train", config))
    return write_graph(folder, served, config, images.where("calibration", config).tensors[:48], GRAPH_OUTPUTS)


def write_graph(
    folder: Path, served: nn.Module, config: RunConfig | SegmenterConfig, tensors: NDArray[np.float32], outputs: tuple[str, ...]
) -> tuple[int, float]:
    """Write ``model.onnx`` of one run, unless it disagrees with torch.

    Parameters
    ----------
    tensors : ndarray, float32, shape (N, C, H, W)
        What both are compared on.
    outputs : tuple of str
        Names of what ``served`` returns.

    Returns
    -------
    size : int, bytes
    difference : float
        See :func:`largest_difference`.

    Raises
    ------
    Refusal
        ``model_output_invalid`` if the difference is above 1e-4, or not a number.
    """
    graph = to_onnx(served, config, outputs)
    difference = largest_difference(served, Graph(graph, outputs=outputs), tensors)
    if not difference <= TOLERANCE:
        raise Refusal("model_output_invalid", f"The exported graph differs from torch by {difference:.1e}; nothing was written.")
    write_whole(folder / GRAPH, graph)
    return len(graph), difference


def read_graph(folder: Path) -> bytes:
    """Return ``model.onnx`` of a run.

    Raises
    ------
    Refusal
        ``config_invalid`` if it was not exported.
    """
    try:
        return (folder / GRAPH).read_bytes()
    except OSError as error:
        raise Refusal("config_invalid", "The run has no model.onnx: overread export writes it.") from error


def load_run_images(folder: Path, data: Path | Sources) -> ImageSet:
    """Return the images of a run, after checking that they are those it was trained on.

    Raises
    ------
    Refusal
        ``data_invalid`` if they are not.
    """
    run = read_run(folder)
    manifest = read_manifest(data, run.config.domains, run.config.classes, run.config.label_domains)
    if manifest.sha256 != run.data_sha256:
        raise Refusal("data_invalid", "These are not the rows and images that the run was trained on.")
    return load_images(manifest.rows, run.config.input, "reading")


def run_folders(folder: Path) -> list[Path]:
    """Return the folder of a run and those of its siblings."""
    return [folder, *(sibling(folder, domain) for domain in read_run(folder).config.leave_out)]


def main(argv: list[str]) -> int:
    """Run ``overread export``; returns 0."""
    parser = command_parser(
        "export",
        "Write model.onnx of a finished run and of its siblings: fit the domain distance on the training split, "
        "fold it in, and compare torch with onnxruntime on real images.",
        "overread export runs/cxr --data cxr",
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    add_sources(parser, "the folder given to overread train", "the label package given to overread train")
    options = parser.parse_args(argv)
    if verb_of(options.run) == SEGMENTER:
        from training.segmenter_export import export_segmenter  # it builds on this module

        return export_segmenter(options.run, read_sources(options, "segmentation"))
    images = load_run_images(options.run, read_sources(options, "classification"))
    for folder in run_folders(options.run):
        size, difference = export(folder, images)
        print(f"{folder / GRAPH}: {size / 1e6:.2f} MB, differs from torch by {difference:.1e} at most")
    return 0
