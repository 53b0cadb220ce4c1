"""The benchmark of selections on drawn images: the same start for all, the sign, the published scale, sums, and going on."""

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

from benchmarks import active_learning
from benchmarks.active_learning import (
    METRIC,
    OURS,
    PROTOCOLS,
    RANDOM,
    SELECTIONS,
    Cell,
    Choosing,
    Selection,
    begin,
    cells,
    run_cell,
    steps_of,
    summarise,
    table,
)
from benchmarks.active_training import Pool, Protocol, Seen, augment, build, cxr, draw, look, train
from benchmarks.domains import to_tensor
from models.selection import most_doubtful

TINY = Protocol(16, (4, 8), 1, 12, 8, 2, 60, 8, 0, 6, 0, 0.05, 0)


def drawn(name: str, count: int = 150, side: int = 16) -> Pool:
    """Return random images whose brightness tells their class; X-rays have a first third that is labelled, and patients."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % (2 if name == "cxr" else 3)
    images = random.integers(0, 120, (count, 1 if name == "cxr" else 3, side, side), dtype=np.uint8)
    images += (labels * 60).astype(np.uint8)[:, None, None, None]
    everything = random.permutation(count)
    known, rest = np.split(everything, [count // 3 if name == "cxr" else 0])
    pool, test = np.split(rest, [2 * len(rest) // 3])
    strata = labels + 2 * ~np.isin(np.arange(count), known) if name == "cxr" else np.zeros(count, dtype=np.int64)
    groups = np.array([f"patient {index // 2}" for index in range(count)]) if name == "cxr" else None
    return Pool(name, images, labels, known, pool, test, strata, groups)


def seen(loss: list[float]) -> Seen:
    random = np.random.default_rng(0)
    return Seen(
        random.dirichlet(np.ones(3), len(loss)),
        random.normal(size=(len(loss), 2)).astype(np.float32),
        np.array(loss, dtype=np.float32),
    )


@pytest.mark.parametrize("name", list(METRIC))
@pytest.mark.parametrize("joint", [False, True])
def test_one_step_of_every_cell_of_the_published_scale(name: str, joint: bool, tmp_path: Path) -> None:
    published = PROTOCOLS["paper"][name]
    assert steps_of(published, published.labels[-1]) == (400 if name == "cxr" else 200 * 10_000 // 128)
    pool = drawn(name, 24, published.side)
    protocol = replace(published, first=published.first and 4, batch=4, base_steps=published.base_steps and 1, least=1, passes=0)
    before = build(pool, protocol, 0).state()
    model, labelled = begin(pool, protocol, joint, 0, tmp_path / "first.pt")
    assert len(labelled) == protocol.first
    moved = {
        part: any(not torch.equal(value, model.state()[part][key]) for key, value in before[part].items()) for part in before
    }
    assert moved == {"classifier": True, "loss_prediction": joint}


@pytest.mark.parametrize("name", list(METRIC))
def test_all_begin_equal_and_a_repeated_cell_is_the_same(name: str, tmp_path: Path) -> None:
    protocol = replace(TINY, first=0, base_steps=6) if name == "cxr" else TINY
    lines = [run_cell(Cell(name, method, 0), drawn(name), protocol, tmp_path) for method in SELECTIONS]
    for line in lines:
        assert len(line["scores"]) == 3
        assert len(line["rounds"]) == 2
    assert len({line["scores"][0] for line in lines if not SELECTIONS[line["method"]].joint}) == 1
    assert len({line["scores"][0] for line in lines if SELECTIONS[line["method"]].joint}) == 1
    assert len({json.dumps(line["rounds"]) for line in lines}) > 4  # they do choose differently
    (tmp_path / "other").mkdir()
    again = run_cell(Cell(name, OURS, 0), drawn(name), protocol, tmp_path / "other")
    assert {**again, "cpu_seconds": 0} == {**lines[-1], "cpu_seconds": 0}
    assert len(list(tmp_path.glob("*.pt"))) == 2  # the first round is shared


def test_the_extra_loss_is_all_that_differs_in_the_first_round(tmp_path: Path) -> None:
    pool = drawn("cifar10")
    (plain, first), (joint, second) = (begin(pool, TINY, on, 3, tmp_path / f"{on}.pt") for on in (False, True))
    assert first.tolist() == second.tolist()
    assert not torch.equal(plain.network.head.weight, joint.network.head.weight)
    for on in (False, True):
        model = build(pool, TINY, 3)
        losses = train(model, pool, first, TINY, 1, on, 3)
        assert losses == pytest.approx(train(build(pool, TINY, 3), pool, first, TINY, 1, False, 3))


def test_the_highest_predicted_loss_is_labelled_first() -> None:
    given = Choosing(seen([0.1, 3.0, -1.0, 2.0]), np.empty((0, 2), np.float32), None, 2, 0)
    assert SELECTIONS["learned loss"].choose(given).tolist() == [1, 3]
    turned = replace(given, seen=seen([-0.1, -3.0, 1.0, -2.0]))
    assert SELECTIONS["learned loss"].choose(turned).tolist() == [2, 0]  # the control: the other end


def test_the_sign_holds_through_a_whole_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rank(name: str) -> float:
        line = run_cell(Cell("cifar10", name, 0), drawn("cifar10"), TINY, tmp_path)
        return float(np.mean([part["loss_rank"] for part in line["rounds"]]))

    monkeypatch.setitem(SELECTIONS, "turned", Selection(lambda given: most_doubtful(-given.seen.loss, given.budget), joint=True))
    assert rank("learned loss") > 0.9
    assert rank(OURS) > 0.7
    assert rank("turned") < 0.1
    assert 0.2 < rank(RANDOM) < 0.8


def test_a_trained_loss_prediction_scores_what_is_hard_higher() -> None:
    pool = drawn("cifar10", 300)
    random = np.random.default_rng(1)
    pool.labels[pool.images.mean(axis=(1, 2, 3)) > 150] = random.integers(
        0, 3, int((pool.images.mean(axis=(1, 2, 3)) > 150).sum())
    )
    protocol = replace(TINY, learning_rate=0.02)
    model = build(pool, protocol, 0)
    train(model, pool, pool.pool, protocol, 150, True, 0)
    scores, hard = look(model, pool.images[pool.test]).loss, pool.images[pool.test].mean(axis=(1, 2, 3)) > 150
    assert scores[hard].mean() > scores[~hard].mean()


def test_ours_takes_one_image_a_patient_while_there_are_enough() -> None:
    patients = np.array(["a", "a", "b", "b", "c"])
    given = Choosing(seen([5.0, 4.0, 3.0, 2.0, 1.0]), np.empty((0, 2), np.float32), patients, 3, 0)
    assert set(patients[SELECTIONS[OURS].choose(given)]) == {"a", "b", "c"}
    assert len(SELECTIONS[OURS].choose(replace(given, budget=4))) == 4  # not fewer labels than the others


def test_strata_are_drawn_equally_often() -> None:
    pool = drawn("cxr")
    few = np.concatenate([pool.known, pool.pool[:4]])
    counts = np.bincount(pool.strata[draw(pool, few, 8, 50, 0)].ravel(), minlength=4)
    present = np.unique(pool.strata[few])
    assert counts[present] == pytest.approx(400 / len(present), abs=2)
    assert (draw(pool, few, 8, 50, 0) != draw(pool, few, 8, 50, 1)).any()


def test_crops_are_shifted_by_four_pixels_at_most_and_mirrored() -> None:
    images = np.zeros((400, 3, 16, 16), dtype=np.uint8)
    images[:, :, 8, 5] = 255
    found = augment(to_tensor(images), "cifar10", torch.Generator().manual_seed(0))
    assert found.shape == (400, 3, 16, 16)
    rows, columns = np.nonzero((found[:, 0] == 2).numpy())[1:]
    assert set(rows.tolist()) == set(range(4, 13))
    assert set(columns.tolist()) == set(range(1, 10)) | set(range(6, 15))  # 5 and, mirrored, 10: each by 4 at most


def test_hospitals_and_patients_are_kept_apart(data_root: Path, tmp_path: Path) -> None:
    pool = cxr(data_root, tmp_path, 16, 20, 0)
    assert pool.groups is not None
    assert not set(pool.groups[pool.pool]) & set(pool.groups[pool.test])
    assert set(pool.strata[pool.known].tolist()) == {0, 1}
    assert set(pool.strata[np.append(pool.pool, pool.test)].tolist()) == {2, 3}
    assert not set(pool.known) & (set(pool.pool) | set(pool.test))
    assert cxr(data_root, tmp_path, 16, 20, 1).test.tolist() != pool.test.tolist()


def line(method: str, seed: int, scores: list[float]) -> dict[str, Any]:
    return {
        "data": "cifar10",
        "method": method,
        "seed": seed,
        "labels": [500, 1000, 1500],
        "scores": scores,
        "rounds": [{"wrong": 0.5}],
    }


def test_the_goal_is_met_by_a_selection_that_saves_labels_and_by_no_other() -> None:
    done = [line(RANDOM, seed, [0.3, 0.4, 0.5 + seed / 100]) for seed in (0, 1)]
    good = [line(OURS, seed, [0.3, 0.55, 0.6]) for seed in (0, 1)]
    rows, goals = summarise(done + good)
    share = (500 + 500 * (0.505 - 0.3) / 0.25) / 1500
    assert [(goal["value"], goal["met"]) for goal in goals] == [(pytest.approx(1 - share, abs=1e-4), True)]
    gain = next(row for row in rows if row["method"] == OURS and "low" in row)
    assert gain["mean"] == pytest.approx(0.1225)
    assert "60%" in table(rows) or f"{share:.0%}" in table(rows)
    bad, (goal,) = summarise([*done, *(line(OURS, seed, [0.3, 0.35, 0.45]) for seed in (0, 1))])
    assert (goal["value"], goal["met"]) == (0, False)
    assert "not reached" in table(bad)
    json.dumps(rows, allow_nan=False)


def test_going_on_runs_only_what_is_missing(tmp_path: Path, data_root: Path) -> None:
    words = ["--data", str(data_root), "--scale", "smoke", "--work", str(tmp_path)]
    command = [sys.executable, active_learning.__file__, *words]
    log = tmp_path / "smoke" / "active_learning.jsonl"
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    whole = log.read_text().splitlines()
    assert len(whole) == len(cells("smoke"))
    log.write_text("\n".join(whole[:-1]) + "\n")
    again = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    assert again.count(" s\n") == 1
    assert [json.loads(text)["scores"] for text in log.read_text().splitlines()] == [json.loads(text)["scores"] for text in whole]
