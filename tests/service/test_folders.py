"""A folder in, a folder out: the results, what was skipped, and no name where none belongs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pydicom
import pytest

from models.errors import Refusal
from service.folders import main
from tests.service.archives import chest


@pytest.fixture
def folders(tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Folders as a router gives them, and settings of a site."""
    for name, value in {"STATE": tmp_path / "state", "MODELS": package, "THREADS": 1, "PACS_RESULTS": "sr,sc"}.items():
        monkeypatch.setenv(f"OVERREAD_{name}", str(value))
    source = tmp_path / "in" / "2.25.7#CANARY"
    source.mkdir(parents=True)
    (tmp_path / "in" / "task.json").write_text("{}")
    return source, tmp_path / "out"


def test_results_are_written(folders: tuple[Path, Path], capsys: Any) -> None:
    source, out = folders
    (source / "CANARY^1.dcm").write_bytes(chest(1))
    (source / "CANARY^2.dcm").write_bytes(chest(2, Modality="CT"))
    (source / "CANARY^3.dcm").write_bytes(chest(3, PixelData=b"12"))
    assert main([str(source.parent), str(out)]) == 1
    report = json.loads((out / "result.json").read_text())
    assert report["skipped"] == {"modality_not_accepted": 1}
    assert report["failed"] == {"inconsistent_image": 1}
    (result,) = report["results"]
    assert result["verdict"] in {"accept", "review", "refuse"}
    assert result["reasons"]
    assert report["objects"] == 2
    assert sorted(path.name for path in out.iterdir()) == ["overread-0001-sr.dcm", "overread-0002-ot.dcm", "result.json"]
    assert {pydicom.dcmread(path).StudyInstanceUID for path in out.glob("*.dcm")} == {"2.25.11"}
    shown = capsys.readouterr()
    for text in (shown.out, shown.err, (out / "result.json").read_text()):
        assert "CANARY" not in text
        assert "2.25" not in text


def test_the_same_series_gives_the_same_objects(folders: tuple[Path, Path]) -> None:
    source, out = folders
    (source / "1.dcm").write_bytes(chest(1))
    assert main([str(source), str(out)]) == 0
    first = {path.name: path.read_bytes() for path in out.glob("*.dcm")}
    assert main([str(source), str(out)]) == 0
    assert {path.name: path.read_bytes() for path in out.glob("*.dcm")} == first
    (source / "1.dcm").write_bytes(chest(1, WindowCenter=700))
    assert main([str(source), str(out)]) == 0
    assert {path.name: path.read_bytes() for path in out.glob("*.dcm")} != first


def test_our_own_results_are_no_input(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = folders
    (source / "1.dcm").write_bytes(chest(1))
    assert main([str(source), str(out)]) == 0
    assert main([str(out), str(out / "again")]) == 0
    report = json.loads((out / "again" / "result.json").read_text())
    assert report == {"results": [], "objects": 0, "skipped": {"no_pixel_data": 1, "own_output": 1}, "failed": {}}


def test_a_file_beyond_the_limit_is_not_read(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = folders
    monkeypatch.setenv("OVERREAD_MAX_BODY_BYTES", "2000")
    (source / "1.dcm").write_bytes(chest(1))
    assert main([str(source), str(out)]) == 1
    assert json.loads((out / "result.json").read_text())["failed"] == {"too_large": 1}


def test_a_file_that_cannot_be_read_is_counted(folders: tuple[Path, Path]) -> None:
    source, out = folders
    (source / "1.dcm").write_bytes(chest(1))
    (source / "0.dcm").symlink_to("/proc/self/mem")  # it can be opened, and reading it fails
    assert main([str(source), str(out)]) == 1
    report = json.loads((out / "result.json").read_text())
    assert (len(report["results"]), report["failed"]) == (1, {"not_decodable": 1})


def test_results_that_cannot_be_written(folders: tuple[Path, Path]) -> None:
    source, out = folders
    (out / "result.json").mkdir(parents=True)
    with pytest.raises(Refusal) as caught:
        main([str(source), str(out)])
    assert caught.value.code == "config_invalid"


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(Refusal) as caught:
        main([str(tmp_path / "none"), str(tmp_path / "out")])
    assert caught.value.code == "data_invalid"
