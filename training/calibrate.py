"""``overread calibrate``: units and limits, fitted on the calibration split with the exported graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression

from models.card import Calibration, Finding, InputSpec, OutputSpec, Triage
from models.command import command_parser
from models.postprocess import RawOutputs
from models.predictor import Graph
from models.uncertainty import softmax
from training.config import SEGMENTER, RunConfig, read_run, sha256, verb_of, write_json
from training.data import ImageSet
from training.export import load_run_images, read_graph, run_folders
from training.sources import add_sources, read_sources

REPORT = "calibration.json"
SENSITIVITY = 0.90
REVIEW_PERCENTILE = 95.0

Floats = NDArray[np.float64]


def run_graph(graph: Graph, tensors: NDArray[np.float32], size: int = 32) -> RawOutputs:
    """Run the graph in batches of ``size`` and concatenate what it yields."""
    parts = [graph.run(tensors[start : start + size]) for start in range(0, len(tensors), size)]
    return RawOutputs(*(np.concatenate([getattr(part, name) for part in parts]) for name in RawOutputs.__dataclass_fields__))


def domain_weights(domains: list[str]) -> Floats:
    """Return weights, shape (N,), sum 1, with which every domain counts the same."""
    count = {name: domains.count(name) for name in domains}
    return np.array([1 / (count[name] * len(count)) for name in domains])


def cross_entropy(logits: NDArray[np.floating[Any]], labels: NDArray[np.int64], temperature: float) -> Floats:
    """Return the loss of each image, shape (N,), nats, after dividing the logits (N, K) by the temperature."""
    chosen = softmax(logits, temperature)[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.maximum(chosen, 1e-12)), dtype=np.float64)


def fit_temperature(logits: NDArray[np.floating[Any]], labels: NDArray[np.int64], weights: Floats) -> float:
    """Return the temperature in [0.1, 10] of the least weighted cross-entropy.

    References
    ----------
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599, section 4.2.
    """
    result = minimize_scalar(
        lambda log: float(weights @ cross_entropy(logits, labels, float(np.exp(log)))),
        bounds=(np.log(0.1), np.log(10)), method="bounded",
    )  # fmt: skip
    return float(np.exp(result.x))


def fit_loss(scores: NDArray[np.floating[Any]], losses: Floats, weights: Floats) -> tuple[tuple[float, float], ...]:
    """Return the knots (score, loss in nats) of the isotonic regression of the true losses on the scores."""
    fitted = IsotonicRegression(increasing=True, out_of_bounds="clip").fit(scores.astype(np.float64), losses, weights)
    return tuple((float(x), max(float(y), 0.0)) for x, y in zip(fitted.X_thresholds_, fitted.y_thresholds_, strict=True))


def quantiles(values: NDArray[np.floating[Any]], weights: Floats) -> tuple[float, ...]:
    """Return 101 weighted quantiles (0%, 1%, ..., 100%); the first is the minimum, the last the maximum."""
    found = np.quantile(values.astype(np.float64), np.linspace(0, 1, 101), weights=weights, method="inverted_cdf")
    return tuple(float(value) for value in found)


def operating_point(probabilities: Floats, positive: NDArray[np.bool_], weights: Floats) -> float:
    """Return the highest probability from which on at least 90% (by weight) of the positive images are called."""
    order = np.argsort(-probabilities[positive], kind="stable")
    reached = np.cumsum(weights[positive][order]) / weights[positive].sum()
    return float(probabilities[positive][order][int(np.argmax(reached >= SENSITIVITY - 1e-9))])


def inverted(tensors: NDArray[np.float32], spec: InputSpec) -> NDArray[np.float32]:
    """Return tensors whose grey values are turned round, as those of an X-ray with a wrong photometric interpretation."""
    return np.asarray(2 * (0.5 - spec.mean) / spec.std - tensors, dtype=np.float32)


def refuse_distance(home: NDArray[np.floating[Any]], weights: Floats, wrong: NDArray[np.floating[Any]]) -> float:
    """Return the distance from which on nothing is said.

    Parameters
    ----------
    home : array, shape (N,)
        Distances of the calibration images, with their ``weights``.
    wrong : array, shape (N,)
        Distances of the same images, inverted.

    Returns
    -------
    float
        The geometric mean of the 99% quantile at home and the median of the inverted images, but at least 1.1 times the
        former, where inverted images lie nearer than that. Quantiles, because the largest distance is one odd image's.
    """
    usual = quantiles(home, weights)[99]
    return max(float(np.sqrt(usual * np.median(wrong))), 1.1 * usual)


def calibrate(graph: bytes, images: ImageSet, config: RunConfig) -> dict[str, Any]:
    """Fit everything that the card says of units and limits.

    Parameters
    ----------
    graph : bytes
        ``model.onnx``.
    images : ImageSet
        The calibration split of the run's domains.

    Returns
    -------
    dict
        ``calibration``, ``output``, ``triage``: what :class:`models.card.ModelCard` takes; ``model_sha256``.
    """
    session = Graph(graph, threads=2)
    raw = run_graph(session, images.tensors)
    labels, weights = images.labels, domain_weights([row.domain for row in images.rows])
    temperature = fit_temperature(raw.logits, labels, weights)
    losses = cross_entropy(raw.logits, labels, temperature)
    index = config.classes.index(config.finding)
    threshold = operating_point(softmax(raw.logits, temperature)[:, index], labels == index, weights)
    wrong = run_graph(session, inverted(images.tensors, config.input)).domain_distance
    triage = Triage(
        review_loss_percentile=REVIEW_PERCENTILE,
        review_domain_percentile=REVIEW_PERCENTILE,
        refuse_domain_distance=refuse_distance(raw.domain_distance, weights, wrong),
    )
    method = (
        f"Fitted on {len(images.rows)} images of patients held out of training, every training domain weighted equally: "
        "temperature by least cross-entropy; expected loss by isotonic regression of the cross-entropy on the loss score. "
        "No unseen domain took part, so abroad predicted loss is an extrapolation. "
        f"Review from percentile {REVIEW_PERCENTILE:.0f}; "
        "refuse beyond the geometric mean of the 99% quantile of these images' domain distance and the median of the same images "
        "inverted, at least 1.1 times the former."
    )
    calibration = Calibration(
        temperature=temperature,
        loss_knots=fit_loss(raw.loss_score, losses, weights),
        loss_quantiles=quantiles(raw.loss_score, weights),
        domain_quantiles=quantiles(raw.domain_distance, weights),
        n=len(images.rows),
        method=method,
    )
    rule = f"Sensitivity {SENSITIVITY:.2f} on held-out calibration patients, every training domain weighted equally."
    finding = Finding(label=config.finding, operating_point=threshold, rule=rule)
    output = OutputSpec(classes=config.classes, findings=(finding,))
    parts = {"calibration": calibration, "output": output, "triage": triage}
    return {name: part.model_dump(mode="json") for name, part in parts.items()} | {"model_sha256": sha256(graph)}


def main(argv: list[str]) -> int:
    """Run ``overread calibrate``; returns 0."""
    parser = command_parser(
        "calibrate",
        "Fit temperature, expected loss, percentiles, operating point and limits on the calibration split of a run "
        "and of its siblings, with the exported graph.",
        "overread calibrate runs/cxr --data cxr",
    )
    parser.add_argument("run", type=Path, help="folder of the run, exported")
    add_sources(parser, "the folder given to overread train", "the label package given to overread train")
    options = parser.parse_args(argv)
    if verb_of(options.run) == SEGMENTER:
        from training.segmenter_calibrate import calibrate_segmenter  # it builds on this module

        return calibrate_segmenter(options.run, read_sources(options, "segmentation"))
    images = load_run_images(options.run, read_sources(options, "classification"))
    from training.unseen import add_unseen  # it builds on this module

    for folder in reversed(run_folders(options.run)):  # siblings first: their errors are part of the run's own calibration
        config = read_run(folder).config
        report = calibrate(read_graph(folder), images.where("calibration", config), config)
        if folder == options.run:
            add_unseen(report, folder, images)
        write_json(folder / REPORT, report)
        print(f"{folder / REPORT}: temperature {report['calibration']['temperature']:.2f}, "
              f"operating point {report['output']['findings'][0]['operating_point']:.3f}, "
              f"refuse beyond {report['triage']['refuse_domain_distance']:.2f}")  # fmt: skip
    return 0
