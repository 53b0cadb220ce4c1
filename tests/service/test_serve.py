"""``overread serve`` before it hands over: what it checks, and what it leaves on the disk."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.errors import Refusal
from models.example import chest_phantom, tissue_phantom
from service import serve


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, package: Path, tmp_path: Path) -> list[tuple[str, list[str], dict[str, str]]]:
    """Calls of execve, which is not carried out, in a site with one tiny model."""
    calls: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    monkeypatch.setenv("OVERREAD_STATE", str(tmp_path / "new" / "state"))
    monkeypatch.setenv("OVERREAD_MODELS", str(package))
    return calls


def main(*arguments: str) -> None:
    serve.main(list(arguments))


def drawn(words: list[str]) -> bytes:
    """Return the file that a printed line sends, which is drawn while the service starts."""
    (file,) = [Path(word.removeprefix("@")) for word in words if word.startswith("@")]
    end = time.monotonic() + 120
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.1)
    return file.read_bytes()


def test_the_state_folder_is_closed_to_others(started: list[Any], tmp_path: Path) -> None:
    main()
    assert len(started) == 1
    assert (tmp_path / "new" / "state").stat().st_mode & 0o777 == 0o700


def test_the_printed_line_names_a_file_that_is_there(started: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    main("--port", "3999")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  curl ")]
    words = shlex.split(line)
    assert drawn(words) == chest_phantom()
    assert words[-1] == "http://127.0.0.1:3999/v1/predict"


def test_a_line_for_each_kind_of_model(
    started: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: Path,
    make_package: Callable[..., Path],
    make_segmenter: Callable[..., Path],
) -> None:
    folders = [package, make_package("other"), make_segmenter("nuclei"), make_segmenter("cells")]
    monkeypatch.setenv("OVERREAD_MODELS", ":".join(map(str, folders)))
    main("--port", "3999")
    chest, tissue = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("  curl ")]
    assert chest[-1] == "http://127.0.0.1:3999/v1/predict"
    assert tissue[-1] == "http://127.0.0.1:3999/v1/predict?model=nuclei"
    assert "Content-Type: image/png" in tissue
    assert drawn(tissue) == tissue_phantom()


def test_workers_and_address_reach_bentoml(started: list[Any]) -> None:
    main("--host", "localhost", "--port", "3999", "--workers", "3")
    ((_, command, environment),) = started
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "3999"
    assert environment["BENTOML_CONFIG_OPTIONS"] == "services.overread.workers=3"
    assert environment["BENTOML_DO_NOT_TRACK"] == "True"


@pytest.mark.parametrize("name", ["HTTP_PROXY", "https_proxy", "ALL_PROXY"])
def test_no_proxy_reaches_it(started: list[Any], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    main()
    assert name not in started[0][2]


def test_an_open_service_is_not_bound_to_the_network(started: list[Any]) -> None:
    with pytest.raises(Refusal, match="needs tokens"):
        serve.main(["--host", "0.0.0.0"])
    assert started == []


def test_a_broken_package_is_refused_before_anything_starts(
    started: list[Any], monkeypatch: pytest.MonkeyPatch, make_package: Callable[..., Path]
) -> None:
    folder = make_package("broken")
    with (folder / "model.onnx").open("ab") as out:
        out.write(b"\0")
    monkeypatch.setenv("OVERREAD_MODELS", str(folder))
    with pytest.raises(Refusal) as refused:
        serve.main([])
    assert refused.value.code == "package_invalid"
    assert started == []
