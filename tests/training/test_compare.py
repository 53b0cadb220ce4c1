"""The gate between a candidate and the package in use: what it measures on, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from models.card import read_package
from models.comparison import ALL_SITES, read_comparison
from models.errors import Refusal
from tests.training import conftest as drawing
from training import release
from training.compare import CLASSIFIER, differences
from training.config import read_run, sha256
from training.data import split_of
from training.seen import Seen, read_seen, seen_document


def words(run: Path, about: Path, out: Path, version: str, *more: str) -> list[str]:
    return [str(run), "--name", "drawn", "--version", version, "--about", str(about), "--out", str(out), *more]


@pytest.fixture
def run(finished: tuple[Path, Path], tmp_path: Path) -> Path:
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def current(run: Path, about: Path, tmp_path: Path) -> Path:
    """The package in use."""
    assert release.main(words(run, about, tmp_path / "in-use", "1.0.0")) == 0
    return tmp_path / "in-use" / "drawn"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of a hospital that no package was made from: 24 patients."""
    folder = tmp_path_factory.mktemp("elsewhere") / "data"
    folder.mkdir()
    random = np.random.default_rng(7)
    rows = []
    for number in range(24):
        label = "spot" if number % 2 else "normal"
        for index in range(2):
            name = f"{number}_{index}.png"
            drawing._draw(folder / name, label == "spot", False, random)
            rows.append({"image": name, "label": label, "domain": "north", "patient": f"north-{number}", "view": ""})
    drawing._write(folder, rows)
    return folder


def damage(run: Path) -> None:
    """Exchange the two classes in an exported run, and sign its reports again: calibrated and evaluated as it was before."""
    model = onnx.load(run / "model.onnx")
    for node in model.graph.node:
        node.output[:] = ["logits_raw" if name == "logits" else name for name in node.output]
        node.input[:] = ["logits_raw" if name == "logits" else name for name in node.input]
    model.graph.node.append(helper.make_node("Neg", ["logits_raw"], ["logits"]))
    (run / "model.onnx").write_bytes(model.SerializeToString())
    graph = sha256((run / "model.onnx").read_bytes())
    calibration = json.loads((run / "calibration.json").read_text()) | {"model_sha256": graph}
    (run / "calibration.json").write_text(json.dumps(calibration))
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation |= {"model_sha256": graph, "calibration_sha256": sha256((run / "calibration.json").read_bytes())}
    (run / "evaluation.json").write_text(json.dumps(evaluation))


def test_an_equal_candidate_passes(run: Path, about: Path, current: Path, elsewhere: Path, tmp_path: Path) -> None:
    gate = ("--current", str(current), "--compare", str(elsewhere))
    assert release.main(words(run, about, tmp_path / "new", "1.1.0", *gate)) == 0
    comparison = read_comparison(tmp_path / "new" / "drawn")
    assert comparison is not None
    assert comparison.worse == ()
    assert comparison.accepted is None
    assert comparison.current.sha256 == read_package(current)[2]
    assert comparison.candidate.sha256 == read_package(tmp_path / "new" / "drawn")[2]
    assert comparison.left_out == 0
    for each in comparison.differences:
        assert (each.images, each.patients) == (48, 24)
        assert each.difference == each.low == each.high == 0
    assert {each.site for each in comparison.differences} == {ALL_SITES, "north"}


def test_a_damaged_candidate_is_refused_unless_there_is_a_reason(
    run: Path, about: Path, current: Path, elsewhere: Path, tmp_path: Path
) -> None:
    damage(run)
    gate = ("--current", str(current), "--compare", str(elsewhere))
    with pytest.raises(Refusal) as caught:
        release.main(words(run, about, tmp_path / "new", "1.1.0", *gate))
    assert caught.value.code == "candidate_worse"
    assert not (tmp_path / "new").exists()
    assert json.loads((run / "comparison.json").read_text())["worse"]  # to be looked at
    assert release.main(words(run, about, tmp_path / "new", "1.1.0", *gate, "--accept-worse", "a drill")) == 0
    comparison = read_comparison(tmp_path / "new" / "drawn")
    assert comparison is not None
    assert comparison.accepted == "a drill"
    change = {each.metric: each for each in comparison.differences if each.site == "north"}
    assert change["true_loss"].low > 0  # type: ignore[operator]
    assert change["auroc"].high < 0  # type: ignore[operator]
    assert change["auroc"].candidate == pytest.approx(1 - change["auroc"].current, abs=1e-3)  # type: ignore[operator]


def test_what_was_trained_on_does_not_count(run: Path, about: Path, current: Path, drawn_big: Path, tmp_path: Path) -> None:
    gate = ("--current", str(current), "--compare", str(drawn_big))
    assert release.main(words(run, about, tmp_path / "new", "1.1.0", *gate, "--accept-worse", "few patients")) == 0
    comparison = read_comparison(tmp_path / "new" / "drawn")
    assert comparison is not None
    with (drawn_big / "manifest.csv").open(newline="") as stream:
        patients = [row["patient"] for row in csv.DictReader(stream)]
    test = [patient for patient in patients if split_of(patient, read_run(run).config) == "test"]
    (together,) = (each for each in comparison.differences if (each.site, each.metric) == (ALL_SITES, "true_loss"))
    assert (together.images, together.patients) == (len(test), len(set(test)))
    assert comparison.left_out == len(patients) - len(test)


def test_a_package_that_says_nothing_of_its_images_is_held_to_its_splits(
    run: Path, about: Path, current: Path, drawn_big: Path, tmp_path: Path
) -> None:
    (current / "seen.json").unlink()  # as of earlier versions
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation.pop("seen")
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    gate = ("--current", str(current), "--compare", str(drawn_big), "--accept-worse", "few patients")
    assert release.main(words(run, about, tmp_path / "new", "1.1.0", *gate)) == 0
    comparison = read_comparison(tmp_path / "new" / "drawn")
    assert comparison is not None
    assert comparison.left_out > 100


@pytest.mark.parametrize("renamed", ["domain", "patient"])
def test_training_images_under_another_name_are_refused(
    run: Path, about: Path, current: Path, drawn_big: Path, elsewhere: Path, tmp_path: Path, renamed: str,
    write_manifest: Callable[[Path, Any], None],
) -> None:  # fmt: skip
    folder = tmp_path / "mixed"
    shutil.copytree(elsewhere, folder)
    with (drawn_big / "manifest.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if split_of(row["patient"], read_run(run).config) == "train"]
    with (elsewhere / "manifest.csv").open(newline="") as stream:
        mixed = list(csv.DictReader(stream))
    shutil.copy(drawn_big / rows[0]["image"], folder / "known.png")
    if renamed == "domain":  # the image is known, whatever it is called
        mixed.append(rows[0] | {"image": "known.png", "domain": "south", "patient": "somebody"})
    else:  # another image of a patient who was trained on
        mixed[0]["patient"] = mixed[1]["patient"] = rows[0]["patient"]
    write_manifest(folder, mixed)
    gate = ("--current", str(current), "--compare", str(folder))
    with pytest.raises(Refusal, match="was made from: take them out") as caught:
        release.main(words(run, about, tmp_path / "new", "1.1.0", *gate))
    assert caught.value.code == "data_invalid"
    assert not (tmp_path / "new").exists()


def test_domains_of_the_folder_can_be_chosen(
    run: Path, about: Path, current: Path, elsewhere: Path, tmp_path: Path, write_manifest: Callable[[Path, Any], None]
) -> None:
    folder = tmp_path / "more"
    shutil.copytree(elsewhere, folder)
    with (elsewhere / "manifest.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    write_manifest(folder, [*rows, rows[0] | {"label": "other", "domain": "far"}])  # a class that neither knows
    gate = ("--current", str(current), "--compare", str(folder))
    with pytest.raises(Refusal, match="its label is not one of"):
        release.main(words(run, about, tmp_path / "new", "1.1.0", *gate))
    assert release.main(words(run, about, tmp_path / "new", "1.1.0", *gate, "--domains", "north")) == 0


def test_only_packages_of_one_model_are_compared(run: Path, about: Path, current: Path, elsewhere: Path, tmp_path: Path) -> None:
    gate = ("--current", str(current), "--compare", str(elsewhere))
    arguments = words(run, about, tmp_path / "new", "1.1.0", *gate)
    arguments[arguments.index("drawn")] = "other"
    with pytest.raises(Refusal, match="not of other") as caught:
        release.main(arguments)
    assert caught.value.code == "config_invalid"


@pytest.mark.parametrize(
    "wrong",
    [
        ("--current", "p"),
        ("--compare", "p"),
        ("--accept-worse", "why"),
    ],
)
def test_half_a_gate_is_misuse(run: Path, about: Path, tmp_path: Path, wrong: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit):
        release.main(words(run, about, tmp_path / "new", "1.1.0", *wrong))


@pytest.mark.parametrize("wrong", [("--margin", "-1"), ("--margin", "nan"), ("--accept-worse", " ")])
def test_a_gate_out_of_range_is_refused(
    run: Path, about: Path, current: Path, elsewhere: Path, tmp_path: Path, wrong: Any
) -> None:
    arguments = words(run, about, tmp_path / "new", "1.1.0", "--current", str(current), "--compare", str(elsewhere), *wrong)
    with pytest.raises(Refusal) as caught:
        release.main(arguments)
    assert caught.value.code == "config_invalid"


def test_the_same_release_is_compared_again(run: Path, about: Path, current: Path, elsewhere: Path, tmp_path: Path) -> None:
    assert release.main(words(run, about, tmp_path / "new", "1.1.0")) == 0
    package = tmp_path / "new" / "drawn"
    before = read_package(package)[2]
    assert read_comparison(package) is None
    assert release.main(words(run, about, tmp_path / "new", "1.1.0", "--current", str(current), "--compare", str(elsewhere))) == 0
    comparison = read_comparison(package)
    assert comparison is not None
    assert comparison.candidate.sha256 == before == read_package(package)[2]


def test_the_package_lists_images_and_no_patient(run: Path, current: Path) -> None:
    document = json.loads((current / "seen.json").read_text())
    assert set(document) == {"model_sha256", "images"}
    kept = json.loads((run / "evaluation.json").read_text())["seen"]
    assert document["images"] == kept["images"]
    assert len(kept["images"]) == 2 * len(kept["patients"]) > 100
    seen = read_seen(current, document["model_sha256"])
    assert seen == Seen(frozenset(kept["images"]))
    with pytest.raises(Refusal, match="another graph"):
        read_seen(current, "0" * 64)
    (current / "seen.json").write_text("[]")
    with pytest.raises(Refusal) as caught:
        read_seen(current, document["model_sha256"])
    assert caught.value.code == "package_invalid"


def test_what_is_seen_is_known_by_image_or_patient() -> None:
    document = seen_document([("a" * 64, "anna"), ("b" * 64, "anna")])
    seen = Seen(frozenset(document["images"]), frozenset(document["patients"]))
    assert seen.holds(["c" * 64, "b" * 64], "bert")
    assert seen.holds(["c" * 64], "anna")
    assert not seen.holds(["c" * 64], "bert")
    assert "anna" not in json.dumps(document)


def table(probability: Any, positive: Any) -> dict[str, Any]:
    p, y = np.asarray(probability, float), np.asarray(positive, bool)
    return {"positive": y, "probability": p, "wrong": (p >= 0.5) != y, "true_loss": -np.log(np.where(y, p, 1 - p))}


def test_differences_are_paired_grouped_and_by_site() -> None:
    random = np.random.default_rng(0)
    positive = np.arange(200) % 2 == 0
    current = np.clip(np.where(positive, 0.6, 0.4) + random.normal(0, 0.2, 200), 0.02, 0.98)
    better = np.where(positive, np.sqrt(current), 1 - np.sqrt(1 - current))  # half the loss of every image
    sites, patients = ["east"] * 100 + ["west"] * 100, [str(number) for number in range(200)]
    tables = [table(current, positive), table(np.r_[better[:100], 1 - better[100:]], positive)]
    found = {(each.site, each.metric): each for each in differences(tables, sites, patients, CLASSIFIER)}
    east, west = found["east", "true_loss"], found["west", "true_loss"]
    losses = tables[0]["true_loss"][:100]
    assert east.difference == pytest.approx(-losses.mean() / 2)
    # Paired: the interval is that of the differences, half the losses' own, whatever the two have in common
    half = 1.96 * losses.std(ddof=1) / 2 / 10
    assert east.high - east.low == pytest.approx(2 * half, rel=0.15)  # type: ignore[operator]
    assert not east.worse
    assert west.worse
    assert found["west", "auroc"].worse
    ranked = [
        (side["probability"][:100][positive[:100], None] > side["probability"][:100][~positive[:100]]).mean() for side in tables
    ]
    assert found["east", "auroc"].difference == pytest.approx(ranked[1] - ranked[0])
    together = [found[site, "accuracy"].difference for site in (ALL_SITES, "east", "west")]
    assert together[0] == pytest.approx((together[1] + together[2]) / 2)  # type: ignore[operator]
    # Four images of each patient alike say no more than one
    few = differences([table(np.repeat(current[:50], 4), np.repeat(positive[:50], 4)),
                       table(np.repeat(better[:50], 4), np.repeat(positive[:50], 4))],
                      ["east"] * 200, [str(number // 4) for number in range(200)], CLASSIFIER)  # fmt: skip
    one = differences([table(current[:50], positive[:50]), table(better[:50], positive[:50])],
                      ["east"] * 50, patients[:50], CLASSIFIER)  # fmt: skip
    assert few[0].high - few[0].low == pytest.approx(one[0].high - one[0].low)  # type: ignore[operator]
