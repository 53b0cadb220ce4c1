"""``overread select``: the strategies of the benchmark on a model package, each choice with why, bad files passed over."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.active_learning import CONTROL, OURS, SELECTIONS, Choosing
from benchmarks.active_training import Seen as BenchmarkSeen
from models import seen as seen_module
from models.errors import Refusal
from models.imaging import read_image
from models.pool import BEST, STRATEGIES, WHY, Given, main
from models.predictor import Predictor
from models.selection import select
from tests.conftest import ROOT
from tests.killed import killed_after

Draw = Callable[..., bytes]


def given(count: int = 60, budget: int = 7, patients: int = 60) -> Given:
    random = np.random.default_rng(0)
    return Given(
        random.random(count), random.dirichlet(np.ones(3), count), random.normal(size=(count, 4)).astype(np.float32),
        random.normal(size=(5, 4)).astype(np.float32), np.array([f"p{index % patients}" for index in range(count)]), budget, 3,
    )  # fmt: skip


@pytest.fixture
def scans(tmp_path: Path, draw: Draw) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for index in range(12):
        (folder / f"{index:02}.png").write_bytes(draw(index))
    return folder


def words(scans: Path, package: Path, out: Path) -> list[str]:
    return ["--pool", str(scans), "--budget", "3", "--out", str(out), "--model", str(package)]


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by one for every image that is predicted from now on."""
    predicted: list[int] = []
    real = Predictor.predict
    monkeypatch.setattr(Predictor, "predict", lambda by, images: (predicted.append(1), real(by, images))[1])
    return predicted


def chosen(out: Path) -> list[dict[str, str]]:
    return [row for row in csv.DictReader(out.read_text().splitlines()) if row["rank"]]


def test_the_strategies_are_those_that_the_benchmark_measures() -> None:
    measured = {name: selection for name, selection in SELECTIONS.items() if name != CONTROL}  # of how the network is trained
    assert list(STRATEGIES) == list(measured)
    assert BEST == OURS
    for patients in (60, 5):  # enough patients for one image each, and not enough
        pool = given(patients=patients)
        seen = BenchmarkSeen(pool.probabilities, pool.features, pool.loss)  # type: ignore[arg-type]
        for name, selection in measured.items():
            theirs = selection.choose(Choosing(seen, pool.labelled, pool.groups, pool.budget, pool.seed))  # type: ignore[arg-type]
            assert [index for index, _ in STRATEGIES[name](pool)] == theirs.tolist(), name


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_every_choice_says_why(name: str) -> None:
    found = STRATEGIES[name](given())
    assert len({index for index, _ in found}) == 7
    assert all(codes and set(codes) <= set(WHY) for _, codes in found)


def test_every_reason_is_documented() -> None:
    text = (ROOT / "docs" / "select.md").read_text()
    assert all(f"| `{code}` |" in text and meaning in text for code, meaning in WHY.items())
    assert all(f"`{name}`" in text for name in STRATEGIES)


def test_the_best_first_in_the_worklists_order(scans: Path, package: Path, tmp_path: Path) -> None:
    out = tmp_path / "chosen.csv"
    assert main(["--pool", str(scans), "--budget", "5", "--model", str(package), "--out", str(out)]) == 0
    rows = chosen(out)
    predictor = Predictor.load(package)
    files = sorted(scans.iterdir())
    found = [predictor.predict([read_image(file.read_bytes())])[0] for file in files]
    classes = np.array([int(np.argmax(list(each.probabilities.values()))) for each in found])
    expected = select(np.array([each.loss_score for each in found]), classes, np.array([each.features for each in found]), 5)
    assert [row["file"] for row in rows] == [str(files[choice.index]) for choice in expected]
    assert [row["why"] for row in rows] == [" ".join(choice.reasons) for choice in expected]
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert rows[0]["model_sha256"] == predictor.sha256
    first = out.read_bytes()
    assert main(["--pool", str(scans), "--budget", "5", "--model", str(package), "--out", str(out)]) == 0
    assert out.read_bytes() == first


def test_strategy_seed_and_what_is_labelled_decide(scans: Path, package: Path, tmp_path: Path) -> None:
    def run(*more: str) -> list[str]:
        out = tmp_path / "chosen.csv"
        main(["--pool", str(scans), "--budget", "4", "--model", str(package), "--out", str(out), *more])
        return [Path(row["file"]).name for row in chosen(out)]

    doubtful = run("--strategy", "learned loss")
    predictor = Predictor.load(package)
    scores = {file.name: predictor.predict([read_image(file.read_bytes())])[0].loss_score for file in scans.iterdir()}
    assert doubtful == sorted(scores, key=lambda name: -scores[name])[:4]
    assert run("--strategy", "random") != run("--strategy", "random", "--seed", "1")
    labelled = tmp_path / "labelled"
    labelled.mkdir()
    for name in doubtful:
        shutil.copy(scans / name, labelled / f"other name {name}")
    again = run("--strategy", "learned loss", "--labelled", str(labelled))
    assert again == sorted(scores, key=lambda name: -scores[name])[4:8]
    assert set(run("--strategy", "core-set", "--labelled", str(labelled))).isdisjoint(doubtful)


def test_bad_files_and_copies_are_listed_and_passed_over(scans: Path, package: Path, tmp_path: Path, draw: Draw) -> None:
    (scans / "broken.png").write_bytes(draw(3)[:200])
    (scans / "copy.png").write_bytes(draw(0))
    out = tmp_path / "chosen.csv"
    assert main(["--pool", str(scans), "--budget", "100", "--model", str(package), "--out", str(out)]) == 1
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert len(chosen(out)) == 12
    assert {Path(row["file"]).name: row["error"] for row in rows if not row["rank"]} == {
        "broken.png": "not_decodable", "copy.png": "duplicate",
    }  # fmt: skip
    (scans / "broken.png").unlink()
    assert main(["--pool", str(scans), "--budget", "1", "--model", str(package), "--out", str(out)]) == 0  # a copy is no failure


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (("--budget", "0"), "config_invalid"),
        (("--seed", "-1"), "config_invalid"),
        (("--threads", "0"), "config_invalid"),
        (("--out", "chosen.txt"), "config_invalid"),
        (("--out", "missing/chosen.csv"), "config_invalid"),
        (("--pool", "missing"), "data_invalid"),
        (("--model", "missing"), "package_invalid"),
    ],
)
def test_misuse_is_refused(
    scans: Path, package: Path, tmp_path: Path, more: tuple[str, ...], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal) as refused:
        main(["--pool", str(scans), "--budget", "2", "--model", str(package), "--out", "chosen.csv", *more])
    assert refused.value.code == code


def test_a_pool_without_an_image_and_a_segmenter_are_refused(
    tmp_path: Path, package: Path, make_segmenter: Callable[..., Path]
) -> None:
    (tmp_path / "empty").mkdir()
    words = ["--pool", str(tmp_path / "empty"), "--budget", "2", "--out", str(tmp_path / "chosen.csv")]
    with pytest.raises(Refusal, match="no image") as refused:
        main([*words, "--model", str(package)])
    assert refused.value.code == "data_invalid"
    with pytest.raises(Refusal, match="classifier"):
        main([*words, "--model", str(make_segmenter())])


def test_one_image_a_patient_while_there_are_enough() -> None:
    few = STRATEGIES[BEST](given(budget=6, patients=6))
    assert len({index % 6 for index, _ in few}) == 6
    more = STRATEGIES[BEST](given(budget=7, patients=6))
    assert len(more) == 7
    assert len({index % 6 for index, _ in more}) < 7


def test_it_needs_no_torch() -> None:
    code = "import sys, models.pool; print({'torch', 'sklearn', 'lightning'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "set()"


@pytest.mark.parametrize("leave", ["nothing", "an empty folder"])
def test_a_pool_that_vanishes_is_told_apart_from_a_bad_file(
    scans: Path, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave: str
) -> None:
    (scans / "00-broken.png").write_bytes(b"no image")
    control = words(scans, package, tmp_path / "control.csv")
    assert main(control) == 1  # a bad file is passed over
    real, seen = seen_module.look, []

    def vanish(path: Path, *more: Any) -> Any:
        seen.append(path)
        if len(seen) == 5:
            shutil.move(scans, tmp_path / "away")
            if leave == "an empty folder":
                scans.mkdir()
        return real(path, *more)

    monkeypatch.setattr(seen_module, "look", vanish)
    with pytest.raises(Refusal) as refusal:
        main([*words(scans, package, tmp_path / "o.csv"), "--threads", "1"])
    assert refusal.value.code == "folder_unavailable"
    assert "scans" not in str(refusal.value)
    assert not (tmp_path / "o.csv").exists()
    monkeypatch.undo()
    if leave == "an empty folder":
        scans.rmdir()
    shutil.move(tmp_path / "away", scans)
    predicted = counting(monkeypatch)
    assert main(words(scans, package, tmp_path / "o.csv")) == 1
    assert len(predicted) == 12 - 3  # the broken file came first
    assert (tmp_path / "o.csv").read_bytes() == (tmp_path / "control.csv").read_bytes()


def test_killed_it_goes_on_with_the_rest_and_chooses_the_same(
    scans: Path, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "killed.csv", tmp_path / "whole.csv"
    labelled = ["--labelled", str(scans / "00.png"), "--strategy", "core-set"]
    killed_after(5, ["select", *words(scans, package, out), *labelled])
    assert not out.exists()
    predicted = counting(monkeypatch)
    assert main([*words(scans, package, out), *labelled]) == 0
    assert len(predicted) == 12 - 5
    assert main([*words(scans, package, whole), *labelled]) == 0
    assert len(predicted) == 12 - 5 + 12  # control: nothing is kept under that name; what is labelled lies in the pool too
    assert out.read_bytes() == whole.read_bytes()
    predicted.clear()
    assert main([*words(scans, package, out), "--budget", "6", "--strategy", "entropy"]) == 0
    assert predicted == []  # another budget and strategy need no prediction
    assert len(chosen(out)) == 6


def test_where_nothing_can_be_kept_no_time_is_spent(scans: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predicted = counting(monkeypatch)
    with pytest.raises(Refusal) as refusal:
        main(words(scans, package, Path("/proc/chosen.csv")))
    assert refusal.value.code == "config_invalid"
    assert predicted == []


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "storage_full"), (errno.ESTALE, "storage_unavailable")])
def test_a_disk_that_fails_half_way_keeps_what_was_predicted(
    scans: Path, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    real, written = os.write, []

    def fail(handle: int, data: bytes) -> int:
        written.append(1)
        if len(written) == 5:
            raise OSError(number, "planted")
        return real(handle, data)

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(Refusal) as refusal:
        main(words(scans, package, tmp_path / "o.csv"))
    assert refusal.value.code == code
    monkeypatch.undo()
    predicted = counting(monkeypatch)
    assert main(words(scans, package, tmp_path / "o.csv")) == 0
    assert len(predicted) == 12 - 4


def test_a_mount_that_is_there_and_cannot_be_listed(
    scans: Path, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ESTALE, "planted")

    monkeypatch.setattr(Path, "rglob", dead)
    with pytest.raises(Refusal) as refusal:
        main(words(scans, package, tmp_path / "o.csv"))
    assert refusal.value.code == "folder_unavailable"
