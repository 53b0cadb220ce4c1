"""The tutorial's commands work as printed, one after another, and bring what the text between them says."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from service.settings import shipped_models
from tests.conftest import ROOT, Server
from tests.shell_blocks import blocks, run_block

PAGE = (ROOT / "docs" / "tutorial.md").read_text()


@pytest.fixture(scope="module")
def live(start_server: Callable[..., Server]) -> Server:
    return start_server(*shipped_models())


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks to the commands like the checkout in which a newcomer stands."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    return tmp_path


def run(block: str, live: Server, folder: Path) -> subprocess.CompletedProcess[str]:
    return run_block(block, folder, live.url, live.state)


def test_every_block_runs_and_brings_what_is_said(live: Server, checkout: Path) -> None:
    shown: list[str] = []
    for block in blocks(PAGE):
        done = run(block, live, checkout)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        shown.append(done.stdout)
    phantom, small, labelled, metrics, made, released, promoted = shown
    scan = json.loads(phantom.splitlines()[-1])
    assert (scan["verdict"], [reason["code"] for reason in scan["reasons"]]) == ("refuse", ["phantom"])
    assert not scan["findings"][0]["positive"]
    answer = json.loads(small)
    assert (answer["verdict"], answer["findings"][0]["positive"]) == ("accept", False)
    assert json.loads(labelled)["label_id"]
    assert re.search(r'^overread_labels_total\{source="api"\} 1', metrics, re.MULTILINE)
    assert re.search(r'^overread_verdicts_total\{.*reason="phantom".*\} 1', metrics, re.MULTILINE)
    assert "auroc" in made
    assert "version 2.0.0 written" in released
    versions = [json.loads((checkout / "runs" / name).read_text())["model"]["version"] for name in ("promoted.json", "back.json")]
    assert versions == ["2.0.0", answer["model"]["version"]]
    assert len(re.findall("cxr-pneumonia", promoted.split("\n\n")[-1])) >= 2


def test_a_block_that_fails_is_seen(live: Server, checkout: Path) -> None:
    assert run("overread promote models/zoo/no-such-package", live, checkout).returncode == 2
    assert run("curl -sf http://127.0.0.1:3000/v1/nothing | cat", live, checkout).returncode != 0
