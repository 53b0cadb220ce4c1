import json
from pathlib import Path

import numpy as np
import pytest

from models.card import Calibration, OutputSpec, Triage
from models.uncertainty import percentile, predicted_loss
from training import calibrate
from training.calibrate import (
    cross_entropy,
    domain_weights,
    fit_loss,
    fit_temperature,
    inverted,
    operating_point,
    quantiles,
    refuse_distance,
    run_graph,
)
from training.config import read_input_spec, read_run
from training.export import load_run_images, read_graph


def test_weights_count_every_domain_the_same() -> None:
    weights = domain_weights(["a"] * 6 + ["b"] * 2)
    assert weights[:6].sum() == pytest.approx(0.5)
    assert weights[6:].sum() == pytest.approx(0.5)


def test_cross_entropy_of_a_known_case() -> None:
    logits = np.array([[0.0, 0.0], [np.log(3.0), 0.0]])
    np.testing.assert_allclose(cross_entropy(logits, np.array([0, 1]), 1.0), [np.log(2), np.log(4)])


def test_temperature_undoes_an_overconfidence() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (4000, 2))
    chance = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    labels = (random.random(4000) < chance).astype(np.int64)
    weights = np.full(4000, 1 / 4000)
    assert fit_temperature(logits, labels, weights) == pytest.approx(1, abs=0.1)
    assert fit_temperature(logits * 3, labels, weights) == pytest.approx(3, abs=0.3)


def test_expected_loss_is_calibrated_and_monotone() -> None:
    random = np.random.default_rng(0)
    scores = random.normal(size=3000)
    losses = random.exponential(np.exp(scores))
    weights = np.full(3000, 1 / 3000)
    knots = fit_loss(scores, losses, weights)
    table = np.array(knots)
    assert (np.diff(table[:, 0]) > 0).all()
    assert (np.diff(table[:, 1]) >= 0).all()
    calibration = Calibration(
        temperature=1, loss_knots=knots, loss_quantiles=quantiles(scores, weights), domain_quantiles=quantiles(scores, weights),
        n=3000, method="",
    )  # fmt: skip
    found = predicted_loss(scores, calibration)
    assert found.mean() == pytest.approx(losses.mean(), rel=1e-3)
    high = scores > 1
    assert found[high].mean() == pytest.approx(np.exp(scores[high]).mean(), rel=0.15)


def test_quantiles_and_percentiles_invert_each_other() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    table = quantiles(values, np.full(1000, 1 / 1000))
    assert len(table) == 101
    assert (table[0], table[100]) == (values.min(), values.max())
    assert np.abs(percentile(np.sort(values), table) - np.linspace(0, 100, 1000)).max() < 1.5


def test_quantiles_are_weighted() -> None:
    values = np.concatenate([np.zeros(900), np.ones(100)])
    weights = domain_weights(["a"] * 900 + ["b"] * 100)
    assert quantiles(values, weights)[60] == 1
    assert quantiles(values, np.full(1000, 1 / 1000))[60] == 0


def test_operating_point_is_the_highest_that_reaches_the_sensitivity() -> None:
    probabilities = np.arange(20) / 20
    positive = np.arange(20) >= 10
    weights = np.full(20, 1 / 20)
    threshold = operating_point(probabilities, positive, weights)
    assert (probabilities >= threshold)[positive].mean() == pytest.approx(0.9)
    assert (probabilities > threshold)[positive].mean() < 0.9


def test_inverted_turns_grey_values_round(spec_file: Path) -> None:
    spec = read_input_spec(spec_file)
    grey = np.random.default_rng(0).random((2, 1, 4, 4))
    tensors = ((grey - spec.mean) / spec.std).astype(np.float32)
    np.testing.assert_allclose(inverted(tensors, spec) * spec.std + spec.mean, 1 - grey, atol=1e-6)


def test_refuse_distance_lies_between_home_and_inverted_and_never_inside_home() -> None:
    home, weights = np.linspace(0.5, 1.0, 101), np.full(101, 1 / 101)
    assert quantiles(home, weights)[99] < refuse_distance(home, weights, np.full(5, 4.0)) < 4
    assert refuse_distance(home, weights, np.full(5, 0.1)) > 1


def test_report_is_what_a_card_takes(finished: tuple[Path, Path]) -> None:
    run, data = finished
    report = json.loads((run / "calibration.json").read_text())
    calibration = Calibration.model_validate(report["calibration"])
    output = OutputSpec.model_validate(report["output"])
    Triage.model_validate(report["triage"])
    assert output.classes == ("normal", "spot")
    assert output.findings[0].label == "spot"
    assert "0.90" in output.findings[0].rule
    images = load_run_images(run, data).where("calibration", read_run(run).config)
    assert calibration.n == len(images.rows)
    assert "held out" in calibration.method
    again = calibrate.calibrate(read_graph(run), images, read_run(run).config)
    assert "unseen_loss_knots" not in again["calibration"]  # it takes siblings: tests/training/test_unseen.py
    assert {name: report[name] for name in ("output", "triage")} == {name: again[name] for name in ("output", "triage")}
    assert report["calibration"] | again["calibration"] == report["calibration"] | {"method": again["calibration"]["method"]}


def test_batches_are_put_together_in_order(finished: tuple[Path, Path]) -> None:
    run, data = finished
    graph = calibrate.Graph(read_graph(run))
    tensors = load_run_images(run, data).tensors[:10]
    whole, parts = run_graph(graph, tensors, 10), run_graph(graph, tensors, 3)
    np.testing.assert_allclose(whole.logits, parts.logits, atol=1e-5)
    assert parts.heatmap.shape == whole.heatmap.shape
