"""Measure a segmenter through the predictor that serves it, or check a released card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from models.card import SEGMENTER_OUTPUTS, Figure, ObjectSpec, SegmenterCard
from models.errors import Refusal
from models.predictor import Graph
from models.segmenter import SegmenterPredictor
from models.triage import judge
from training.calibrate import REPORT as CALIBRATION
from training.config import sha256, write_json
from training.evaluate import REPORT, compare, draft_parts, figures_of, show
from training.instance_metrics import aji, dice, foreground_iou, object_f1, panoptic_quality
from training.metrics import NOT_DEFINED, Columns, tell_refused
from training.seen import seen_document
from training.segmenter_calibrate import point_f1, tile_losses
from training.segmenter_config import SegmenterConfig, read_segmenter_run
from training.segmenter_data import Tissue, read_tissues, split_of
from training.segmenter_export import load_run_tissues
from training.sources import Sources

Floats = NDArray[np.float64]


def rank_correlation(doubt: Floats, loss: Floats) -> float:
    """Return Spearman's correlation of a doubt and the true loss over images; NaN where either is constant or images are < 3."""
    if len(loss) < 3 or np.ptp(doubt) == 0 or np.ptp(loss) == 0:
        return NOT_DEFINED
    return float(spearmanr(doubt, loss).statistic)


def _mean(name: str) -> Callable[[Columns], float]:
    return lambda columns: float(columns[name].mean())


METRICS: dict[str, Callable[[Columns], float]] = {
    **{
        name: _mean(name)
        for name in (
            "foreground_iou", "dice", "aji", "panoptic_quality", "object_f1", "point_f1", "true_loss", "predicted_loss",
            "share_review", "share_refuse",
        )
    },
    "rank_predicted_loss": lambda c: rank_correlation(c["predicted_loss"], c["true_loss"]),
    "rank_entropy": lambda c: rank_correlation(c["entropy"], c["true_loss"]),
    "rank_domain_distance": lambda c: rank_correlation(c["domain_distance"], c["true_loss"]),
}  # fmt: skip
"""Name of a figure -> its value from the columns of :func:`columns`: means over images, and rank correlations over them."""
NO_MASKS = "Not defined: no full masks among these images."
NO_RANKS = "Not defined: fewer than three images, or nothing varies among them."
NEED_MASKS = ("foreground_iou", "dice", "aji", "panoptic_quality", "object_f1")
CALLS = (*NEED_MASKS, "point_f1")
"""Figures of objects: under the verdict refuse the service calls none."""


def columns(predictor: SegmenterPredictor, images: Sequence[Tissue]) -> dict[str, NDArray[Any]]:
    """Predict, and line up what the metrics need.

    Returns
    -------
    dict of str to ndarray, each of shape (N,)
        Quality of the objects that are found, whatever the verdict (NaN without masks); true_loss and predicted_loss (1 - Dice,
        mean over an image's tiles), entropy, domain_distance; share_review, share_refuse (the verdict of the card's defaults).
    """
    lines: list[dict[str, float]] = []
    for tissue in images:
        segmentation, foreground = predictor.predict(tissue.image)
        found = segmentation.label_image
        boxes = [(tile.x, tile.y, tile.width, tile.height) for tile in segmentation.tiles]
        verdict = judge(segmentation, predictor.card.triage).verdict
        line = dict.fromkeys(NEED_MASKS, NOT_DEFINED) | {
            "point_f1": point_f1(tissue, found),
            "true_loss": float(tile_losses(tissue, foreground >= predictor.card.output.threshold, boxes).mean()),
            "predicted_loss": segmentation.predicted_loss, "entropy": segmentation.entropy,
            "domain_distance": segmentation.domain_distance,
            "share_review": float(verdict == "review"), "share_refuse": float(verdict == "refuse"),
        }  # fmt: skip
        if tissue.objects is not None:
            true = tissue.objects
            values = (foreground_iou(true, found), dice(true, found), aji(true, found))
            line |= dict(zip(NEED_MASKS, (*values, panoptic_quality(true, found)[0], object_f1(true, found)), strict=True))
        lines.append(line)
    return {name: np.array([line[name] for line in lines]) for name in lines[0]}


def measure(predictor: SegmenterPredictor, images: Sequence[Tissue]) -> list[Figure]:
    """Return the figures of every domain among the images, with intervals by resampling groups of images."""
    figures: list[Figure] = []
    for domain in sorted({each.domain for each in images}):
        members = [each for each in images if each.domain == domain]
        where: dict[str, Any] = {"domain": domain, "held_out": "patients", "subgroup": "all"}
        table = columns(predictor, members)
        with_masks = np.array([each.objects is not None for each in members])
        for names, chosen in ((NEED_MASKS, with_masks), (tuple(set(METRICS) - set(NEED_MASKS)), np.ones(len(members), bool))):
            part = {name: column[chosen] for name, column in table.items()}
            groups = [each.group for each, taken in zip(members, chosen, strict=True) if taken]
            if groups:
                found = figures_of(where, sorted(names), part, groups, METRICS, NO_RANKS)
                figures += tell_refused(found, CALLS, part["share_refuse"])
            else:
                nothing = {"value": None, "low": None, "high": None, "n": 0, "note": NO_MASKS}
                figures += [Figure.model_validate(where | nothing | {"metric": name}) for name in names]
    return figures


def draft(folder: Path) -> SegmenterPredictor:
    """Return the predictor of a run whose card is not written yet; refuses as :func:`training.evaluate.draft_parts`."""
    graph, parts = draft_parts(folder, read_segmenter_run(folder).config.input, ObjectSpec)
    # Not a card that could ship: only the parts that predicting needs.
    return SegmenterPredictor(SegmenterCard.model_construct(**parts), Graph(graph, outputs=SEGMENTER_OUTPUTS), sha256(graph))


def check_package(package: Path, data: Path | Sources) -> int:
    """Measure a released package again; return 0 if the card's figures hold within 0.001, else 1."""
    predictor = SegmenterPredictor.load(package)
    config = SegmenterConfig.model_validate(predictor.card.training.config)
    images = read_tissues(data, config)
    if images.sha256 != predictor.card.training.data_sha256:
        raise Refusal("data_invalid", "These are not the rows and images that the model was made from.")
    return compare(predictor.card, measure(predictor, images.where("test", config)))


def evaluate_segmenter(target: Path, data: Path | Sources) -> int:
    """Run ``overread evaluate`` for a segmenter; returns 0, or 1 if a released card's figures are not found again."""
    if (target / "card.json").exists():
        return check_package(target, data)
    predictor = draft(target)
    config = read_segmenter_run(target).config
    images = load_run_tissues(target, data)
    figures = measure(predictor, images.where("test", config))
    show(figures)
    calibration = (target / CALIBRATION).read_bytes()
    used = [(each.original, each.group) for each in images.images if split_of(each, config) != "test"]
    report = {"model_sha256": predictor.sha256, "calibration_sha256": sha256(calibration), "seen": seen_document(used)}
    write_json(target / REPORT, report | {"figures": [figure.model_dump(mode="json") for figure in figures]})
    return 0
