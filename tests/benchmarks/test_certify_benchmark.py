"""The replays of a site and of a learning curve, on data whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import certify, plan
from models.card import Finding, ModelCard, OutputSpec, Triage
from models.certificate import Answers
from training.learning_curve import Curve


def population(useful: bool) -> certify.Population:
    random = np.random.default_rng(0)
    chance = random.beta(0.6, 0.6, 4000)
    labels = (random.random(4000) < (chance if useful else 0.5)).astype(np.int64)
    doubt = np.minimum(chance, 1 - chance)
    answers = Answers(np.column_stack([1 - chance, chance]), doubt, 200 * doubt, np.zeros(4000, bool))
    output = OutputSpec(classes=("a", "b"), findings=(Finding(label="b", operating_point=0.5, rule="given"),))
    limits = Triage(review_loss_percentile=95, review_domain_percentile=95, refuse_domain_distance=9)
    return certify.Population("photo", ModelCard.model_construct(output=output, triage=limits), answers, labels)


def test_the_truth_of_a_replay_is_that_of_the_population() -> None:
    whole = population(True)
    called = whole.answers.probabilities[:, 1] >= 0.5
    truth, rho = certify.correlation(whole, "sensitivity")
    assert truth == pytest.approx(called[whole.labels == 1].mean())
    assert rho > 0.4
    assert abs(certify.correlation(population(False), "error")[1]) < 0.06


def test_replays_count_what_holds_and_useful_predictions_narrow_more_than_useless_ones() -> None:
    found = {}
    for useful in (True, False):
        rows = {row["figure"]: row for row in certify.replay(population(useful), "random", 100, 40)}
        assert set(rows) == {*certify.RATES, "loss"}
        assert all(row["coverage"] >= 0.8 for row in rows.values())
        assert rows["error"]["n"] == 40
        found[useful] = rows["error"]["ratio"]
    assert found[True] < 0.95 < found[False] <= 1.05


def test_a_promise_that_is_broken_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = population(True)
    honest = certify.promises(whole, 200, 40)
    assert honest["made"] > 0.2
    assert honest["broken"] <= 0.1
    monkeypatch.setitem(certify.ACCEPTED_ERROR, "photo", 0.3)
    assert certify.promises(whole, 200, 20)["made"] == 1
    wrong = certify.Population(
        "photo", whole.card, whole.answers, np.where(np.arange(4000) % 2 == 0, whole.labels, 1 - whole.labels)
    )
    assert certify.promises(wrong, 200, 20)["made"] < 0.2


def test_hidden_sizes_are_compared_with_what_was_foretold() -> None:
    random = np.random.default_rng(0)
    law = Curve(2.0, 0.35, 0.1)
    scores = {
        n: {seed: 1 - float(law.error(n)) * float(np.exp(random.normal(0, 0.02))) for seed in range(4)}
        for n in (100, 200, 400, 800, 1600, 3200, 6400)
    }
    rows = {row["times"]: row for row in plan.foretold("drawn", scores)}
    assert set(rows) == {2, 4}
    assert rows[2]["coverage"] >= 0.8
    assert rows[2]["gap"] < 0.02
    broken = {n: {seed: 0.1 if n > 1600 else score for seed, score in seeds.items()} for n, seeds in scores.items()}
    worse = {row["times"]: row for row in plan.foretold("drawn", broken)}
    assert worse[2]["coverage"] < 0.7
    assert worse[2]["gap"] > 0.1
