"""The tutorial's commands work as printed, one after another, and bring what the text between them says.

``make test-long`` runs the whole page. What comes before the training runs each time, and tests/contract/test_help.py parses the
rest.
"""

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

BLOCKS = blocks((ROOT / "docs" / "tutorial.md").read_text())


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


def shown(these: list[str], live: Server, folder: Path) -> list[str]:
    """Run blocks one after another and return what each prints."""
    printed = []
    for block in these:
        done = run(block, live, folder)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout)
    return printed


def check_scans(phantom: str, small: str, labelled: str, metrics: str) -> str:
    """Compare what the blocks before the training print with the text between them; return the version of the model."""
    scan = json.loads(phantom.splitlines()[-1])
    assert (scan["verdict"], [reason["code"] for reason in scan["reasons"]]) == ("refuse", ["phantom"])
    assert not scan["findings"][0]["positive"]
    answer = json.loads(small)
    assert (answer["verdict"], answer["findings"][0]["positive"]) == ("accept", False)
    assert json.loads(labelled)["label_id"]
    assert re.search(r'^overread_labels_total\{source="api"\} [1-9]', metrics, re.MULTILINE)
    assert re.search(r'^overread_verdicts_total\{.*reason="phantom".*\} 1', metrics, re.MULTILINE)
    return str(answer["model"]["version"])


def test_the_blocks_before_the_training_run_and_bring_what_is_said(live: Server, checkout: Path) -> None:
    assert [number for number, block in enumerate(BLOCKS) if "overread train" in block] == [4]
    check_scans(*shown(BLOCKS[:4], live, checkout))


@pytest.mark.long
def test_the_whole_page_runs_and_brings_what_is_said(start_server: Callable[..., Server], checkout: Path) -> None:
    live = start_server(*shipped_models())
    *scans, _, released, promoted = shown(BLOCKS, live, checkout)
    version = check_scans(*scans)
    assert "version 2.0.0 written" in released
    found = [json.loads((checkout / "runs" / name).read_text())["model"]["version"] for name in ("promoted.json", "back.json")]
    assert found == ["2.0.0", version]
    assert promoted


def test_a_block_that_fails_is_seen(live: Server, checkout: Path) -> None:
    assert run("overread promote models/zoo/no-such-package", live, checkout).returncode == 2
    assert run("curl -sf http://127.0.0.1:3000/v1/nothing | cat", live, checkout).returncode != 0
