"""``overread simulate``: curves on features with known answers, where choosing helps, where nothing does, and refusals."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.errors import Refusal
from models.pool import STRATEGIES
from models.predictor import Predictor
from tests.killed import killed_after
from tests.training.bars import write_rows
from training import simulation
from training.simulate import PREDICTIONS, ROUNDS, main
from training.simulation import RANDOM, Archive, Rounds, check, curves, fit, needed, replay, score, split, summarise


def archive(count: int = 300, seed: int = 0, rare: float = 0.5) -> Archive:
    """Return features of which one tells the class; loss that knows where the border is; two images a patient."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(count, 12)).astype(np.float32)
    labels = (features[:, 0] + 0.3 * random.normal(size=count) > np.quantile(features[:, 0], 1 - rare)).astype(np.int64)
    chances = np.full((count, 2), 0.5)
    patients = np.array([f"p{index // 2}" for index in range(count)])
    return Archive(labels, patients, -np.abs(features[:, 0]).astype(np.float64), chances, features, 1)


def test_no_patient_is_in_the_pool_and_in_the_test() -> None:
    given = archive()
    for seed in range(3):
        pool, test = split(given, seed)
        assert not set(given.patients[pool]) & set(given.patients[test])
        assert len(pool) + len(test) == 300
        assert len(test) == pytest.approx(0.4 * 300, abs=2)
    assert split(given, 0)[1].tolist() != split(given, 1)[1].tolist()


def test_the_last_layer_learns_from_what_is_labelled_and_nothing_else() -> None:
    given = archive()
    pool, test = split(given, 0)
    learnt = score(given, test, fit(given, pool)(test))
    assert learnt["auroc"] > 0.95
    wrong = replace(given, labels=np.where(np.isin(np.arange(300), pool), given.labels, 1 - given.labels))
    assert np.allclose(fit(wrong, pool)(test), fit(given, pool)(test))  # labels of the test images do not reach it
    one_class = pool[given.labels[pool] == 1][:5]
    assert (fit(given, one_class)(test) == 0.5).all()  # nothing can be fitted: the package's own


def test_all_start_alike_and_a_strategy_chooses_by_what_it_is_named_after() -> None:
    given, plan = archive(), Rounds(10, 10, 3)
    starts = {name: replay(given, name, plan, 1, {})[0] for name in STRATEGIES}
    assert len({tuple(found.items()) for found in starts.values()}) == 1
    assert len(replay(given, RANDOM, plan, 1, {})) == 4
    assert replay(given, RANDOM, plan, 1, {}) == replay(given, RANDOM, plan, 1, {})
    assert replay(given, RANDOM, plan, 1, {}) != replay(given, RANDOM, plan, 2, {})


def gain(given: Archive, strategy: str, plan: Rounds) -> float:
    return float(summarise(curves(given, [RANDOM, strategy], plan, 4, {}), given, 4)["strategies"][strategy]["difference"])


def test_choosing_by_doubt_saves_labels_where_a_class_is_rare() -> None:
    given, plan = archive(count=600, rare=0.06), Rounds(10, 10, 4)
    summary = summarise(curves(given, [RANDOM, "entropy"], plan, 4, {}), given, 4)
    assert summary["strategies"]["entropy"]["difference"] > 0.01
    assert summary["strategies"]["entropy"]["needs"] < 0.9
    assert summary["strategies"][RANDOM]["difference"] == 0
    assert summary["strategies"][RANDOM]["needs"] == pytest.approx(1, abs=0.3)


def test_a_predicted_loss_of_the_wrong_sign_does_worse_than_the_right_one() -> None:
    given, plan = archive(count=600, rare=0.06), Rounds(10, 10, 4)
    high = given.features[:, 0].astype(np.float64)  # the rare class is where this is high
    right, wrong = replace(given, loss=high), replace(given, loss=-high)
    assert gain(right, "learned loss", plan) > gain(wrong, "learned loss", plan) + 0.02


def test_labels_needed_lie_between_rounds() -> None:
    labels, scores = np.array([10, 20, 40]), np.array([0.5, 0.6, 0.8])
    assert needed(labels, scores, 0.7) == pytest.approx(30)
    assert needed(labels, scores, 0.4) == 10
    assert needed(labels, scores, 0.8) == pytest.approx(40)
    assert needed(labels, scores, 0.9) is None


def test_where_labels_bring_nothing_there_is_nothing_to_save() -> None:
    def needs(*scores: float) -> float | None:
        rows = [
            {"strategy": RANDOM, "seed": 0, "labels": count, "auroc": value, "accuracy": value}
            for count, value in zip((10, 20), scores, strict=True)
        ]
        found: float | None = summarise(rows, archive(), 1)["strategies"][RANDOM]["needs"]
        return found

    assert needs(0.7, 0.7) is None
    assert needs(0.8, 0.7) is None
    assert needs(0.6, 0.7) == 1  # control


def test_what_gives_no_curve_is_refused() -> None:
    given, classes = archive(), ("normal", "finding")
    check(given, Rounds(10, 10, 8), 3, classes)
    few, one = (np.arange(300) < 3).astype(np.int64), np.where(given.labels == 1, "one", given.patients)
    for changed, plan, code, message in (
        (replace(given, labels=np.zeros(300, dtype=np.int64)), Rounds(10, 10, 2), "one_class", "one label"),
        (replace(given, labels=few), Rounds(10, 10, 2), "data_invalid", "3 images of finding"),
        (given, Rounds(10, 10, 40), "data_invalid", "410 labels"),
        (replace(given, patients=one), Rounds(10, 10, 2), "data_invalid", "Too few patients"),
    ):
        with pytest.raises(Refusal, match=message) as refused:
            check(changed, plan, 3, classes)
        assert refused.value.code == code


@pytest.fixture
def labelled(tmp_path: Path, draw: Callable[..., bytes]) -> Path:
    """A manifest of images whose contrast tells the class, which the tiny model's features hold."""
    folder = tmp_path / "archive"
    folder.mkdir()
    rows, random = [], np.random.default_rng(0)
    for index in range(60):
        label = ("normal", "pneumonia")[index % 2]
        picture = np.full((64, 64), 20) + random.normal(0, 3, (64, 64))
        side = int(random.integers(16, 30)) + 18 * (index % 2)
        picture[:side, :side] += 180
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(folder / f"{index}.png")
        rows.append({"image": f"{index}.png", "label": label, "patient": f"p{index // 2}"})
    write_rows(folder / "manifest.csv", rows)
    return folder / "manifest.csv"


def words(manifest: Path, package: Path, out: Path) -> list[str]:
    found = ["--manifest", str(manifest), "--model", str(package), "--out", str(out), "--first", "4", "--budget", "4"]
    return [*found, "--rounds", "3", "--seeds", "2", "--strategy", "entropy"]


def run(manifest: Path, package: Path, out: Path, *more: str) -> int:
    return main([*words(manifest, package, out), *more])


def test_the_curve_of_a_package(labelled: Path, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(labelled, package, tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert "A simulation." in shown
    rows = list(csv.DictReader((tmp_path / "out" / "simulation.csv").read_text().splitlines()))
    assert {row["strategy"] for row in rows} == {"random", "entropy"}  # random is always there
    assert len(rows) == 2 * 2 * 4
    document = json.loads((tmp_path / "out" / "simulation.json").read_text())
    assert document["labels"] == [4, 8, 12, 16]
    assert document["images"] == 60
    assert document["all_labels"] > 0.9
    assert (tmp_path / "out" / "simulation.png").read_bytes().startswith(b"\x89PNG")
    first = (tmp_path / "out" / "simulation.csv").read_bytes()
    assert run(labelled, package, tmp_path / "out") == 0
    assert (tmp_path / "out" / "simulation.csv").read_bytes() == first


def test_bad_images_are_listed_by_row_and_bad_manifests_refused(
    labelled: Path, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (labelled.parent / "3.png").write_bytes(b"\x89PNG broken")
    assert run(labelled, package, tmp_path / "out") == 1
    err = capsys.readouterr().err
    assert "passed over: row 4: [not_decodable]" in err
    rows = list(csv.DictReader(labelled.read_text().splitlines()))
    for change, message in (
        ({"label": "covid"}, "row 2: its label is not one of"),
        ({"label": ""}, "row 2: a column is empty"),
        ({"image": "0.png", "label": "pneumonia"}, "row 2: this image has two labels that contradict each other"),
    ):
        write_rows(labelled, [rows[0], rows[1] | change, *rows[2:]])
        with pytest.raises(Refusal) as refused:
            run(labelled, package, tmp_path / "refused")
        assert refused.value.code == "data_invalid"
        assert message in refused.value.detail
    write_rows(labelled, [{"image": row["image"]} for row in rows])
    with pytest.raises(Refusal, match="column label"):
        run(labelled, package, tmp_path / "refused")
    # What was predicted before the contradiction was found is kept, and no result is there
    assert [path.name for path in (tmp_path / "refused").iterdir()] == [PREDICTIONS]
    with pytest.raises(Refusal, match="at least 1"):
        run(labelled, package, tmp_path / "refused", "--rounds", "0")


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count the images that are predicted and the rounds that are chosen and fitted, from now on."""
    done = {"predicted": 0, "chosen": 0}
    predict = Predictor.predict

    def counted(by: Predictor, images: Any) -> Any:
        done["predicted"] += 1
        return predict(by, images)

    def choosing(given: Any, real: Any) -> Any:
        done["chosen"] += 1
        return real(given)

    monkeypatch.setattr(Predictor, "predict", counted)
    for name, real in STRATEGIES.items():
        monkeypatch.setitem(simulation.STRATEGIES, name, lambda given, real=real: choosing(given, real))
    return done


TABLES = ("simulation.csv", "simulation.json")
IMAGES, CHOSEN = 60, 2 * 2 * 3
"""Images, and choices: seeds, strategies, rounds."""


@pytest.mark.parametrize(
    ("lines", "predicted", "chosen"),
    [(20, IMAGES - 20, CHOSEN), (IMAGES + 6, 0, CHOSEN - 4)],  # of 6 rounds of two curves, 2 are their beginnings
    ids=["while it reads", "while it replays"],
)
def test_killed_it_goes_on_with_the_rest_and_ends_with_the_same_table(
    labelled: Path, package: Path, tmp_path: Path, work: dict[str, int], lines: int, predicted: int, chosen: int
) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed_after(lines, ["simulate", *words(labelled, package, killed)])
    assert not (killed / "simulation.csv").exists()
    assert run(labelled, package, killed) == 0
    assert work == {"predicted": predicted, "chosen": chosen}
    work |= {"predicted": 0, "chosen": 0}
    assert run(labelled, package, whole) == 0
    assert work == {"predicted": IMAGES, "chosen": CHOSEN}  # control: nothing is kept there
    for name in TABLES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_more_rounds_seeds_and_strategies_cost_what_is_new_and_other_labels_begin_anew(
    labelled: Path, package: Path, tmp_path: Path, work: dict[str, int]
) -> None:
    out = tmp_path / "out"
    assert run(labelled, package, out) == 0
    first = (out / "simulation.csv").read_bytes()
    assert run(labelled, package, out, "--rounds", "4") == 0
    assert work == {"predicted": IMAGES, "chosen": CHOSEN + 4}
    assert run(labelled, package, out, "--strategy", "margin") == 0
    assert work["chosen"] == CHOSEN + 4 + 6
    assert run(labelled, package, out) == 0
    assert (out / "simulation.csv").read_bytes() == first
    assert work["chosen"] == CHOSEN + 4 + 6
    rows = list(csv.DictReader(labelled.read_text().splitlines()))
    rows[7]["label"] = "normal"
    write_rows(labelled, rows)
    assert run(labelled, package, out) == 0
    assert work == {"predicted": IMAGES, "chosen": CHOSEN + 4 + 6 + CHOSEN}
    assert run(labelled, package, out, "--budget", "5") == 0
    assert work["chosen"] == 3 * CHOSEN + 4 + 6


def test_an_archive_that_goes_away_leaves_what_was_predicted_and_a_folder_that_cannot_be_written_costs_nothing(
    labelled: Path, package: Path, tmp_path: Path, work: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refusal) as refusal:
        run(labelled, package, Path("/proc/simulation"))
    assert refusal.value.code == "config_invalid"
    assert work["predicted"] == 0
    counted = Predictor.predict

    def vanish(by: Predictor, images: Any) -> Any:
        if work["predicted"] == 9:
            labelled.parent.rename(tmp_path / "away")
        return counted(by, images)

    with monkeypatch.context() as planted:
        planted.setattr(Predictor, "predict", vanish)
        with pytest.raises(Refusal) as refusal:
            run(labelled, package, tmp_path / "out", "--threads", "1")
    assert refusal.value.code == "folder_unavailable"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [PREDICTIONS]
    (tmp_path / "away").rename(labelled.parent)
    assert run(labelled, package, tmp_path / "out") == 0
    assert work["predicted"] == IMAGES
    assert (tmp_path / "out" / ROUNDS).exists()
