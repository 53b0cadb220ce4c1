"""Only the released model runs (row 11 of docs/reliability.md, through a server)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import ROOT
from tests.ports import free_port


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


CHANGES: dict[str, Callable[[Path], None]] = {
    "a bit of the graph": lambda folder: flip(folder / "model.onnx"),
    "a bit of the card": lambda folder: flip(folder / "card.json"),
    "an unknown schema": lambda folder: edit(folder / "card.json", lambda card: card.update(schema_version=2)),
    "a missing field": lambda folder: edit(folder / "card.json", lambda card: card.pop("calibration")),
}


def serve(package: Path, state: Path, *command: str) -> tuple[int, str]:
    """Start a server that must end by itself; return its exit code and what it wrote."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OVERREAD_")}
    environment |= {"OVERREAD_STATE": str(state), "OVERREAD_MODELS": str(package), "BENTOML_HOME": str(state / "bentoml")}
    environment |= {"BENTOML_DO_NOT_TRACK": "True"}
    arguments = [sys.executable, *command, "--port", str(free_port())]
    done = subprocess.run(
        arguments,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_package_is_refused_at_the_start(package: Path, tmp_path: Path, change: str) -> None:
    changed = tmp_path / "tiny"
    shutil.copytree(package, changed)
    CHANGES[change](changed)
    code, output = serve(changed, tmp_path / "state", "-m", "models.cli", "serve")
    assert code == 2
    assert "[package_invalid]" in output
    assert "Traceback" not in output
    assert not (tmp_path / "state" / "overread.sqlite3").exists()


def test_a_bare_bentoml_serve_ends_as_well(package: Path, tmp_path: Path) -> None:
    changed = tmp_path / "tiny"
    shutil.copytree(package, changed)
    flip(changed / "model.onnx")
    _, output = serve(changed, tmp_path / "state", "-m", "bentoml", "serve", "service.app:Overread")
    # It has ended, or the call above would have failed; BentoML tries a few times before it listens.
    assert 1 <= output.count("[package_invalid]") < 20


def test_a_package_changed_under_a_running_server_is_not_served(
    start_server: Callable[..., Any], package: Path, tmp_path: Path, draw: Any, predict: Any
) -> None:
    """The control, and more: the unchanged copy serves; a change is met by the next start, never by a running worker."""
    copy = tmp_path / "tiny"
    shutil.copytree(package, copy)
    server = start_server(copy)
    before = predict(server, draw(1)).json()
    flip(copy / "model.onnx")
    assert predict(server, draw(1)).json() == before
    assert httpx.get(f"{server.url}/v1/models", timeout=60).json()["models"][0]["sha256"] == before["model"]["sha256"]
