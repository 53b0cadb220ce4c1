"""``overread score`` but for Ray: rows as a plain loop's, parts whole or not there, what a run goes on with, what is refused."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.batch import load_model
from models.batch import main as predict
from models.errors import Refusal
from models.example import tissue_phantom
from models.predictor import Predictor
from service import score_rows
from service.dicom_results import MANUFACTURER, MODEL_NAME
from service.score import _environment, main
from service.score_archive import Folder
from service.score_output import LISTING, MANIFEST, PASSED_OVER, Made, Output
from service.score_rows import count_of, failed_row, parquet_of, row_of, rows_of, schema_of, text_of
from tests.service.archives import chest


@pytest.fixture
def archive(tmp_path: Path, draw: Callable[..., bytes]) -> Path:
    """Three images, two files that are none, and one of ours."""
    root = tmp_path / "archive"
    root.mkdir()
    for number in range(2):
        (root / f"{number}.png").write_bytes(draw(number))
    (root / "2.dcm").write_bytes(chest(2))
    (root / "3.png").write_bytes(draw(3)[:200])
    (root / "4.dcm").write_bytes(b"")
    (root / "5.dcm").write_bytes(chest(5, Manufacturer=MANUFACTURER, ManufacturerModelName=MODEL_NAME))
    return root


def scored(source: Any, package: Path, *, paths: bool = True) -> list[dict[str, Any]]:
    predictor = load_model(package)
    rows = [row_of(at, name, source, predictor, paths=paths) for at, name in enumerate(source.names())]
    return rows_of(parquet_of(rows, schema_of(predictor.card)))


def test_rows_are_what_predict_says(archive: Path, package: Path, tmp_path: Path) -> None:
    """``overread predict`` is a plain loop over the same files."""
    out = tmp_path / "rows.jsonl"
    predict([str(archive), "--out", str(out), "--model", str(package)])
    expected = [json.loads(line) for line in out.read_text().splitlines()]
    found = scored(Folder(archive), package)
    assert [row["path"] for row in found] == [Path(row["file"]).name for row in expected]
    assert [row["position"] for row in found] == list(range(6))
    for row, loop in zip(found[:5], expected[:5], strict=True):
        for name in ("image_sha256", "probability_pneumonia", "positive_pneumonia", "predicted_loss", "predicted_loss_unseen",
                     "loss_percentile", "domain_distance", "domain_percentile", "entropy",
                     "verdict", "error", "detail"):  # fmt: skip
            assert row[name] == loop.get(name), name
        assert (row["reasons"] or []) == loop.get("reasons", "").split()
        assert row["file_sha256"] == hashlib.sha256((archive / row["path"]).read_bytes()).hexdigest()
        assert (row["model"], row["model_version"]) == ("tiny", "1.0.0")
        assert row["model_sha256"] == Predictor.load(package).sha256
    assert [row["error"] for row in found] == [None, None, None, "not_decodable", "not_decodable", "own_output"]


def test_a_segmenter_has_rows_of_quantities(tmp_path: Path, make_segmenter: Callable[..., Path]) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "tissue.png").write_bytes(tissue_phantom())
    (row,) = scored(Folder(tmp_path / "slides"), make_segmenter())
    assert row["count"] > 20
    assert row["density_per_mm2"] is None
    assert row["verdict"] in {"accept", "review"}


def test_rows_without_names(archive: Path, package: Path) -> None:
    named, nameless = scored(Folder(archive), package), scored(Folder(archive), package, paths=False)
    assert {row["path"] for row in nameless} == {None}
    assert [row | {"path": None} for row in named] == nameless


def test_names_become_text() -> None:
    assert text_of("Müller.png".encode()) == "Müller.png"
    assert text_of(b"M\xfcller.png") == "M\\xfcller.png"


def test_a_fault_of_ours_is_a_row_and_a_lost_archive_is_none(archive: Path, package: Path, monkeypatch: Any) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("4.dcm")

    monkeypatch.setattr(score_rows, "read_bytes", fail)
    row = scored(Folder(archive), package)[0]
    assert row["error"] == "internal_error"
    assert "4.dcm" not in row["detail"]

    class Lost(Folder):
        def read(self, name: bytes) -> Any:
            raise Refusal("folder_unavailable")

    with pytest.raises(Refusal, match="folder_unavailable"):
        row_of(0, b"0.png", Lost(archive), load_model(package), paths=True)


def made(**changes: Any) -> Made:
    return Made(
        **(
            {"model": "m", "model_version": "1", "model_sha256": "a", "archive_sha256": "b", "part_files": 2, "paths": True}
            | changes
        )
    )


NAMES = [f"{number}.png".encode() for number in range(5)]


def fill(output: Output, package: Path, parts: Any) -> None:
    card = load_model(package).card
    for part in parts:
        first = part * output.made.part_files
        names = output.listing()[first : first + output.size(part)]
        rows = [failed_row(first + at, name, card, "a", paths=output.made.paths) for at, name in enumerate(names)]
        output.keep(part, parquet_of(rows, schema_of(card)))


def test_parts_that_are_whole_are_not_made_again(tmp_path: Path, package: Path) -> None:
    output = Output(tmp_path, made(), lambda: NAMES)
    assert output.missing == [0, 1, 2]
    assert [output.size(part) for part in output.parts] == [2, 2, 1]
    fill(output, package, [0, 2])
    (tmp_path / ".part-000001.parquet.tmp").write_bytes(b"cut off")
    again = Output(tmp_path, made(), lambda: pytest.fail("listed again"))
    assert again.missing == [1]
    assert not list(tmp_path.glob(".*"))
    assert again.listing() == NAMES
    last = tmp_path / "part-000002.parquet"
    last.write_bytes(last.read_bytes()[:-9])
    (tmp_path / "part-000001.parquet").write_bytes((tmp_path / "part-000002.parquet").read_bytes())
    assert Output(tmp_path, made(), list).missing == [1, 2]


@pytest.mark.parametrize(
    "change", [{"model_sha256": "c"}, {"archive_sha256": "c"}, {"part_files": 3}, {"paths": False}, {"overread": "0"}]
)
def test_a_run_of_something_else_is_not_gone_on_with(tmp_path: Path, change: dict[str, Any]) -> None:
    Output(tmp_path, made(), lambda: NAMES)
    Output(tmp_path, made(), lambda: NAMES)
    with pytest.raises(Refusal, match=next(iter(change))) as caught:
        Output(tmp_path, made(**change), lambda: NAMES)
    assert caught.value.code == "output_exists"


def test_a_folder_that_was_meddled_with(tmp_path: Path, package: Path) -> None:
    output = Output(tmp_path, made(), lambda: NAMES)
    fill(output, package, [0])
    (tmp_path / LISTING).write_bytes(b"other\0")
    with pytest.raises(Refusal, match="output_exists"):
        output.listing()
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(Refusal, match="output_exists"):
        Output(tmp_path, made(), lambda: NAMES)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(Refusal, match="output_exists"):
        Output(tmp_path, made(), lambda: NAMES)


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "storage_full"), (errno.EROFS, "storage_unavailable")])
def test_a_disk_that_fails_keeps_what_was_written(
    tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    output = Output(tmp_path, made(), lambda: NAMES)
    fill(output, package, [0])
    before = (tmp_path / "part-000000.parquet").read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Refusal) as caught:
        fill(output, package, [1])
    assert caught.value.code == code
    assert sorted(path.name for path in tmp_path.glob("part-*")) == ["part-000000.parquet"]
    assert (tmp_path / "part-000000.parquet").read_bytes() == before


def test_a_part_is_on_the_disk_before_it_has_its_name(tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Output(tmp_path, made(), lambda: NAMES)
    synced: list[bool] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append((tmp_path / "part-000000.parquet").exists()), real(handle))[1])
    fill(output, package, [0])
    assert synced == [False, True]  # the file under its draft's name, then the folder


@pytest.mark.parametrize("paths", [True, False])
def test_what_was_passed_over_is_listed(tmp_path: Path, package: Path, paths: bool) -> None:
    output = Output(tmp_path, made(paths=paths), lambda: NAMES)
    fill(output, package, output.parts)
    assert output.finish() == ({}, {"internal_error": 5})
    rows = list(csv.DictReader((tmp_path / PASSED_OVER).read_text().splitlines()))
    assert [row["path"] for row in rows] == [name.decode() if paths else "" for name in NAMES]
    assert [row["position"] for row in rows] == list("01234")
    assert {row["error"] for row in rows} == {"internal_error"}
    assert (tmp_path / LISTING).exists() == paths
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert (b".png" in held) == paths
    assert Output(tmp_path, made(paths=paths), lambda: pytest.fail("listed again")).missing == []


def test_the_same_rows_are_the_same_bytes_and_a_broken_file_is_seen(tmp_path: Path, package: Path) -> None:
    schema = schema_of(load_model(package).card)
    rows = [{"position": 1, "probability_pneumonia": np.float64(0.25), "reasons": ["domain_far"]}]
    content = parquet_of(rows, schema)
    assert content == parquet_of(rows, schema)
    (tmp_path / "whole.parquet").write_bytes(content)
    (tmp_path / "cut.parquet").write_bytes(content[:-3])
    assert count_of(tmp_path / "whole.parquet") == 1
    assert count_of(tmp_path / "cut.parquet") is None
    assert count_of(tmp_path / "none.parquet") is None
    assert pq.read_table(tmp_path / "whole.parquet").schema.equals(schema)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["missing", "--out", "o"], "data_invalid"),
        (["http://archive.example/web", "--out", "o"], "config_invalid"),
        ([".", "--out", "o", "--part", "0"], "config_invalid"),
        ([".", "--out", "o", "--workers", "0"], "config_invalid"),
        ([".", "--out", "file/o"], "config_invalid"),
        (["empty", "--out", "o"], "data_invalid"),
    ],
)
def test_misuse_is_refused_before_ray_starts(
    arguments: list[str], code: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("service.score._environment", lambda _: None)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Refusal) as refusal:
        main([*arguments, "--model", str(package)])
    assert refusal.value.code == code


def test_two_runs_do_not_share_a_folder(archive: Path, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr("service.score._environment", lambda _: None)
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / "score.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Refusal, match="Another 'overread score'"):
            main([str(archive), "--out", str(tmp_path / "out"), "--model", str(package)])


def test_ray_is_told_to_keep_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    variables: dict[str, str] = {"RAY_AUTH_TOKEN": "theirs"}
    monkeypatch.setattr("service.score.os.environ", variables)
    _environment("127.0.0.1:6379")
    assert variables["RAY_USAGE_STATS_ENABLED"] == "0"
    assert variables["RAY_AUTH_TOKEN"] == "theirs"
    _environment(None)
    assert variables["RAY_AUTH_MODE"] == "token"
    assert len(variables["RAY_AUTH_TOKEN"]) == 64
