"""The benchmark of adapting on drawn images: no test image is adapted to, all methods begin and are scored alike, sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import adaptation
from benchmarks.adaptation import (
    ADABN,
    METHODS,
    SOURCE_ONLY,
    WITH_SOURCE,
    WITHOUT_SOURCE,
    Cell,
    cells,
    config_of,
    halves,
    material_of,
    paired,
    run_cell,
    summarise,
    table,
)
from benchmarks.domain_training import Recipe
from benchmarks.domains import SOURCES, Domains, to_tensor
from models.errors import Refusal

RECIPE = Recipe(side=32, widths=(4, 8, 8), blocks=1, steps=2, batch=8, learning_rate=0.01)


@pytest.fixture
def drawn() -> Domains:
    """Random X-rays whose brightness tells their class; four hospitals, two images a patient."""
    random = np.random.default_rng(0)
    labels = np.arange(160) % 2
    images = random.integers(0, 120, (160, 1, 32, 32), dtype=np.uint8) + (labels * 100).astype(np.uint8)[:, None, None, None]
    domains = np.repeat(["kermany_guangzhou", "nih_chestxray", "cohen_multi", "figure1_app"], 40)
    return Domains("cxr", images, labels, domains, np.array([f"p{index // 2}" for index in range(160)]))


def cell(method: str) -> Cell:
    return Cell("cxr", "nih_chestxray", method, 0)


def test_every_scale_runs_each_method_on_each_target() -> None:
    found = cells("small")
    assert len(found) == 3 * (2 + 4) * 4 == len({each.key for each in found})
    assert {each.method for each in cells("smoke")} == set(METHODS)
    assert [each.seed for each in found] == sorted(each.seed for each in found)


def test_no_patient_is_adapted_to_and_tested_on(drawn: Domains) -> None:
    target = drawn.split("nih_chestxray", 0)[2]
    unlabelled, test = halves(drawn, target, 0)
    assert set(unlabelled) | set(test) == set(target)
    assert not set(drawn.patients[unlabelled]) & set(drawn.patients[test])
    assert len(unlabelled) == len(test) == 20


def test_without_the_source_no_label_is_seen(drawn: Domains) -> None:
    unlabelled = halves(drawn, drawn.split("nih_chestxray", 0)[2], 0)[0]
    alone, beside = (material_of(cell(method), drawn, unlabelled) for method in (WITHOUT_SOURCE, WITH_SOURCE))
    assert len(alone.labels) == len(alone.labelled) == 0
    train = drawn.split("nih_chestxray", 0)[0]
    assert beside.labels.tolist() == drawn.labels[train].tolist()
    assert "nih_chestxray" not in beside.domains
    assert torch.equal(alone.target, beside.target)
    assert torch.equal(alone.target, to_tensor(drawn.images[unlabelled]))
    config = config_of(cell(WITHOUT_SOURCE), drawn, RECIPE, "smoke")
    assert config.adaptation is not None
    assert not config.adaptation.source
    assert config.adaptation.domain not in config.domains


def test_all_methods_begin_with_the_same_network_and_are_scored_on_the_same_images(drawn: Domains, tmp_path: Path) -> None:
    found = {method: run_cell(cell(method), drawn, RECIPE, "smoke", tmp_path) for method in METHODS}
    base = "cxr-nih_chestxray-strong-0"
    kept = {f"{base}.pt", f"{base}-with-source-adapted.pt", f"{base}-without-source-adapted.pt"}
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == kept  # one base, and no rounds
    assert {(line["n"], line["unlabelled"]) for line in found.values()} == {(20, 20)}
    assert [len(found[method]["rounds"]) for method in (SOURCE_ONLY, ADABN)] == [0, 0]
    again = run_cell(cell(ADABN), drawn, RECIPE, "smoke", tmp_path)
    assert again["score"] == found[ADABN]["score"]


def test_where_nothing_can_be_learnt_the_network_stays_as_it_is(
    drawn: Domains, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run_cell(cell(SOURCE_ONLY), drawn, RECIPE, "smoke", tmp_path)

    def refuse(*given: Any) -> None:
        raise Refusal("data_invalid", "one class")

    monkeypatch.setattr(adaptation, "adapt", refuse)
    after = run_cell(cell(WITHOUT_SOURCE), drawn, RECIPE, "smoke", tmp_path)
    assert after["refused"]
    assert after["score"] == before["score"]


def line(method: str, score: float, seed: int, target: str = "nih_chestxray") -> dict[str, Any]:
    return {"data": "cxr", "target": target, "method": method, "seed": seed, "score": score, "refused": False}


def test_gains_are_paired_by_seed_and_target_and_goals_judge_their_lower_end() -> None:
    done = [line(SOURCE_ONLY, 0.5 + 0.1 * seed, seed) for seed in (0, 1, 2)]
    done += [line(WITH_SOURCE, 0.6 + 0.1 * seed, seed) for seed in (0, 1, 2)]
    done += [line(ADABN, 0.9, 5), line(SOURCE_ONLY, 0.1, 0, "kermany_guangzhou")]
    assert paired(done, "cxr", WITH_SOURCE, SOURCE_ONLY, "all") == pytest.approx([0.1] * 3)
    assert len(paired(done, "cxr", ADABN, SOURCE_ONLY, "all")) == 0  # no network of that seed
    rows, goals = summarise(done)
    (row,) = [row for row in rows if row["method"] == f"{WITH_SOURCE} less {SOURCE_ONLY}" and row["target"] == "all"]
    assert row["low"] == pytest.approx(0.1)
    assert [(goal["value"], goal["met"]) for goal in goals] == [(pytest.approx(0.1), True)]
    shown = table(rows)
    assert "+0.100 (+0.100 to +0.100)" in shown
    assert "nih_chestxray" in shown
    assert "refused" not in shown
    stopped = [one | {"refused": one["method"] == WITH_SOURCE and one["seed"] == 1} for one in done]
    assert "(3, 1 of them refused)" in table(summarise(stopped)[0])
    worse = [one | {"score": one["score"] - (0.3 if one["method"] == WITH_SOURCE else 0)} for one in done]
    assert not summarise(worse)[1][0]["met"]  # control
    assert set(SOURCES["cxr"].targets) >= {"nih_chestxray"}
