"""``overread plan``: each verdict, by curves whose law is known, and from labelled images in one command."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.errors import Refusal
from models.predictor import Predictor
from tests.killed import killed_after
from training.learning_curve import Curve
from training.plan import main, plan, read_scores, rounds, text
from training.plan_features import curve, sizes_below, split

SIZES = (100, 200, 400, 800, 1600, 3200)


def scores(law: Curve, noise: float = 0.01, seeds: int = 3) -> list[tuple[int, int, float]]:
    random = np.random.default_rng(0)
    return [(n, seed, 1 - float(law.error(n)) * float(np.exp(random.normal(0, noise)))) for n in SIZES for seed in range(seeds)]


LAW = Curve(2.0, 0.4, 0.05)


def test_a_target_that_can_be_reached_has_its_number_minutes_and_rounds() -> None:
    target = 1 - float(LAW.error(10_000))
    found = plan(scores(LAW), target, 30.0)
    assert found["verdict"] == "reachable"
    assert found["labels"]["low"] <= 10_000 <= found["labels"]["high"]
    assert found["labels"]["value"] == pytest.approx(10_000, rel=0.3)
    assert found["minutes"]["value"] == pytest.approx((found["labels"]["value"] - 3200) / 2)
    steps = [step["labels"] for step in found["rounds"]]
    assert len(steps) == 5
    assert steps == sorted(steps)
    assert steps[-1] == found["labels"]["value"]
    assert "round 1" in text(found)
    assert f"{found['labels']['value']:,.0f} labels" in text(found)


def test_beyond_the_asymptote_it_cannot_be_reached() -> None:
    found = plan(scores(Curve(20.0, 1.0, 0.2), 0.003), 0.9, None)
    assert found["verdict"] == "out_of_reach"
    assert found["labels"] == {"value": None, "low": None, "high": None}
    assert found["best_possible"]["low"] <= 0.8 <= found["best_possible"]["high"]
    assert found["rounds"] == []
    assert "minutes" not in found


def test_what_was_measured_already_needs_nothing_more() -> None:
    found = plan(scores(LAW), 0.8, 30.0)
    assert found["verdict"] == "reached"
    assert found["rounds"] == []
    assert found["minutes"]["value"] == 0


def test_it_says_when_it_cannot_tell() -> None:
    noisy = plan(scores(Curve(1.0, 0.25, 0.05), 0.15), 0.93, None)
    assert noisy["verdict"] == "not_known"
    assert "too wide" in text(noisy)
    few = plan([row for row in scores(LAW) if row[0] < 800], 0.9, None)
    assert (few["verdict"], few["labels"]) == ("not_known", None)
    assert "4 sizes" in text(few)


def test_rounds_grow_evenly_and_do_not_split_a_label() -> None:
    assert rounds(100, 3200) == [200, 400, 800, 1600, 3200]
    assert rounds(100, 102) == [101, 102]


def test_scores_are_read_and_bad_rows_named(tmp_path: Path) -> None:
    file = tmp_path / "s.csv"
    file.write_text("labels,seed,score\n100,0,0.5\n100,1,0.6\n")
    assert read_scores(file) == [(100, 0, 0.5), (100, 1, 0.6)]
    for text_, words in (
        ("labels,seed,score\n100,0,0.5\n100,0,0.6\n", "Row 3"),
        ("labels,seed,score\n100,0,1.5\n", "Row 2"),
        ("labels,seed,score\n100,0,nan\n", "Row 2"),
        ("labels,score\n100,1\n", "Row 2"),
        ("labels,seed,score\n", "no row"),
    ):
        file.write_text(text_)
        with pytest.raises(Refusal, match=words) as refusal:
            read_scores(file)
        assert refusal.value.code == "data_invalid"


def test_from_scores_to_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "s.csv", tmp_path / "out"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("labels", "seed", "score"), *scores(LAW)])
    assert main(["--scores", str(file), "--target", "0.9", "--out", str(out), "--seconds-per-label", "10"]) == 0
    document = json.loads((out / "plan.json").read_text())
    assert document["verdict"] == "reachable"
    assert capsys.readouterr().out == (out / "plan.txt").read_text() == text(document)
    assert (out / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert read_scores(out / "scores.csv") == read_scores(file)


def test_from_labelled_images_in_one_command(
    tmp_path: Path, package: Path, draw: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "scans"
    images.mkdir()
    rows = []
    for seed in range(130):
        (images / f"{seed}.png").write_bytes(draw(seed, 96))
        rows.append((f"{seed}.png", "ab"[seed % 2]))
    with (tmp_path / "l.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("file", "label"), *rows])
    command = [
        "--model",
        str(package),
        "--labels",
        str(tmp_path / "l.csv"),
        "--images",
        str(images),
        "--out",
        str(tmp_path / "o"),
    ]
    killed_after(50, ["plan", *command, "--target", "0.95", "--seeds", "3"])
    predicted: list[int] = []
    real = Predictor.predict
    monkeypatch.setattr(Predictor, "predict", lambda by, images: (predicted.append(1), real(by, images))[1])
    assert main([*command, "--target", "0.95", "--seeds", "3"]) == 0
    assert len(predicted) == 130 - 50
    measured = read_scores(tmp_path / "o" / "scores.csv")
    assert main([*command, "--target", "0.95", "--seeds", "3", "--out", str(tmp_path / "whole")]) == 0
    assert len(predicted) == 80 + 130  # control: nothing is kept there
    assert read_scores(tmp_path / "whole" / "scores.csv") == measured
    assert {row[0] for row in measured} == {11, 22, 45, 91}
    assert len(measured) == 12
    (images / "130.png").write_bytes((images / "0.png").read_bytes())
    with (tmp_path / "l.csv").open("a", newline="") as stream:
        csv.writer(stream).writerow(("130.png", "b"))
    with pytest.raises(Refusal, match="contradict"):
        main([*command, "--target", "0.95"])


@pytest.mark.parametrize(
    ("rows", "code"),
    [([("0.png", "a"), ("1.png", "a")], "one_class"), ([("0.png", "a"), ("1.png", "b")], "too_few_labels")],
)
def test_labels_that_teach_nothing_are_refused(
    rows: list[tuple[str, str]], code: str, tmp_path: Path, package: Path, draw: Callable[..., bytes]
) -> None:
    for seed in range(2):
        (tmp_path / f"{seed}.png").write_bytes(draw(seed, 96))
    with (tmp_path / "l.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("file", "label"), *rows])
    with pytest.raises(Refusal) as refusal:
        main([
            "--model", str(package), "--labels", str(tmp_path / "l.csv"), "--images", str(tmp_path), "--target", "0.9",
            "--out", str(tmp_path / "out"),
        ])  # fmt: skip
    assert refusal.value.code == code


def test_a_curve_of_features_rises_and_never_tests_on_a_patient_it_trained_on() -> None:
    random = np.random.default_rng(0)
    kinds = random.integers(0, 2, 900)
    patients = np.array([f"p{n // 3}" for n in range(900)])
    features = random.normal(size=(900, 20)) + kinds[:, None] * 0.35
    for score in ("accuracy", "auroc"):
        measured = curve(features, kinds, patients, score, 3)  # type: ignore[arg-type]
        sizes = sorted({row[0] for row in measured})
        assert sizes == sizes_below(630)
        means = [np.mean([row[2] for row in measured if row[0] == size]) for size in sizes]
        assert means[-1] > means[0] + 0.05
    train, test = split(patients, 0)
    assert not set(patients[train]) & set(patients[test])
    assert len(train) + len(test) == 900
    shuffled = curve(features, random.permutation(kinds), patients, "accuracy", 3)  # the control: nothing to learn
    assert np.mean([row[2] for row in shuffled]) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("options", [["--target", "1"], ["--target", "0.9", "--seconds-per-label", "-1"]])
def test_misuse_is_refused(options: list[str], tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refusal:
        main([*options, "--scores", str(tmp_path / "s.csv")])
    assert refusal.value.code == "config_invalid"


def test_a_folder_that_cannot_be_written_and_one_that_is_not_there_are_told_in_the_words_of_plan(tmp_path: Path) -> None:
    file = tmp_path / "s.csv"
    file.write_text("labels,seed,score\n10,0,0.5\n")
    with pytest.raises(Refusal) as refusal:
        main(["--scores", str(file), "--target", "0.9", "--out", "/proc/plan"])
    assert refusal.value.code == "config_invalid"
    for folder, message in ((tmp_path / "none", "no such folder of images"), (tmp_path, "holds no image")):
        with pytest.raises(Refusal, match=message) as refusal:
            main(["--labels", str(file), "--images", str(folder), "--target", "0.9"])
        assert "site" not in refusal.value.detail


def test_one_source_of_sizes_must_be_given() -> None:
    with pytest.raises(SystemExit):
        main(["--target", "0.9"])


@pytest.mark.parametrize("who", [["all"], ["a patient of one class", "a patient of the other"]])
def test_patients_that_no_split_can_part_are_refused(who: list[str]) -> None:
    """As where files without identity all have the same PatientID."""
    kinds = np.repeat([0, 1], 40)
    features = np.random.default_rng(0).normal(size=(80, 4)) + kinds[:, None]
    with pytest.raises(Refusal, match="too_few_labels"):
        curve(features, kinds, np.array(who)[kinds % len(who)], "accuracy", 3)
    assert curve(features, kinds, np.arange(80).astype(str), "accuracy", 3), "the control: a patient an image"
