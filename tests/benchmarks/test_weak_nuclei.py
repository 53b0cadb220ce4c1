"""The benchmark of nuclei on drawn tissue: what each row may see, one step of the published scale, going on."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import nuclei_training, report, weak_nuclei
from benchmarks.nuclei_cells import COMBINED, CURVE_FOLD, EXACT, MASKS, METHODS, NOISY, OTHERWISE, VORONOI, cells
from benchmarks.nuclei_scores import choose_separation, drawn, measure
from benchmarks.nuclei_summary import IOU
from benchmarks.nuclei_training import Slides, annotated, assign_folds, expert_minutes, read_slides
from benchmarks.weak_nuclei import RECIPES
from models.annotation import Annotation
from tests.training.segmenter_drawings import draw as draw_tissue
from training.segmenter import SegmenterTraining
from training.segmenter_crops import crop_loader
from training.segmenter_data import Tissue
from training.simulated_annotations import simulate_points

TINY = RECIPES["smoke"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of drawn images: seven of DSB2018, in pairs of like colours, eight of MoNuSeg from four hospitals, one merged."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "nuclei").mkdir()
    random = np.random.default_rng(0)
    domains = ["dsb18_x"] * 7 + [f"monuseg_{name}" for name in "AABBBCCD"] + ["monuseg_D"]
    with (folder / "nuclei" / "manifest.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "label_map", "label_kind", "domain", "patient"])
        for index, domain in enumerate(domains):
            colours, labels = draw_tissue(random, 90 + 45 * (index // 2 % 4))
            Image.fromarray(colours).save(folder / "nuclei" / f"{index}.png")
            Image.fromarray(labels).save(folder / "nuclei" / f"{index}_labels.png")
            kind = "binary_cc" if index == len(domains) - 1 else "instance_masks"
            patient = "" if domain == "dsb18_x" else f"patient {index}"
            writer.writerow([f"{index}.png", f"{index}_labels.png", kind, domain, patient])
    return folder


@pytest.fixture(scope="module")
def slides(data: Path) -> Slides:
    return read_slides(data, "monuseg", replace(TINY, most=100))


def test_folds_keep_hospitals_and_look_alikes_together_and_merged_maps_out(data: Path, slides: Slides) -> None:
    assert [each.number for each in slides.images] == list(range(8, 16))  # 16 is merged
    for fold in range(3):
        train, test = slides.train(fold, 1.0, 0), slides.test(fold)
        assert len(train) + len(test) == 8
        assert test
        assert not {each.domain for each in train} & {each.domain for each in test}
    others = read_slides(data, "dsb18", replace(TINY, most=100))
    pairs = [[0, 1], [2, 3], [4, 5]]
    assert all(len({others.folds[index] for index in pair}) == 1 for pair in pairs)
    assert len(set(others.folds)) == 3
    alone = [replace(each, domain="one", group=str(each.number)) for each in slides.images]
    assert np.bincount(assign_folds(alone)).tolist() == [3, 3, 2]  # control: no groups, nothing to keep together


def test_smaller_shares_are_parts_of_larger_ones_and_the_same_for_points_and_masks(slides: Slides) -> None:
    numbers = [{each.number for each in slides.train(0, share, 1)} for share in (0.125, 0.5, 1.0)]
    assert numbers[0] < numbers[1] < numbers[2]
    assert len(numbers[0]) == 1
    assert any({each.number for each in slides.train(0, 0.125, seed)} != numbers[0] for seed in range(5))


def test_rows_of_points_see_no_masks(slides: Slides) -> None:
    for each in annotated(slides.images, VORONOI, EXACT, 0):
        assert each.objects is None
        assert each.foreground is None
    assert all(each.objects is not None for each in annotated(slides.images, MASKS, EXACT, 0))  # control
    exact, displaced, fewer, more = (annotated(slides.images, COMBINED, marks, 0) for marks in (EXACT, *NOISY))
    distances = np.concatenate([
        np.linalg.norm(one.annotation.points - other.annotation.points, axis=1)
        for one, other in zip(exact, displaced, strict=True)
    ])  # fmt: skip
    assert 3 < distances.max() <= 5
    assert {len(each.annotation.points) for each in exact} == {9}
    assert {len(each.annotation.points) for each in fewer} == {8}
    assert {len(each.annotation.points) for each in more} == {10}
    strokes, some, region = (annotated(slides.images, COMBINED, marks, 0) for marks in OTHERWISE)
    assert {len(each.annotation.points) for each in strokes} == {0}
    assert {len(each.annotation.scribbles) for each in strokes} == {9 + 9 // 4}
    assert {(len(each.annotation.points), each.annotation.complete) for each in some} == {(1, False)}
    assert all(each.annotation.region is not None and len(each.annotation.points) < 9 for each in region)
    assert {each.objects is None and each.foreground is None for each in (*strokes, *some, *region)} == {True}


def test_expert_minutes_are_the_published_ones(slides: Slides) -> None:
    masks = slides.images[:1] * 200  # 9 nuclei each
    points = annotated(masks, VORONOI, EXACT, 0)
    assert expert_minutes(masks) == pytest.approx(3 * 115)
    assert expert_minutes(points) == pytest.approx(3 * 14)
    strokes, some, _ = (annotated(masks, COMBINED, marks, 0) for marks in OTHERWISE)
    assert expert_minutes(some) == pytest.approx(3 * 14 / 9)
    # 11 strokes for 9 nuclei, each 10.9 / 2.4 times as long as a click
    assert expert_minutes(strokes) == pytest.approx(3 * 14 * 10.9 / 2.4 * 11 / 9)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_one_step_of_every_row_of_the_published_scale(slides: Slides, method: Any) -> None:
    recipe = replace(RECIPES["paper"], epochs=1, steps_per_epoch=1, batch_size=2, crop=32)
    given = annotated(slides.train(0, 1.0, 0), method, EXACT, 0)
    config = recipe.config(method, tuple(sorted({each.domain for each in given})), 0)
    module = SegmenterTraining(config)
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    (images, labels), *_ = crop_loader(given, config, 0)
    loss, _ = module.losses(images, labels, joint=False)
    loss.backward()
    torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.0).step()
    assert torch.isfinite(loss)
    moved = {name.split(".")[0] for name, value in module.named_parameters() if not torch.equal(value, before[name])}
    assert moved == ({"segmenter"} if method.edges == "none" else {"segmenter", "pseudo_edge"})
    assert {(each.method.name, each.marks.name) for each in cells("paper")} == {
        *((row.name, "") for row in METHODS), *((COMBINED.name, marks.name) for marks in (*NOISY, *OTHERWISE))
    }  # fmt: skip


def test_rows_begin_with_the_same_weights_and_see_the_same_crops(slides: Slides) -> None:
    def start(method: Any, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        given = annotated(slides.train(0, 1.0, 0), method, EXACT, seed)
        config = TINY.config(method, tuple(sorted({each.domain for each in given})), seed)
        torch.manual_seed(seed)
        weights = torch.cat([value.detach().flatten() for value in SegmenterTraining(config).segmenter.parameters()])
        return weights, next(iter(crop_loader(given, config, 0)))[0]

    first = start(MASKS, 1)
    for method in METHODS:
        assert all(torch.equal(one, other) for one, other in zip(start(method, 1), first, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(start(MASKS, 2), first, strict=True))


def test_other_ways_to_mark_are_in_one_fold() -> None:
    found = [each for each in cells("small") if each.marks in OTHERWISE]
    assert len(found) == 3 * 2 * 3
    assert {each.fold for each in found} == {CURVE_FOLD}
    assert len({each.key for each in cells("small")}) == len(cells("small")) == 180


def touching(known: bool) -> tuple[Tissue, np.ndarray]:
    """Return tissue of touching discs, with points or masks, and its true foreground as probabilities."""
    y, x = np.mgrid[:80, :80]
    labels = np.zeros((80, 80), np.int32)
    for number, (row, column) in enumerate([(20, 14), (20, 27), (58, 40), (58, 53)], start=1):
        labels[((y - row) ** 2 + (x - column) ** 2 <= 49) & (labels == 0)] = number
    colours = np.zeros((80, 80, 3), np.uint8)
    image: Any = None
    points = simulate_points(labels, 0)
    tissue = Tissue(1, "a", "a", image, colours, points, labels if known else None, labels > 0 if known else None)
    return tissue, (labels > 0).astype(np.float32)


@pytest.mark.parametrize("known", [False, True])
def test_the_separation_is_chosen_by_what_was_given(known: bool) -> None:
    tissue, foreground = touching(known)
    spec, best = choose_separation([tissue], [foreground])
    assert spec.threshold == 0.5
    assert best == pytest.approx(1.0, abs=0.1)
    assert measure(touching(True)[0], foreground, spec)["object_f1"] == 1
    one = replace(tissue, annotation=Annotation(np.array([[20.5, 20.5], [46.5, 58.5]])), objects=None)
    assert choose_separation([one], [foreground])[1] != pytest.approx(best)  # control: other points, another judgement


def test_measures_are_those_of_the_image(slides: Slides) -> None:
    tissue, foreground = touching(True)
    spec, _ = choose_separation([tissue], [foreground])
    assert measure(tissue, foreground, spec)[IOU] == 1
    half = foreground.copy()
    half[:40] = 0.49
    found = measure(tissue, half, spec)
    assert found[IOU] == pytest.approx(0.5, abs=0.01)
    assert found["dice"] == pytest.approx(2 / 3, abs=0.01)
    assert found["object_f1"] == pytest.approx(2 / 3)
    images = list(slides.images)
    assert len(drawn(images, 1, 0)) == 1
    assert len(drawn(images, 3 * 72 * 72, 0)) == 3
    with pytest.raises(ValueError, match="without masks"):
        measure(touching(False)[0], foreground, spec)


def test_going_on_runs_only_what_is_missing_and_ends_the_same(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "SMOKE", tmp_path / "results")
    some = cells("smoke")[::5]
    monkeypatch.setattr(weak_nuclei, "cells", lambda scale: some)
    command = ["weak_nuclei.py", "--data", str(data), "--scale", "smoke", "--work", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    weak_nuclei.main()
    log = tmp_path / "smoke" / "weak_nuclei.jsonl"
    whole = log.read_text().splitlines()
    assert len(whole) == len(some)
    assert (tmp_path / "results" / "weak_nuclei.png").exists()
    last = json.loads(whole[-1])
    assert last["images"]
    shutil.rmtree(tmp_path / "smoke" / "weak_nuclei" / last["key"])
    log.write_text("\n".join(whole[:-1]) + "\n")
    capsys.readouterr()
    weak_nuclei.main()
    assert capsys.readouterr().out.count(f"{IOU} ") == 1
    again = json.loads(log.read_text().splitlines()[-1])
    assert again | {"cpu_seconds": 0} == last | {"cpu_seconds": 0}
    monkeypatch.setattr(nuclei_training, "fit_batches", None)  # the weights are kept: scoring anew trains nothing
    log.write_text("\n".join(whole[:-1]) + "\n")
    weak_nuclei.main()
    assert len(log.read_text().splitlines()) == len(whole)


def test_the_images_are_those_with_instances_of_their_own(data_root: Path) -> None:
    with (data_root / "nuclei" / "manifest.csv").open(newline="") as stream:
        kinds = [row["label_kind"] for row in csv.DictReader(stream)]
    slides = read_slides(data_root, "monuseg", RECIPES["small"])
    assert {kinds[each.number - 1] for each in slides.images} == {"instance_xml"}
    assert len(slides.images) == kinds.count("instance_xml")
    for fold in range(3):
        assert not {each.domain for each in slides.train(fold, 1.0, 0)} & {each.domain for each in slides.test(fold)}
