"""The loss to expect where nobody was trained: from siblings' errors on what they never saw, and from nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from models.card import Calibration
from models.predictor import Graph
from models.uncertainty import entropy, predicted_loss_unseen, softmax
from training.calibrate import cross_entropy, fit_loss, run_graph
from training.config import read_run
from training.evaluate import draft
from training.export import load_run_images, read_graph
from training.unseen import UNSEEN, add_unseen, expected, unseen_knots


def calibration(knots: tuple[tuple[float, float], ...] | None) -> Calibration:
    ramp = tuple(float(value) for value in np.linspace(0, 1, 101))
    return Calibration(
        temperature=1, loss_knots=((0, 0.1), (1, 0.2)), loss_quantiles=ramp, domain_quantiles=ramp, n=1, method="given",
        unseen_loss_knots=knots,
    )  # fmt: skip


def test_every_domain_counts_the_same() -> None:
    few, many = (np.array([0.0, 1.0]), np.array([4.0, 4.0])), (np.tile([0.0, 1.0], 50), np.full(100, 1.0))
    knots = unseen_knots([few, many])
    assert [loss for _, loss in knots] == pytest.approx([2.5, 2.5])
    assert np.mean(np.concatenate([few[1], many[1]])) < 1.1  # control: by images it would be


def test_an_end_does_not_rest_on_a_few_images() -> None:
    entropies, losses = np.linspace(0.1, 0.6, 1000), np.full(1000, 1.5)
    losses[:5] = 0.0  # the surest of all, and right
    knots = unseen_knots([(entropies, losses)])
    assert knots[0] == pytest.approx((entropies[:50].mean(), 1.5 * 45 / 50))
    assert knots[-1] == pytest.approx((entropies[-50:].mean(), 1.5))
    by_image = fit_loss(entropies, losses, np.full(1000, 1 / 1000))
    assert by_image[0][1] == 0  # control


def test_entropy_that_misleads_there_is_not_followed() -> None:
    entropies = np.linspace(0, 0.69, 50)
    assert np.ptp([loss for _, loss in unseen_knots([(entropies, 2 - entropies)])]) == pytest.approx(0)
    for entropy_there, loss in unseen_knots([(entropies, 2 + entropies)]):
        assert loss == pytest.approx(2 + entropy_there)


def test_what_is_expected_of_a_domain_was_fitted_to_the_others_alone() -> None:
    entropies = np.array([0.0, 0.5])
    tables = {name: {"entropy": entropies, "true_loss": np.full(2, loss)} for name, loss in (("a", 1.0), ("b", 2.0), ("c", 6.0))}
    found = expected(tables, calibration(None))
    assert {name: value.tolist() for name, value in found.items()} == {"a": [4.0] * 2, "b": [3.5] * 2, "c": [1.5] * 2}
    assert expected({"a": tables["a"]}, calibration(None)) == {}


def test_a_runs_own_is_that_of_its_siblings(finished: tuple[Path, Path]) -> None:
    run, data = finished
    images = load_run_images(run, data)
    known = Calibration.model_validate(json.loads((run / "calibration.json").read_text())["calibration"])
    errors = []
    for domain in ("east", "west"):
        theirs = run / f"without_{domain}"
        temperature = draft(theirs).card.calibration.temperature
        part = images.of(domain)
        assert {row.domain for row in part.rows} == {domain}
        logits = run_graph(Graph(read_graph(theirs)), part.tensors).logits
        errors.append((entropy(softmax(logits, temperature)), cross_entropy(logits, part.labels, temperature)))
    assert known.unseen_loss_knots == unseen_knots(errors)
    means = [losses.mean() for _, losses in errors]
    said = np.mean([predicted_loss_unseen(value, known) for entropies, _ in errors for value in entropies])
    assert said == pytest.approx(np.mean(means), rel=0.05)  # both domains have 120 images
    assert "240 images of 2 domains" in known.method
    assert "unseen_loss_knots" not in json.loads((run / "without_east" / "calibration.json").read_text())["calibration"]
    figures = json.loads((run / "evaluation.json").read_text())["figures"]
    abroad = {
        each["domain"]: each for each in figures
        if each["held_out"] == "domain" and each["metric"] == UNSEEN and each["subgroup"] == "all"
    }  # fmt: skip
    assert abroad["east"]["value"] == pytest.approx(
        np.mean([predicted_loss_unseen(value, calibration(unseen_knots(errors[1:]))) for value in errors[0][0]]), abs=1e-5
    )
    assert abroad["east"]["low"] <= abroad["east"]["value"] <= abroad["east"]["high"]


def test_without_siblings_nothing_is_said(finished: tuple[Path, Path]) -> None:
    run, data = finished
    report = {"calibration": {"method": "given"}}
    theirs = run / "without_east"
    assert not read_run(theirs).config.leave_out
    add_unseen(report, theirs, load_run_images(run, data))
    assert report == {"calibration": {"method": "given"}}
    assert predicted_loss_unseen(0.3, calibration(None)) is None
    assert "unseen_loss_knots" not in calibration(None).model_dump(mode="json")
