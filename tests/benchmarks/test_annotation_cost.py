"""The benchmark of expert minutes on drawn images: who sees what, one step of the published scale, minutes, ratios, goals."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import adaptation, cost_classifiers, cost_nuclei
from benchmarks.annotation_cost import line_of
from benchmarks.cost_cells import (
    ADAPTED,
    ARMS,
    BASELINE,
    CLASS_SECONDS,
    NUCLEI,
    POINTS,
    SELECTED,
    STYLE,
    TARGETS,
    TOGETHER,
    Cell,
    Curve,
    budgets,
    cells,
)
from benchmarks.cost_nuclei import AWAY, HOME, split, tiles
from benchmarks.cost_summary import draw, kind_of, ratio, reached, summarise, table
from benchmarks.domain_training import Recipe
from benchmarks.domains import SOURCES, Domains
from benchmarks.nuclei_cells import COMBINED, EXACT, MASKS
from benchmarks.nuclei_training import MASK_SECONDS, POINT_SECONDS, Slides, annotated, expert_minutes
from benchmarks.weak_nuclei import RECIPES as NUCLEI_RECIPES
from models.annotation import Annotation
from tests.training.segmenter_drawings import draw as draw_tissue
from training.adaptation_config import Adaptation
from training.segmenter import SegmenterTraining
from training.segmenter_crops import crop_loader
from training.segmenter_data import Tissue

RECIPE = Recipe(side=32, widths=(4, 8, 8, 8), blocks=1, steps=2, batch=8, learning_rate=0.01)


@pytest.fixture
def domains() -> Domains:
    """Random X-rays whose brightness tells their class; four hospitals, two images a patient."""
    random = np.random.default_rng(0)
    labels = np.arange(160) % 2
    images = random.integers(0, 120, (160, 1, 32, 32), dtype=np.uint8) + (labels * 100).astype(np.uint8)[:, None, None, None]
    where = np.repeat(["kermany_guangzhou", "nih_chestxray", "cohen_multi", "figure1_app"], 40)
    return Domains("cxr", images, labels, where, np.array([f"p{index // 2}" for index in range(160)]))


def slides(count: int, domain: str) -> Slides:
    """Return drawn tissue of 128 pixels a side, two images a patient, all of fold 0."""
    random = np.random.default_rng(0)
    found = []
    for number in range(count):
        quarters = [draw_tissue(random, 90) for _ in range(4)]
        colours, objects = (
            np.vstack([np.hstack([part[which] for part in quarters[:2]]), np.hstack([part[which] for part in quarters[2:]])])
            for which in (0, 1)
        )
        side = len(colours) // 2
        objects = objects.astype(np.int32)
        for place, window in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
            part = objects[window[0] * side : (window[0] + 1) * side, window[1] * side : (window[1] + 1) * side]
            part[part > 0] += 100 * place
        empty = Annotation(np.empty((0, 2)))
        image: Any = None
        found.append(Tissue(number, domain, domain, image, colours, empty, objects, objects > 0))
    return Slides(tuple(found), np.zeros(count, np.int64), np.array([f"p{number // 2}" for number in range(count)]))


def cell(arm: Any, data: str = "cxr") -> Cell:
    return Cell(data, "0" if data == NUCLEI else "nih_chestxray", arm, 0)


def test_every_scale_has_its_hospitals_and_every_step_alone() -> None:
    small = cells("small")
    assert len(small) == 3 * (3 * 5 + 6) == len({each.key for each in small})
    assert [each.seed for each in small] == sorted(each.seed for each in small)
    assert {each.arm for each in small if each.data != NUCLEI} == set(ARMS) - {POINTS}
    assert {each.arm for each in cells("smoke") if each.data == NUCLEI} == set(ARMS)
    assert {data for data, _ in TARGETS["paper"]} == {*SOURCES, NUCLEI}
    assert len([1 for data, _ in TARGETS["paper"] if data == NUCLEI]) == 3
    for step in (STYLE, ADAPTED, SELECTED, POINTS):
        assert sum([step.style, step.adapted, step.selected, step.points]) == 1
    assert TOGETHER.style and TOGETHER.adapted and TOGETHER.selected and TOGETHER.points  # noqa: PT018


def test_budgets_double_and_end_with_the_whole_pool() -> None:
    assert budgets(10, 75) == [10, 20, 40, 75]
    assert budgets(10, 10) == [10]
    assert budgets(10, 4) == [4]


@pytest.mark.parametrize("arm", [BASELINE, TOGETHER], ids=lambda arm: arm.name)
def test_no_test_image_of_the_hospital_is_trained_on_adapted_to_or_chosen(
    domains: Domains, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: Any
) -> None:
    monkeypatch.setitem(cost_classifiers.RECIPES, "smoke", RECIPE)
    pool = cost_classifiers.pool_of(cell(arm), domains)
    assert not set(domains.patients[pool.pool]) & set(domains.patients[pool.test])
    assert set(domains.domains[pool.pool]) == set(domains.domains[pool.test]) == {"nih_chestxray"}
    assert "nih_chestxray" not in set(domains.domains[pool.known])
    weights: list[torch.Tensor] = []
    real = cost_classifiers.tuned

    def watched(*given: Any) -> Any:
        network = real(*given)
        weights.append(torch.cat([value.flatten() for value in network.parameters()]).detach().clone())
        return network

    monkeypatch.setattr(cost_classifiers, "tuned", watched)
    first = cost_classifiers.curve(cell(arm), domains, "smoke", tmp_path)
    assert first.labels == [0, 10, 20]
    assert first.minutes == pytest.approx([0, 10 * CLASS_SECONDS / 60, 20 * CLASS_SECONDS / 60])
    assert first.test == 20
    for name in ("test", "pool"):  # folders of their own: what was adapted is kept, and would not be adapted again
        (tmp_path / name).mkdir()
    domains.images[pool.test] = 255 - domains.images[pool.test]
    cost_classifiers.curve(cell(arm), domains, "smoke", tmp_path / "test")
    assert torch.equal(weights[3], weights[1])
    domains.images[pool.pool] = 255 - domains.images[pool.pool]
    cost_classifiers.curve(cell(arm), domains, "smoke", tmp_path / "pool")
    assert not torch.equal(weights[5], weights[1])  # control: the pool does take part


def test_arms_begin_and_choose_as_they_say(domains: Domains, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cost_classifiers.RECIPES, "smoke", RECIPE)
    chosen: dict[str, list[list[int]]] = {}
    real = cost_classifiers.tuned

    def watched(start: Any, data: Any, recipe: Any, pool: Any, labelled: Any, *rest: Any) -> Any:
        chosen.setdefault(name, []).append(sorted(labelled.tolist()))
        return real(start, data, recipe, pool, labelled, *rest)

    monkeypatch.setattr(cost_classifiers, "tuned", watched)
    found = {}
    for arm in (BASELINE, STYLE, ADAPTED, SELECTED):
        name = arm.name
        found[arm] = cost_classifiers.curve(cell(arm), domains, "smoke", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == [
        "cxr-nih_chestxray-sagnet-strong-0.pt",
        "cxr-nih_chestxray-strong-0-with-source-adapted.pt",
        "cxr-nih_chestxray-strong-0.pt",
    ]
    assert found[BASELINE].scores[0] == found[SELECTED].scores[0]
    assert chosen[BASELINE.name] == chosen[STYLE.name] == chosen[ADAPTED.name]
    assert chosen[SELECTED.name][0] != chosen[BASELINE.name][0]
    assert all(len(set(part)) == count for part, count in zip(chosen[SELECTED.name], (10, 20), strict=True))
    assert chosen[SELECTED.name][-1] == chosen[BASELINE.name][-1]  # the whole pool in the end


@pytest.mark.parametrize("arm", [BASELINE, STYLE, ADAPTED], ids=lambda arm: arm.name)
def test_one_step_of_every_classifier_of_the_published_scale(
    domains: Domains, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: Any
) -> None:
    monkeypatch.setitem(adaptation.STEPS, "paper", (1, 1))
    monkeypatch.setattr(adaptation, "Adaptation", partial(Adaptation, rounds=1))
    recipe = replace(cost_classifiers.RECIPES["paper"], side=32, steps=1, batch=8)
    pool = cost_classifiers.pool_of(cell(arm), domains)
    start = cost_classifiers.begin(cell(arm), domains, recipe, "paper", pool, tmp_path).state_dict()
    start = {name: value.clone() for name, value in start.items()}
    network = cost_classifiers.tuned(start, domains, recipe, pool, pool.pool[:6], 1, 0)
    assert all(not torch.equal(value.detach(), start[name]) for name, value in network.named_parameters())
    assert cost_classifiers.TUNING["paper"].steps(10) == 200
    assert cost_classifiers.TUNING["paper"].steps(1000) == round(2 * 10 * 1000 / 64)


def test_patients_of_a_fold_are_marked_or_tested_on() -> None:
    given = slides(8, "monuseg_A")
    marked, test = split(given, 0, 0)
    assert len(marked) == len(test) == 4
    numbers = {part.number // 2 for part in marked}, {part.number // 2 for part in test}
    assert not numbers[0] & numbers[1]
    assert any({part.number for part in split(given, 0, seed)[1]} != {part.number for part in test} for seed in range(5))


def test_tiles_cover_an_image_and_cost_what_is_marked_in_them() -> None:
    (image,) = slides(1, "monuseg_A").images
    side = len(image.colours) // 2
    cut = tiles([image], side)
    assert len(cut) == 4
    assert {each.domain for each in cut} == {AWAY}
    assert sum(int(each.foreground.sum()) for each in cut if each.foreground is not None) == int(image.objects.astype(bool).sum())
    nuclei = sum(len(np.unique(each.objects)) - 1 for each in cut)
    assert expert_minutes(cut) == pytest.approx(nuclei * MASK_SECONDS / 60)
    points = annotated(cut, COMBINED, EXACT, 0)
    assert all(each.objects is None and each.foreground is None for each in points)
    assert expert_minutes(points) == pytest.approx(nuclei * POINT_SECONDS / 60)
    assert len(tiles([image], side + 1)) == 1  # what is left over is no tile


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_one_step_of_every_segmenter_of_the_published_scale(arm: Any) -> None:
    recipe = replace(NUCLEI_RECIPES["paper"], epochs=1, steps_per_epoch=1, batch_size=2, crop=32)
    given = [replace(each, domain=HOME) for each in slides(2, HOME).images] + tiles(slides(1, "m").images, 48)
    config = cost_nuclei.config_of(cell(arm, NUCLEI), recipe, (HOME, AWAY), 0, arm.points)
    assert (config.normalization, config.stain) == (("batch_instance", True) if arm.style else ("batch", False))
    module = SegmenterTraining(config)
    (images, labels), *_ = crop_loader(annotated(given, COMBINED if arm.points else MASKS, EXACT, 0), config, 0)
    loss, _ = module.losses(images, labels, joint=False)
    torch.autograd.backward(loss)
    assert torch.isfinite(loss)
    assert any(value.grad is not None and value.grad.abs().sum() > 0 for value in module.segmenter.parameters())


def test_a_curve_of_nuclei_is_paid_for_by_its_marks_and_leaves_only_what_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = replace(NUCLEI_RECIPES["smoke"], epochs=1, steps_per_epoch=1)
    monkeypatch.setitem(cost_nuclei.RECIPES, "smoke", tiny)
    monkeypatch.setitem(cost_nuclei.TUNING, "smoke", replace(cost_nuclei.TUNING["smoke"], side=72))
    home, away = slides(3, "dsb"), slides(4, "monuseg_A")
    lines = {
        arm: line_of(cell(arm, NUCLEI), "smoke", tmp_path, None, {"dsb18": home, NUCLEI: away}.get)
        for arm in (BASELINE, POINTS, TOGETHER)
    }
    assert {tuple(line["labels"]) for line in lines.values()} == {(0, 2, 4, 8)}
    assert lines[BASELINE]["minutes"][-1] / lines[POINTS]["minutes"][-1] == pytest.approx(MASK_SECONDS / POINT_SECONDS)
    assert lines[BASELINE]["scores"][0] == lines[POINTS]["scores"][0]
    assert lines[TOGETHER]["scores"][0] != lines[BASELINE]["scores"][0]
    assert sorted(path.name for path in (tmp_path / "annotation_cost").iterdir()) == ["plain-0", "style-0"]
    assert all(line["minutes"] == sorted(line["minutes"]) and line["minutes"][0] == 0 for line in lines.values())


def line(arm: Any, scores: list[float], seed: int = 0, data: str = "cxr", minutes: tuple[float, ...] = (0, 1, 2, 4)) -> Any:
    curve = Curve([0, 1, 2, 4], list(minutes), scores, 10)
    return {"data": data, "target": "x", "arm": arm.name, "seed": seed, **vars(curve)}


def test_minutes_are_read_off_between_budgets_and_not_reached_is_a_value() -> None:
    base = line(BASELINE, [0.5, 0.6, 0.8, 1.0])
    assert reached(base, base) == pytest.approx(2 + 2 * (0.95 - 0.8) / 0.2)
    assert ratio(base, base) == 1
    ours = line(TOGETHER, [0.5, 0.9, 1.0, 1.0])
    assert reached(ours, base) == pytest.approx(1.5)
    assert ratio(ours, base) == pytest.approx(3.5 / 1.5)
    at_once = line(TOGETHER, [0.96, 0.9, 0.9, 0.9])
    assert reached(at_once, base) == 0
    assert ratio(at_once, base) == pytest.approx(3.5)  # no label is counted as the smallest budget, 1 minute
    never = line(TOGETHER, [0.5, 0.6, 0.7, 0.9])
    assert reached(never, base) is None
    assert ratio(never, base) == 0
    idle = line(BASELINE, [1.0, 1.0, 1.0, 1.0])
    assert ratio(line(TOGETHER, [1.0, 1.0, 1.0, 1.0]), idle) == 1  # nothing to gain
    assert ratio(line(TOGETHER, [0.5, 1.0, 1.0, 1.0]), idle) == 0
    quick = line(BASELINE, [0.5, 1.0, 1.0, 1.0])
    assert ratio(quick, quick) == 1  # itself, though it needs less than the smallest budget
    assert ratio(line(TOGETHER, [0.96, 0.9, 0.9, 0.9]), quick) == 1
    assert ratio(line(TOGETHER, [0.5, 0.6, 1.0, 1.0]), quick) == pytest.approx(0.9 / 1.875)


def test_who_has_to_stay_needs_the_last_crossing_not_the_first() -> None:
    base = line(BASELINE, [0.5, 0.6, 0.8, 1.0])
    falling = line(TOGETHER, [0.5, 1.0, 0.9, 1.0])
    assert (reached(falling, base), reached(falling, base, stays=True)) == (pytest.approx(0.9), pytest.approx(3.0))
    assert ratio(falling, base, stays=True) == pytest.approx(3.5 / 3)
    lost = line(TOGETHER, [0.5, 1.0, 1.0, 0.9])
    assert reached(lost, base, stays=True) is None
    assert ratio(lost, base, stays=True) == 0 < ratio(lost, base)
    above = line(TOGETHER, [0.96, 1.0, 1.0, 1.0])  # control: never below
    assert reached(above, base, stays=True) == reached(above, base) == 0


def test_sums_pair_hospital_and_seed_and_goals_judge_the_median() -> None:
    done = [line(BASELINE, [0.5, 0.6, 0.8, 1.0], seed) for seed in (0, 1, 2)]
    done += [line(TOGETHER, [0.5, 0.9, 1.0, 1.0], seed) for seed in (0, 1)] + [line(TOGETHER, [0.5, 0.6, 0.7, 0.9], 2)]
    done += [line(STYLE, [0.5] * 4, seed) for seed in (0, 7)]  # no baseline of seed 7
    rows, goals = summarise(done)
    (row,) = [row for row in rows if (row["data"], row["arm"], row["metric"]) == ("classifiers", TOGETHER.name, "minutes")]
    assert (row["n"], row["reached"], row["mean"]) == (3, 2, pytest.approx(1.5))
    assert (row["ratio"], row["ratio_low"]) == (pytest.approx(3.5 / 1.5), 0)
    assert [(goal["goal"], goal["met"]) for goal in goals] == [(3.0, False)]
    (style,) = [row for row in rows if (row["data"], row["arm"], row["metric"]) == ("classifiers", STYLE.name, "minutes")]
    assert (style["n"], style["mean"], style["ratio"]) == (1, None, 0)
    shown = table(rows, goals)
    assert "not reached (0 of 1)" in shown
    assert f"Did not lower the minutes: {STYLE.name} (classifiers)." in shown
    assert "cxr, x (10 test images a run)" in shown
    assert "cxr, x" not in table(rows, goals, whole=False)
    better = [one | {"scores": [0.5, 1, 1, 1]} if one["arm"] == TOGETHER.name else one for one in done]
    faster = [one | {"minutes": [0, 0.1, 2, 4]} if one["arm"] == TOGETHER.name else one for one in better]
    assert summarise(faster)[1][0]["met"]  # control
    nuclei = [one | {"data": NUCLEI} for one in faster]
    assert [goal["goal"] for goal in summarise(faster + nuclei)[1]] == [5.0, 3.0]
    assert kind_of(NUCLEI) == "nuclei"


def test_the_picture_shows_every_hospital(tmp_path: Path) -> None:
    from benchmarks import report

    done = [line(arm, [0.5, 0.6, 0.8, 1.0], seed, data) for arm in ARMS for seed in (0, 1) for data in ("cxr", NUCLEI)]
    rows, _ = summarise(done)
    panels: list[Any] = []

    def watched(axes: Any) -> None:
        figure = axes.figure
        draw(rows, axes)
        panels.extend(figure.axes)

    report.plot(tmp_path / "x.json", watched)
    assert [panel.get_title() for panel in panels] == ["cxr, x", "monuseg, x"]
    assert all(len(panel.get_lines()) == len(ARMS) + 1 for panel in panels)
