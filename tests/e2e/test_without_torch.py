"""Serving needs no torch: the environment that ``make serve`` builds has none, and serves."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT, Server
from tests.ports import free_port

PYTHON = ROOT / ".venv" / "bin" / "python"


@pytest.fixture(scope="module")
def python() -> str:
    if not PYTHON.exists():
        if os.environ.get("CI") == "true":
            pytest.fail("the serving environment is missing: make test builds it")
        pytest.skip("the serving environment .venv is missing: make test builds it")
    return str(PYTHON)


@pytest.mark.parametrize("module", ["torch", "lightning", "monai", "sklearn"])
def test_the_serving_environment_has_no_training_library(python: str, module: str) -> None:
    done = subprocess.run([python, "-c", f"import {module}"], capture_output=True, text=True, check=False)
    assert f"No module named '{module}'" in done.stderr


def test_it_serves(python: str, package: Path, tmp_path: Path, draw: Callable[..., bytes]) -> None:
    port, log = free_port(), tmp_path / "log"
    known = os.environ | {"OVERREAD_STATE": str(tmp_path / "state"), "OVERREAD_MODELS": str(package)}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [python, "-m", "models.cli", "serve", "--port", str(port)],
            cwd=ROOT,
            env=known,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    server = Server(process, f"http://127.0.0.1:{port}", tmp_path / "state", log)
    try:
        server.wait_ready()
        answer = httpx.post(f"{server.url}/v1/predict", content=draw(5), headers={"content-type": "image/png"}, timeout=60)
        assert answer.status_code == 200
        assert answer.json()["model"]["name"] == "tiny"
    finally:
        server.stop()


def test_a_training_verb_says_what_is_missing(python: str) -> None:
    done = subprocess.run([python, "-m", "models.cli", "train", "classifier", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "pip install" in done.stderr
    assert "Traceback" not in done.stderr
