"""What is said of a site, on answers whose truth is known."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from models.certificate import Answers, View, compare, figures, predictive_limits, triage
from models.certificate_page import accepted, intervals
from models.estimates import Sample, rate
from models.sampling import draw, even
from tests.conftest import tiny_card, tiny_graph

CARD = tiny_card(tiny_graph())
FINDING = CARD.output.findings


def answers(chance: np.ndarray, held_back: np.ndarray | None = None) -> Answers:
    wrong = np.minimum(chance, 1 - chance)
    none = np.zeros(len(chance), bool)
    return Answers(np.column_stack([1 - chance, chance]), wrong, 200 * wrong, none if held_back is None else held_back)


def world(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    chance = random.beta(0.5, 0.5, count)
    return chance, (random.random(count) < chance).astype(np.int64)


def sampled(count: int, n: int, seed: int = 0) -> Sample:
    index = draw(even(count, n), seed)
    return Sample(index, np.full(n, n / count))


def test_with_every_label_the_figures_are_those_of_the_site() -> None:
    chance, labels = world(400)
    sample = sampled(400, 400)
    found = {figure["metric"]: figure for figure in figures(CARD, answers(chance), labels[sample.index], sample)}
    called = chance >= 0.5
    assert found["error"]["value"] == pytest.approx((called != labels).mean())
    assert found["sensitivity"]["value"] == pytest.approx(called[labels == 1].mean())
    assert found["specificity"]["value"] == pytest.approx((~called)[labels == 0].mean())
    assert found["positive_predictive_value"]["value"] == pytest.approx(labels[called].mean())
    assert found["negative_predictive_value"]["value"] == pytest.approx(1 - labels[~called].mean())
    own = np.where(labels == 1, chance, 1 - chance)
    assert found["loss"]["value"] == pytest.approx(-np.log(np.maximum(own, 1e-12)).mean())
    assert all(figure["low"] < figure["value"] < figure["high"] for figure in found.values())


def test_what_no_label_shows_has_no_value() -> None:
    chance = np.linspace(0, 0.4, 100)  # nothing is called
    sample = sampled(100, 30)
    found = {figure["metric"]: figure for figure in figures(CARD, answers(chance), np.arange(30) % 2, sample)}
    assert found["positive_predictive_value"]["value"] is None
    assert found["positive_predictive_value"]["note"]
    assert found["sensitivity"]["value"] == 0
    assert ElementTree.fromstring(intervals(list(found.values()))) is not None


def test_predictive_values_are_promised_where_they_hold_and_not_where_they_do_not() -> None:
    chance, labels = world(20_000)
    sample = sampled(20_000, 1500)
    view = View.of(FINDING[0], CARD, answers(chance))
    positive, negative = predictive_limits(view, labels[sample.index], sample, 0.9, 0.95)
    assert labels[chance >= positive["limit"]].mean() >= 0.9
    assert 1 - labels[chance <= negative["limit"]].mean() >= 0.95
    assert positive["share"] == pytest.approx((chance >= positive["limit"]).mean())
    turned = predictive_limits(view, 1 - labels[sample.index], sample, 0.9, 0.95)
    assert [limit["limit"] for limit in turned] == [None, None]
    assert [limit["needed"] for limit in turned] == [29, 59]


def test_triage_accepts_as_much_as_its_error_allows() -> None:
    chance, labels = world(20_000)
    held = np.arange(20_000) % 10 == 0
    sample = sampled(20_000, 2000)
    given = answers(chance, held)
    found = triage(View.of(FINDING[0], CARD, given), given, labels[sample.index], sample, CARD, 1000, 0.05)
    site = found["site"]
    kept = (given.loss_percentile < site["limit"]) & ~held
    assert ((chance >= 0.5) != labels)[kept].mean() <= 0.05
    assert site["accepted"] == pytest.approx(kept.sum() / 21_000)
    assert site["accepted"] + site["reviewed"] + site["refused"] == pytest.approx(1)
    assert site["accepted"] > 0.25
    assert found["card"]["limit"] == CARD.triage.review_loss_percentile
    few = sampled(20_000, 30)
    assert triage(View.of(FINDING[0], CARD, given), given, labels[few.index], few, CARD, 0, 0.05)["site"] is None
    drawn = ElementTree.fromstring(accepted(found))
    assert sum(element.tag == "polyline" for element in drawn) == 2


def test_a_promised_error_is_broken_as_seldom_as_it_says() -> None:
    broken = made = 0
    for seed in range(300):
        chance, labels = world(3000, seed)
        given = answers(chance)
        sample = sampled(3000, 300, seed)
        site = triage(View.of(FINDING[0], CARD, given), given, labels[sample.index], sample, CARD, 0, 0.08)["site"]
        if site is not None:
            made += 1
            broken += ((chance >= 0.5) != labels)[given.loss_percentile < site["limit"]].mean() > 0.08
    assert made > 150
    assert broken <= 0.08 * 300


@pytest.mark.parametrize(("images", "n"), [(2000, 400), (400, 400)])
def test_a_promise_is_kept_where_the_labels_follow_the_predictions(images: int, n: int) -> None:
    """One call in ten is hopeless and known to be, the others are certain, and no limit tells them apart.

    Every limit's error is 0.1, so every promise of less is broken. A limit chosen because few of the *labelled* images within it
    look hopeless would be promised in 13 of 100 draws: few of them are few errors.
    """
    random = np.random.default_rng(n + images)
    finding = FINDING[0].model_copy(update={"operating_point": 0.01})  # whatever comes is called
    broken = 0
    for _ in range(400):
        chance = np.where(random.random(images) < 0.1 / 0.95, 0.05, 1.0)
        labels = (random.random(images) < chance).astype(np.int64)
        given = Answers(np.column_stack([1 - chance, chance]), 1 - chance, 100 * random.random(images), np.zeros(images, bool))
        index = random.choice(images, n, replace=False)
        sample = Sample(index, np.full(n, n / images))
        found = triage(View.of(finding, CARD, given), given, labels[index], sample, CARD, 0, 0.1 - 1e-9)
        broken += found["site"] is not None
    assert broken <= 0.072 * 400  # 0.05, and two deviations of 400 draws


def test_the_same_model_does_not_differ_and_a_better_one_does() -> None:
    chance, labels = world(5000)
    sample = sampled(5000, 300)
    given = answers(chance)
    same, loss = compare(CARD, given, FINDING, given, labels[sample.index], sample)
    assert (same["value"], same["disagreement"], same["n"]) == (None, 0, 0)
    assert -0.002 < same["low"] <= 0 <= same["high"] < 0.002
    assert (loss["value"], loss["low"], loss["high"]) == (0, 0, 0)
    noisy = answers(np.where(np.arange(5000) % 4 == 0, 1 - chance, chance))
    worse, loss = compare(CARD, noisy, FINDING, given, labels[sample.index], sample)
    truth = ((noisy.probabilities[:, 1] >= 0.5) != labels).mean() - ((chance >= 0.5) != labels).mean()
    assert 0 < worse["low"] < truth < worse["high"]
    assert loss["low"] > 0
    better, _ = compare(CARD, given, FINDING, noisy, labels[sample.index], sample)
    assert (better["value"], better["low"], better["high"]) == pytest.approx((-worse["value"], -worse["high"], -worse["low"]))


def test_a_difference_holds_as_often_as_it_says_and_is_narrower_than_two_figures_apart() -> None:
    chance, labels = world(200_000)
    other = np.clip(chance + np.random.default_rng(1).normal(size=200_000) * 0.2, 0.001, 0.999)
    calls = {True: chance >= 0.5, False: other >= 0.5}
    truth = (calls[True] != labels).mean() - (calls[False] != labels).mean()
    held, widths = [], []
    for seed in range(200):
        images = np.random.default_rng(seed).integers(0, 200_000, 1000)
        sample = sampled(1000, 150, seed)
        found = compare(CARD, answers(chance[images]), FINDING, answers(other[images]), labels[images][sample.index], sample)[0]
        held.append(found["low"] <= truth <= found["high"])
        apart = [
            rate((call[images] != labels[images])[sample.index], np.ones(150), np.ones(1000), np.ones(1000), sample)
            for call in calls.values()
        ]
        widths.append((found["high"] - found["low"]) / np.hypot(*(one.high - one.low for one in apart if one)))
    assert np.mean(held) >= 0.93  # few labels tell: it is rather too wide
    assert np.mean(widths) < 0.8
