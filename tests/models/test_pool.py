"""``overread select``: the strategies of the benchmark on a model package, each choice with why, bad files passed over."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.active_learning import OURS, SELECTIONS, Choosing
from benchmarks.active_training import Seen as BenchmarkSeen
from models import pool as pool_module
from models.errors import Refusal
from models.imaging import read_image
from models.pool import BEST, STRATEGIES, WHY, Given, main, patient_of
from models.predictor import Predictor
from models.selection import select
from tests.conftest import ROOT

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


def chosen(out: Path) -> list[dict[str, str]]:
    return [row for row in csv.DictReader(out.read_text().splitlines()) if row["rank"]]


def test_the_strategies_are_those_that_the_benchmark_measures() -> None:
    assert list(STRATEGIES) == list(SELECTIONS)
    assert BEST == OURS
    for patients in (60, 5):  # enough patients for one image each, and not enough
        pool = given(patients=patients)
        seen = BenchmarkSeen(pool.probabilities, pool.features, pool.loss)  # type: ignore[arg-type]
        for name, selection in SELECTIONS.items():
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


def test_a_picture_is_its_own_patient(draw: Draw) -> None:
    image = read_image(draw(1))
    assert patient_of(image) == image.sha256


def test_it_needs_no_torch() -> None:
    code = "import sys, models.pool; print({'torch', 'sklearn', 'lightning'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "set()"


@pytest.mark.parametrize("leave", ["nothing", "an empty folder"])
def test_a_pool_that_vanishes_is_told_apart_from_a_bad_file(
    scans: Path, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave: str
) -> None:
    (scans / "00-broken.png").write_bytes(b"no image")
    arguments = [
        "--pool",
        str(scans),
        "--budget",
        "3",
        "--out",
        str(tmp_path / "o.csv"),
        "--model",
        str(package),
        "--threads",
        "1",
    ]
    assert main(arguments) == 1  # the control: a bad file is passed over
    (tmp_path / "o.csv").unlink()
    real, seen = pool_module.look, []

    def vanish(path: Path, predictor: Predictor) -> object:
        seen.append(path)
        if len(seen) == 5:
            shutil.move(scans, tmp_path / "away")
            if leave == "an empty folder":
                scans.mkdir()
        return real(path, predictor)

    monkeypatch.setattr(pool_module, "look", vanish)
    with pytest.raises(Refusal) as refusal:
        main(arguments)
    assert refusal.value.code == "folder_unavailable"
    assert "scans" not in str(refusal.value)
    assert not (tmp_path / "o.csv").exists()
