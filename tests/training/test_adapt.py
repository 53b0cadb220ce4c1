"""``overread adapt`` on drawn hospitals: it helps where the style differs, harms nothing where it does not, and goes on."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from models.card import read_package
from models.errors import Refusal
from tests.conftest import ROOT
from tests.training.bars import draw_hospital, write_rows
from training import adapt, calibrate, classifier, evaluate, export, release
from training.classifier import load_weights
from training.config import read_run
from training.consistency import AdaptationTraining
from training.data import load_images, read_manifest
from training.seen import read_seen

MARGIN = 0.02
"""Accuracy that may be lost where there is nothing to adapt to."""
FEW = ("--rounds", "2")


def training(spec_file: Path, data: Path, out: Path, *more: str) -> list[str]:
    words = ["--data", str(data), "--classes", "level", "upright", "--finding", "upright", "--input", str(spec_file), *more]
    return [*words, "--precision", "32-true", "--out", str(out)]


@pytest.fixture(scope="module")
def hospitals(small: dict[str, Any], spec_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run on two hospitals, calibrated; unlabelled and test images of a known and of a new one."""
    root = tmp_path_factory.mktemp("hospitals")
    data, run = draw_hospital(root / "data", ("east", "west"), 60, 0), root / "run"
    words = [
        "--data",
        str(data),
        "--domains",
        "east",
        "west",
        "--leave-out",
        "--classes",
        "level",
        "upright",
        "--finding",
        "upright",
    ]
    words += ["--input", str(spec_file), "--precision", "32-true", "--epochs", "15", "--out", str(run)]
    assert classifier.main(words) == 0
    assert export.main([str(run), "--data", str(data)]) == 0
    assert calibrate.main([str(run), "--data", str(data)]) == 0
    found = {"data": data, "run": run}
    for name in ("east", "north"):
        found[name] = draw_hospital(root / name, (name,), 60, 1)
        found[f"{name} test"] = draw_hospital(root / f"{name} test", (name,), 100, 2)
    return found


def command(hospitals: dict[str, Path], target: str, out: Path, *more: str, source: bool = True) -> list[str]:
    words = [str(hospitals["run"]), "--unlabelled", str(hospitals[target]), "--domain", "new", "--out", str(out), *more]
    return words + (["--data", str(hospitals["data"])] if source else [])


def accuracy(run: Path, data: Path, domain: str) -> float:
    config = read_run(run).config
    images = load_images(read_manifest(data, (domain,), config.classes).rows, config.input, "testing")
    with torch.no_grad():
        called = load_weights(run).classifier(torch.from_numpy(images.tensors)).argmax(dim=1).numpy()
    return float((called == images.labels).mean())


@pytest.mark.parametrize("how", ["source", "without source", "adabn"])
def test_adapting_helps_where_the_style_differs(hospitals: dict[str, Path], tmp_path: Path, how: str) -> None:
    more = ("--method", "adabn") if how == "adabn" else FEW
    assert adapt.main(command(hospitals, "north", tmp_path / "out", *more, source=how == "source")) == 0
    before = accuracy(hospitals["run"], hospitals["north test"], "north")
    after = accuracy(tmp_path / "out", hospitals["north test"], "north")
    assert before < 0.75
    assert after > 0.92
    report = json.loads((tmp_path / "out" / "adaptation.json").read_text())
    assert len(report["rounds"]) == (0 if how == "adabn" else 2)
    lost = {name for name, text in adapt.LOST.items() if text in report["lost"]}
    expected = {"source": {"units"}, "without source": {"units", "source", "loss_prediction"}}
    assert lost == expected.get(how, {"units", "weights", "loss_prediction"})
    assert not (tmp_path / "out" / "rounds").exists()


@pytest.mark.parametrize("more", [FEW, ("--method", "adabn")])
def test_nothing_is_lost_where_there_is_nothing_to_adapt_to(
    hospitals: dict[str, Path], tmp_path: Path, more: tuple[str, ...]
) -> None:
    assert adapt.main(command(hospitals, "east", tmp_path / "out", *more, source="--method" not in more)) == 0
    for name in ("run", "out"):
        run = hospitals["run"] if name == "run" else tmp_path / "out"
        assert accuracy(run, hospitals["east test"], "east") >= 1 - MARGIN, name


SHORT = ("--rounds", "2", "--epochs", "2")
EPOCHS = (2 + 1) * 2
"""Two networks in the first round and one in the last, of two epochs each."""
KILL = """
import os, signal, sys, torch
from training import adapt
from training.consistency import AdaptationTraining
torch.set_num_threads(1)
begun = 0

def begins(self):
    global begun
    begun += 1
    if begun == 4:
        os.kill(os.getpid(), signal.SIGKILL)

AdaptationTraining.on_train_epoch_start = begins
adapt.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def whole(hospitals: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was adapted without an interruption."""
    out, epochs = tmp_path_factory.mktemp("whole") / "run", []
    with pytest.MonkeyPatch.context() as counted:
        counted.setattr(AdaptationTraining, "on_train_epoch_start", lambda _: epochs.append(1))
        assert adapt.main(command(hospitals, "north", out, *SHORT)) == 0
    assert len(epochs) == EPOCHS  # the control: where nothing was kept, all is trained
    return out


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grow by one for every epoch that is begun from now on."""
    epochs: list[int] = []
    monkeypatch.setattr(AdaptationTraining, "on_train_epoch_start", lambda _: epochs.append(1))
    return epochs


def weights(run: Path) -> Any:
    return torch.load(run / "model.pt", weights_only=True)


def assert_same_weights(run: Path, other: Path) -> None:
    ours, theirs = weights(run), weights(other)
    assert set(ours) == set(theirs)
    for part in ours:
        for name, value in ours[part].items():
            torch.testing.assert_close(value, theirs[part][name], rtol=0, atol=0, msg=f"{part}.{name} differs")


def killed(words: list[str]) -> None:
    """Kill the process when it begins the second epoch of the second network."""
    done = subprocess.run([sys.executable, "-c", KILL, *words], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


def disk_full(words: list[str]) -> None:
    """Let the disk be full when the second epoch of the second network ends, before its checkpoint is written."""
    ended: list[int] = []

    def ends(*_: Any) -> None:
        ended.append(1)
        if len(ended) == 4:
            raise OSError(errno.ENOSPC, "planted")

    with pytest.MonkeyPatch.context() as planted:
        planted.setattr("training.fit._Log.on_train_epoch_end", ends)
        with pytest.raises(Refusal) as refused:
            adapt.main(words)
    assert refused.value.code == "storage_full"


@pytest.mark.parametrize("end", [killed, disk_full])
def test_it_goes_on_from_its_last_checkpoint_and_ends_as_if_it_had_not_stopped(
    hospitals: dict[str, Path], whole: Path, tmp_path: Path, begun: list[int], end: Callable[[list[str]], None]
) -> None:
    words = command(hospitals, "north", tmp_path / "out", *SHORT)
    end(words)
    rounds = tmp_path / "out" / "rounds"
    assert (rounds / "1-0" / "model.pt").exists()
    assert not (rounds / "1-1" / "model.pt").exists()
    assert (rounds / "1-1" / "last.ckpt").exists()
    with pytest.raises(Refusal, match="not finished"):
        load_weights(tmp_path / "out")
    kept = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    for other in (("--seed", "1"), ("--members", "1")):
        with pytest.raises(Refusal, match="adaptation") as refused:
            adapt.main([*words, *other])
        assert refused.value.code == "output_exists"
    assert kept == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    begun.clear()
    assert adapt.main(words) == 0
    assert len(begun) == EPOCHS - 3  # one whole network and one epoch were not trained again
    assert_same_weights(tmp_path / "out", whole)
    assert not torch.equal(*(weights(run)["classifier"]["head.weight"] for run in (whole, hospitals["run"])))
    assert not rounds.exists()


def test_what_is_finished_is_left_and_a_folder_that_cannot_be_written_refused(
    hospitals: dict[str, Path], whole: Path, begun: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    (whole / "rounds" / "2-0").mkdir(parents=True)  # a kill after the weights were written
    assert adapt.main(command(hospitals, "north", whole, *SHORT)) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert begun == []
    assert not (whole / "rounds").exists()
    with pytest.raises(Refusal) as refused:
        adapt.main(command(hospitals, "north", Path("/proc/adapted"), "--method", "adabn", source=False))
    assert refused.value.code == "config_invalid"


def test_the_target_is_a_domain_of_the_adapted_runs_distance(hospitals: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert adapt.main(command(hospitals, "north", out, "--method", "adabn", source=False)) == 0
    config = read_run(out).config
    images = export.load_run_images(out, hospitals["data"]).where("train", config)
    target = load_images(read_manifest(hospitals["north test"], ("north",), config.classes).rows, config.input, "testing").tensors
    distances = []
    for known in (True, False):
        if not known:  # control: without the target's statistics
            weights = torch.load(out / "model.pt", weights_only=True)
            weights["target"] = {name: part[:0] for name, part in weights["target"].items()}
            torch.save(weights, out / "model.pt")
        with torch.no_grad():
            distances.append(float(export.build(out, images)(torch.from_numpy(target))[3].median()))
    assert distances[0] < 1.3
    assert distances[1] > distances[0] + 0.1


@pytest.mark.usefixtures("small")
def test_what_comes_of_it_is_a_run_like_any_other(
    hospitals: dict[str, Path], spec_file: Path, about: Path, tmp_path: Path
) -> None:
    """Its loss prediction too: fitted to the errors of adapted runs on what they did not see, where the source is here."""
    run, out, data = tmp_path / "run", tmp_path / "out", ["--data", str(hospitals["data"])]
    words = training(spec_file, hospitals["data"], run, "--domains", "east", "--epochs", "2", "--loss-prediction", "held-out")
    assert classifier.main(words) == 0
    for verb in (export, calibrate):
        assert verb.main([str(run), *data]) == 0
    words = [str(run), "--unlabelled", str(hospitals["east"]), "--domain", "south", "--out", str(out)]
    short = ["--rounds", "1", "--members", "1", "--epochs", "1"]
    assert adapt.main([*words, *short]) == 0  # without the source it stays
    weights, before = (torch.load(folder / "model.pt", weights_only=True) for folder in (out, run))
    assert torch.equal(weights["loss_prediction"]["score.weight"], before["loss_prediction"]["score.weight"])
    assert load_weights(out) is not None
    shutil.rmtree(out)
    marked = [hospitals["east"] / f"east_{label}_0.png" for label in ("level", "upright")]
    write_rows(tmp_path / "labels.csv", [{"image": str(file), "label": file.name.split("_")[1]} for file in marked])
    assert adapt.main([*words, *short, *data, "--target-labels", str(tmp_path / "labels.csv")]) == 0
    assert (out / "fold_0" / "model.pt").exists()
    weights = torch.load(out / "model.pt", weights_only=True)
    assert set(weights) == {"classifier", "loss_prediction", "target"}
    assert not torch.equal(weights["loss_prediction"]["score.weight"], before["loss_prediction"]["score.weight"])
    for verb in (export, calibrate, evaluate):
        assert verb.main([str(out), *data]) == 0
    words = [str(out), "--name", "adapted", "--version", "1.0.0", "--about", str(about), "--out", str(tmp_path / "zoo")]
    with pytest.raises(Refusal, match="south"):  # whose images they were must be said
        release.main(words)
    document = json.loads(about.read_text())
    document["sources"]["south"] = document["sources"]["east"]
    about.write_text(json.dumps(document))
    assert release.main(words) == 0
    card = read_package(tmp_path / "zoo" / "adapted")[0]
    seen = read_seen(tmp_path / "zoo" / "adapted", card.model_sha256)  # so that nobody compares on what was trained on
    assert seen is not None
    digests = {file: sha256(file.read_bytes()).hexdigest() for file in hospitals["east"].glob("*.png")}
    assert {file for file, digest in digests.items() if seen.holds([digest], "")} == set(marked)
    assert card.training.config["adaptation"]["domain"] == "south"
    assert {source.domain: source.images for source in card.training.sources}["south"] == 120
    assert "overread adapt" in card.training.command
    assert str(tmp_path) not in card.training.command
    assert evaluate.main([str(tmp_path / "zoo" / "adapted"), *data]) == 0


def test_a_few_labels_take_part_and_are_not_guessed(hospitals: dict[str, Path], tmp_path: Path) -> None:
    folder, file = hospitals["north"], tmp_path / "labels.csv"
    labels = [(label, index) for label in ("level", "upright") for index in range(6)]
    write_rows(file, [{"image": str(folder / f"north_{label}_{index}.png"), "label": label} for label, index in labels])
    short = ("--rounds", "1", "--members", "1", "--epochs", "1", "--target-labels", str(file))
    assert adapt.main(command(hospitals, "north", tmp_path / "out", *short)) == 0
    report = json.loads((tmp_path / "out" / "adaptation.json").read_text())
    assert report["labels"] == 12
    assert report["target"]["images"] == 120 - 12
    assert any("labels" in text for text in report["lost"])
    assert read_run(tmp_path / "out").trained_on["new"][0] == 120
    assert read_run(tmp_path / "out").config.adaptation.labels_sha256  # type: ignore[union-attr]
