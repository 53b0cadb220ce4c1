"""``overread predict``: one row a file, bad files named and passed over, the same numbers as the predictor's."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from models.batch import MAX_FILE_BYTES, main
from models.errors import Refusal
from models.imaging import read_image
from models.predictor import Predictor


@pytest.fixture
def folder(tmp_path: Path, draw: Callable[..., bytes]) -> Path:
    scans = tmp_path / "scans"
    (scans / "deeper").mkdir(parents=True)
    (scans / "a.png").write_bytes(draw(1))
    (scans / "deeper" / "b.png").write_bytes(draw(2))
    (scans / "broken.png").write_bytes(draw(3)[:200])
    (scans / "empty.dcm").write_bytes(b"")
    with (scans / "huge.dcm").open("wb") as sparse:
        sparse.truncate(MAX_FILE_BYTES + 1)
    (scans / "notes.txt").write_text("not a scan")
    (scans / ".hidden.png").write_bytes(draw(4))
    return scans


def test_csv_holds_one_row_a_file_and_goes_on_past_bad_ones(folder: Path, package: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.csv"
    assert main([str(folder), "--out", str(out), "--model", str(package)]) == 1
    rows = {Path(row["file"]).name: row for row in csv.DictReader(out.read_text().splitlines())}
    assert {name: row["error"] for name, row in rows.items()} == {
        "a.png": "",
        "b.png": "",
        "broken.png": "not_decodable",
        "empty.dcm": "not_decodable",
        "huge.dcm": "too_large",
    }
    predictor = Predictor.load(package)
    (expected,) = predictor.predict([read_image((folder / "a.png").read_bytes())])
    assert float(rows["a.png"]["predicted_loss"]) == pytest.approx(expected.predicted_loss)
    assert float(rows["a.png"]["probability_pneumonia"]) == pytest.approx(expected.probabilities["pneumonia"])
    assert rows["a.png"]["verdict"] in {"accept", "review", "refuse"}
    assert rows["a.png"]["model_sha256"] == predictor.sha256


def test_jsonl_and_single_files(folder: Path, package: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    assert main([str(folder / "a.png"), str(folder / "deeper"), "--out", str(out), "--model", str(package)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [Path(row["file"]).name for row in rows] == ["a.png", "b.png"]


def test_a_file_named_outright_is_read_whatever_its_ending(folder: Path, package: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    assert main([str(folder / "notes.txt"), "--out", str(out), "--model", str(package)]) == 1
    assert json.loads(out.read_text())["error"] == "not_decodable"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["missing", "--out", "r.csv"], "data_invalid"),
        ([".", "--out", "r.txt"], "config_invalid"),
        ([".", "--out", "r.csv", "--threads", "0"], "config_invalid"),
    ],
)
def test_misuse_is_refused(
    arguments: list[str], code: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal) as refusal:
        main([*arguments, "--model", str(package)])
    assert refusal.value.code == code
