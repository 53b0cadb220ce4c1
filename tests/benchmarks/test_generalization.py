"""The benchmark's cells on drawn images: one step of each of the published scale, the same start for all, and going on."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import doubt, generalization, report
from benchmarks.domain_training import Method, Run
from benchmarks.domains import SOURCES, Domains, batches, change, spec, to_tensor
from benchmarks.doubt_siblings import LEFT_OUT, held_out, isotonic, said_at_home
from benchmarks.generalization import METHODS, RECIPES, Cell, cells, chosen, difference, interval, run_cell, summarise
from models.networks.efficientnet import efficientnet_lite0
from models.networks.normalization import gates

TINY = RECIPES["smoke"]


def drawn(name: str, side: int = 32, each: int = 4) -> Domains:
    """Return random images, ``each`` of every class in every domain."""
    source, random = SOURCES[name], np.random.default_rng(0)
    domains = source.targets if name != "cxr" else (*source.targets, "small")
    table = [(domain, label) for domain in domains for label in range(len(source.classes)) for _ in range(each)]
    images = random.integers(0, 255, (len(table), source.channels, side, side), dtype=np.uint8)
    labels = np.array([label for _, label in table])
    images[:, 0] = np.clip(images[:, 0] // 4 + labels[:, None, None] * (180 // len(source.classes)), 0, 255)
    patients = np.array([f"patient {index}" for index in range(len(table))])
    return Domains(name, images, labels, np.array([domain for domain, _ in table]), patients)


@pytest.mark.parametrize("name", list(SOURCES))
def test_one_step_of_every_cell_of_the_published_scale(name: str) -> None:
    recipe = replace(RECIPES["paper"], steps=1, batch=4)
    data = drawn(name, recipe.side, 2)
    wanted = {(cell.method, cell.target) for cell in cells("paper") if cell.data == name}
    assert {method for method, _ in wanted} == set(METHODS[name])
    for method in METHODS[name]:
        run = Run(data, method, recipe, 0)
        before = {key: value.clone() for key, value in run.network.state_dict().items()}
        (loss,) = run.train(data.split(SOURCES[name].targets[0], 0)[0])
        assert np.isfinite(loss)
        assert any(not torch.equal(value, before[key]) for key, value in run.network.state_dict().items() if "weight" in key)


def test_methods_begin_with_the_same_weights_and_see_the_same_images() -> None:
    data = drawn("pacs")
    runs = [Run(data, method, TINY, 1) for method in METHODS["pacs"]]
    for run in runs:
        assert torch.equal(run.network.head.weight, runs[0].network.head.weight)
    assert not torch.equal(Run(data, Method(), TINY, 2).network.head.weight, runs[0].network.head.weight)
    train = data.split("sketch", 1)[0]
    assert (batches(data, train, 12, 5, 1) == batches(data, train, 12, 5, 1)).all()
    assert (batches(data, train, 12, 5, 1) != batches(data, train, 12, 5, 2)).any()


def test_splits_keep_the_target_and_its_patients_out() -> None:
    data = drawn("pacs", each=10)
    train, validation, target = data.split("photo", 0)
    assert set(data.domains[target]) == {"photo"}
    assert "photo" not in data.domains[train]
    assert not set(data.patients[train]) & set(data.patients[validation])
    assert sorted([*train, *validation, *target]) == list(range(len(data.labels)))


def test_groups_are_drawn_equally_often() -> None:
    data = drawn("cxr", each=20)
    keep = np.array([index for index in range(len(data.labels)) if data.labels[index] == 0 or data.domains[index] == "small"])
    labels = data.labels[batches(data, keep, 8, 50, 0)]
    assert labels.mean() == pytest.approx(0.5)  # though few of the images are of class 1
    data = drawn("pacs", each=20)
    names = data.domains[batches(data, np.flatnonzero(data.domains != "photo"), 9, 50, 0)]
    assert (names == "sketch").mean() == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", list(SOURCES))
@pytest.mark.parametrize("strong", [False, True])
def test_augmentation_stays_in_range_and_is_drawn_anew(name: str, strong: bool) -> None:
    images = to_tensor(drawn(name).images[:8])
    found = change(images, name, strong, torch.Generator().manual_seed(0))
    assert found.shape == images.shape
    assert found.min() >= -2 - 1e-5
    assert found.max() <= 2 + 1e-5
    assert not torch.equal(found, change(images, name, strong, torch.Generator().manual_seed(1)))
    assert spec(name, 32).channels == images.shape[1]


def test_gates_stay_in_the_interval_in_every_step() -> None:
    run = Run(drawn("pacs"), Method(batch_instance=True, sagnet=True), replace(TINY, steps=4, learning_rate=1.0), 0)
    run.train(run.data.split("sketch", 0)[0])
    assert any(bool((rho < 1).any()) for rho in gates(run.network))
    assert all(bool(((rho >= 0) & (rho <= 1)).all()) for rho in gates(run.network))


def line(target: str, method: Method, seed: int, score: float, validation: float) -> dict[str, Any]:
    return {"data": "pacs", "target": target, "method": method.name, "seed": seed, "score": score, "validation": validation}


def test_differences_are_paired_and_the_choice_looks_at_home_only() -> None:
    plain, sagnet, both = Method(), Method(sagnet=True), Method(batch_instance=True, sagnet=True)
    done = [line(target, plain, seed, 0.3 + seed / 10, 0.8) for target in ("photo", "sketch") for seed in (0, 1)]
    done += [line(target, sagnet, seed, 0.35 + seed / 10, 0.9) for target in ("photo", "sketch") for seed in (0, 1)]
    done += [line("photo", both, 0, 0.9, 0.1)]  # best on the target, worst at home
    assert difference(done, "pacs", sagnet, plain, None) == pytest.approx([0.05] * 4)
    assert len(difference(done, "pacs", sagnet, plain, "photo")) == 2
    assert chosen(done, "pacs", (sagnet, both)) == sagnet
    mean, low, high = interval(np.array([0.1, 0.2, 0.3]))
    assert mean == pytest.approx(0.2)
    assert low == pytest.approx(0.2 - 4.3027 * 0.1 / np.sqrt(3), abs=1e-4)
    assert high == pytest.approx(0.4 - low)
    _, goals = summarise(done)
    assert goals[0]["met"]
    assert goals[0]["value"] == pytest.approx(0.05)


def test_a_cell_leaves_its_line_and_a_checkpoint_that_doubt_uses(tmp_path: Path) -> None:
    data = drawn("pacs", each=40)
    cell = Cell("pacs", "photo", doubt.BASE, 0)
    found = run_cell(cell, data, TINY, tmp_path)
    assert json.loads(json.dumps(found))["key"] == cell.key
    before = (tmp_path / f"{cell.key}.pt").stat().st_mtime_ns
    judged = doubt.run_cell(cell, data, TINY, "smoke", tmp_path)
    assert (tmp_path / f"{cell.key}.pt").stat().st_mtime_ns == before
    assert judged["siblings"] == "leave one domain out"
    assert judged["error"] == pytest.approx(1 - found["score"])
    assert set(doubt.COMPARATORS) | {doubt.SERVED} < set(judged["doubts"])
    rows, goals = doubt.summarise([judged])
    assert rows
    assert goals


def test_domains_of_few_images_of_a_class_are_no_reason_to_leave_one_out(tmp_path: Path) -> None:
    data = drawn("cxr", each=40)
    train, validation, _ = data.split("nih_chestxray", 0)
    assert held_out(data, train, validation, TINY, 0, tmp_path).how == LEFT_OUT
    few = train[(data.domains[train] != "small") | (data.labels[train] == 1)]
    few = np.append(few, train[(data.domains[train] == "small") & (data.labels[train] == 0)][:3])
    found = held_out(data, few, validation, TINY, 1, tmp_path)
    assert found.how == "out of fold"
    assert (found.losses > 0).all()
    assert found.said(np.zeros(3)) <= found.said(np.full(3, np.log(2)))


def test_what_is_said_at_home_was_not_fitted_to_the_same_patients() -> None:
    scores, losses, patients = np.zeros(4), np.array([0.0, 0.0, 0.0, 2.0]), np.array(["a", "a", "a", "b"])
    assert said_at_home(scores, losses, patients, 0) == (3 * 2.0 + 1 * 0.0) / 4
    assert isotonic(scores, losses).predict(scores).mean() == losses.mean()  # control: fitted to the same, right whatever is said


def test_gaps_are_compared_within_a_run() -> None:
    ways = {"predicted_mean": 0.1, "entropy_mean": 0.5, "true_home": 0.2, "unseen_mean": 1.5}
    lines = [{"data": "pacs", "true_mean": 1.0 + shift, **ways} for shift in (0.0, 0.25)]
    rows = {row["method"]: row for row in doubt.gaps_of(lines)}
    assert {way: rows[name]["mean"] for way, name in doubt.WAYS.items()} == pytest.approx({
        "predicted_mean": 1.025, "entropy_mean": 0.625, "true_home": 0.925, "unseen_mean": 0.375,
    })  # fmt: skip
    (paired,) = (row for row in rows.values() if "low" in row)
    assert paired["mean"] == pytest.approx(0.25)
    assert paired["low"] < 0.25 < paired["high"]


def test_going_on_runs_only_what_is_missing(tmp_path: Path, data_root: Path) -> None:
    command = [sys.executable, generalization.__file__, "--data", str(data_root), "--scale", "smoke", "--work", str(tmp_path)]
    log = tmp_path / "smoke" / "generalization.jsonl"
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    whole = log.read_text().splitlines()
    assert len(whole) == len(cells("smoke"))
    log.write_text("\n".join(whole[:-1]) + "\n")
    again = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    assert again.count("home") == 1
    assert [json.loads(text)["score"] for text in log.read_text().splitlines()] == [json.loads(text)["score"] for text in whole]


def test_a_large_backbone_begins_with_its_weights_and_can_be_trained_by_every_method(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save(efficientnet_lite0(3, 5, 0.0).state_dict(), file)
    recipe, data = replace(TINY, start=file, steps=1), drawn("pacs", side=64, each=2)
    run = Run(data, Method(batch_instance=True, sagnet=True, joint=True), recipe, 0)
    torch.testing.assert_close(run.network.get_submodule("stem.0").weight, torch.load(file, weights_only=True)["stem.0.weight"])
    assert np.isfinite(run.train(data.split("photo", 0)[0])).all()
    random = Run(data, Method(), replace(recipe, start=None), 0)
    assert random.network.widths == TINY.widths  # control


def test_a_cell_is_run_by_one_process_and_once(tmp_path: Path) -> None:
    log = tmp_path / "cells.jsonl"
    with report.claim(log, "a") as first, report.claim(log, "a") as second, report.claim(log, "b") as other:
        assert (first, second, other) == (True, False, True)
    with report.claim(log, "a") as again:
        assert again  # the claim went with the one who held it, and left no result
        log.write_text('{"key": "a"}\n')
    with report.claim(log, "a") as after:
        assert not after


def test_a_domain_of_one_odd_image_does_not_decide_what_is_best_at_home() -> None:
    data = drawn("cxr", each=6)
    few = np.flatnonzero((data.domains == "small") & (data.labels == 0))[1:]
    home = np.setdiff1d(np.flatnonzero(data.domains != "nih_chestxray"), few)
    right = np.stack([1.0 - data.labels, data.labels * 1.0], axis=1).astype(np.float32)
    right[data.domains == "small"] *= -1
    assert generalization.home(data, right, home) == 1.0
    assert generalization.home(data, right, np.flatnonzero(data.domains != "nih_chestxray")) == 0.5  # control: with six it counts
    alone = home[data.domains[home] == "small"]
    assert generalization.home(data, right, alone) == 0.0  # where no domain has enough, those with most count
