"""Units and limits of a segmenter, fitted on the tiles of its calibration images with the exported graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from models.card import SEGMENTER_OUTPUTS, Calibration, ObjectSpec, Triage
from models.predictor import Graph
from models.separation import separate
from training.calibrate import REPORT, REVIEW_PERCENTILE, domain_weights, fit_loss, quantiles, refuse_distance
from training.config import sha256, write_json
from training.export import read_graph
from training.instance_metrics import aji
from training.segmenter_config import SegmenterConfig, read_segmenter_run
from training.segmenter_data import Objects, Tissue
from training.segmenter_export import cut, load_run_tissues
from training.sources import Sources
from training.weak_labels import known_region, marked_nuclei, voronoi_labels

MAX_PIXELS = 16_000_000
THRESHOLDS = (0.5, 0.45, 0.55, 0.4, 0.6, 0.35, 0.65, 0.3, 0.7, 0.25, 0.75, 0.2, 0.8)
"""The nearest to 0.5 first: of equally good ones it is chosen."""
SMOOTHINGS = (1.0, 0.5, 2.0, 3.0)
PEAK_DISTANCES = (5, 3, 8, 12)
MIN_AREAS = (20, 40, 80, 160)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What the graph says of one image.

    Attributes
    ----------
    foreground : ndarray, float32, shape (rows, columns)
        Probabilities.
    boxes : list of (x, y, width, height)
        The part of every tile that lies in the image.
    scores, distances : ndarray, float32, shape (T,)
        Of the tiles.
    """

    foreground: NDArray[np.float32]
    boxes: list[tuple[int, int, int, int]]
    scores: NDArray[np.float32]
    distances: NDArray[np.float32]


def run_graph(graph: Graph, tissue: Tissue, config: SegmenterConfig) -> Found:
    """Run the graph on an image, tile by tile, as the predictor does."""
    tiling, tiles = cut(tissue, config)
    runs = [graph.values(tiles[start : start + 8]) for start in range(0, len(tiles), 8)]
    maps, _, scores, distances = (np.concatenate(part) for part in zip(*runs, strict=True))
    return Found(expit(tiling.blend(maps[:, 0])), tiling.boxes(), scores, distances)


def point_f1(tissue: Tissue, labels: Objects) -> float:
    """Return 2 TP / (marks + objects), TP being the objects that hold exactly one mark: what marks alone can say.

    An object holds the points in it, and the strokes and outlines that have most of their pixels in it. Where only some nuclei
    are marked, none but the objects that hold a mark count; where all nuclei of a region are, the objects that reach into it too.
    """
    marks, count = marked_nuclei(tissue.annotation, *labels.shape), int(labels.max(initial=0)) + 1
    at = marks > 0
    pairs, pixels = np.unique(marks[at] * np.int64(count) + labels[at], return_counts=True)
    mark, held_by = np.divmod(pairs, count)
    order = np.lexsort((pixels, mark))
    last = np.append(mark[order][1:] != mark[order][:-1], np.ones(min(1, len(mark)), bool))
    held = np.bincount(held_by[order][last], minlength=count)[1:]
    judged = held > 0
    if tissue.annotation.complete:
        judged |= np.bincount(labels[known_region(tissue.annotation, *labels.shape)], minlength=count)[1:] > 0
    total = np.count_nonzero(last) + np.count_nonzero(judged)
    return float(2 * (held == 1).sum() / total) if total else 1.0


def quality(tissue: Tissue, labels: Objects) -> float:
    """Return AJI where masks are known, the F1 of points elsewhere."""
    return point_f1(tissue, labels) if tissue.objects is None else aji(tissue.objects, labels)


def tile_losses(tissue: Tissue, foreground: NDArray[np.bool_], boxes: Sequence[tuple[int, int, int, int]]) -> Floats:
    """Return 1 - Dice of every tile, shape (T,): against masks where they are known, elsewhere against the Voronoi labels.

    A tile without foreground on either side has the loss 0.
    """
    known: NDArray[np.integer[Any]]
    known = (
        voronoi_labels(tissue.annotation, *foreground.shape) if tissue.objects is None else (tissue.objects > 0).astype(np.int8)
    )
    losses = []
    for x, y, width, height in boxes:
        true, found = known[y : y + height, x : x + width], foreground[y : y + height, x : x + width]
        sizes = np.count_nonzero(true == 1) + np.count_nonzero(found & (true >= 0))
        losses.append(1 - 2 * np.count_nonzero(found & (true == 1)) / sizes if sizes else 0.0)
    return np.array(losses)


def choose(images: Sequence[Tissue], foregrounds: Sequence[NDArray[np.float32]], config: SegmenterConfig) -> ObjectSpec:
    """Choose threshold and separation by the mean :func:`quality`, every domain weighted equally.

    The threshold first, with the first of all other values; then the others.
    """
    weights = domain_weights([each.domain for each in images])
    masks = sum(each.objects is not None for each in images)
    rule = (
        f"The highest mean quality of objects on {len(images)} held-out calibration images, every training domain weighted "
        f"equally: AJI by the full masks of {masks} of them, F1 of points (an object is right if it holds exactly one) by the "
        "points of the others; the threshold first, then the separation."
    )
    spec = ObjectSpec(
        label=config.label, threshold=THRESHOLDS[0], separation="distance_watershed", smoothing=SMOOTHINGS[0],
        peak_distance=PEAK_DISTANCES[0], min_area=MIN_AREAS[0], overlap=config.overlap, max_pixels=MAX_PIXELS, rule=rule,
    )  # fmt: skip

    def score(candidate: ObjectSpec) -> float:
        each = [quality(tissue, separate(found, candidate)) for tissue, found in zip(images, foregrounds, strict=True)]
        return float(weights @ np.array(each))

    spec = max((spec.model_copy(update={"threshold": value}) for value in THRESHOLDS), key=score)
    names = ("smoothing", "peak_distance", "min_area")
    options = product(SMOOTHINGS, PEAK_DISTANCES, MIN_AREAS)
    return max((spec.model_copy(update=dict(zip(names, values, strict=True))) for values in options), key=score)


def calibrate(graph: bytes, images: Sequence[Tissue], config: SegmenterConfig) -> dict[str, Any]:
    """Fit everything that the card says of units and limits.

    Parameters
    ----------
    graph : bytes
        ``model.onnx``.
    images : sequence of Tissue
        The calibration split.

    Returns
    -------
    dict
        ``calibration``, ``output``, ``triage``: what :class:`models.card.SegmenterCard` takes; ``model_sha256``.
    """
    session = Graph(graph, outputs=SEGMENTER_OUTPUTS)
    found = [run_graph(session, each, config) for each in images]
    spec = choose(images, [each.foreground for each in found], config)
    wrong = [run_graph(session, replace(each, colours=255 - each.colours), config).distances for each in images]
    losses = np.concatenate([
        tile_losses(tissue, each.foreground >= spec.threshold, each.boxes) for tissue, each in zip(images, found, strict=True)
    ])  # fmt: skip
    scores, distances = (np.concatenate([getattr(each, name) for each in found]) for name in ("scores", "distances"))
    weights = domain_weights([tissue.domain for tissue, each in zip(images, found, strict=True) for _ in each.boxes])
    triage = Triage(
        review_loss_percentile=REVIEW_PERCENTILE,
        review_domain_percentile=REVIEW_PERCENTILE,
        refuse_domain_distance=refuse_distance(distances, weights, np.concatenate(wrong)),
    )
    masks = sum(each.objects is not None for each in images)
    method = (
        f"Fitted on {len(losses)} tiles of {len(images)} images held out of training, every training domain weighted equally: "
        f"expected loss by isotonic regression of 1 - Dice of a tile on the loss score, Dice by the full masks of {masks} images "
        "and by points and the lines halfway between them for the others. Percentiles are among tiles; an image's is the highest "
        "that more than a third of its tiles reach, two at least where there are two. The temperature is 1: "
        "probabilities are not calibrated. No unseen domain took part, so abroad predicted loss is an extrapolation. "
        f"Review from percentile {REVIEW_PERCENTILE:.0f}; refuse beyond the geometric mean of the 99% quantile of these tiles' "
        "domain distance and the median of the same tiles inverted, at least 1.1 times the former."
    )
    calibration = Calibration(
        temperature=1.0, loss_knots=fit_loss(scores, losses, weights), loss_quantiles=quantiles(scores, weights),
        domain_quantiles=quantiles(distances, weights), n=len(losses), method=method,
    )  # fmt: skip
    parts = {"calibration": calibration, "output": spec, "triage": triage}
    return {name: part.model_dump(mode="json") for name, part in parts.items()} | {"model_sha256": sha256(graph)}


def calibrate_segmenter(folder: Path, data: Path | Sources) -> int:
    """Run ``overread calibrate`` for a segmenter; returns 0."""
    config = read_segmenter_run(folder).config
    report = calibrate(read_graph(folder), load_run_tissues(folder, data).where("calibration", config), config)
    write_json(folder / REPORT, report)
    spec = report["output"]
    print(f"{folder / REPORT}: threshold {spec['threshold']:.2f}, smoothing {spec['smoothing']:g}, "
          f"peak distance {spec['peak_distance']}, least area {spec['min_area']}, "
          f"refuse beyond {report['triage']['refuse_domain_distance']:.2f}")  # fmt: skip
    return 0
