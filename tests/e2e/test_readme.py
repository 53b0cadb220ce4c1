"""The README's commands work as printed, against a live server with the shipped model."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from service.settings import shipped_models
from tests.conftest import ROOT, Server, require
from tests.shell_blocks import URL, blocks, is_for_elsewhere, run_block

README = (ROOT / "README.md").read_text()
BLOCKS = blocks(README)


@pytest.fixture(scope="module")
def live(start_server: Callable[..., Server]) -> Server:
    return start_server(*shipped_models())


def run(block: str, live: Server, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a block in ``folder`` as a newcomer's shell would, but for the port."""
    for tool in ("bash", "curl"):
        require(tool)
    return run_block(block, folder, live.url, folder / "state")


def test_it_opens_with_the_two_commands() -> None:
    targets = re.findall(r"^make (\w+)", BLOCKS[0], re.MULTILINE)
    assert targets == ["serve", "test"]
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"(?:^|`|\w=\S+ )make ([a-z-]+)", README, re.MULTILINE))
    assert {"serve", "test", "pacs"} <= targets
    for target in sorted(targets):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, target


def test_every_block_runs(live: Server, tmp_path: Path) -> None:
    shown = {}
    for block in BLOCKS[1:]:
        if is_for_elsewhere(block):
            continue  # tests/e2e/test_pacs.py, tests/training and the test below stand for them
        done = run(block, live, tmp_path)
        assert done.returncode == 0, f"{block}\n{done.stderr}"
        shown[block.split()[1]] = done.stdout
    answer = json.loads(shown["example"].splitlines()[-1])
    assert answer["model"]["name"] == "cxr-pneumonia"
    assert answer["verdict"] != "accept"
    assert answer["reasons"]
    assert "overread_requests_total" in shown["-s"]
    (row,) = csv.DictReader((tmp_path / "results.csv").read_text().splitlines())
    assert row["verdict"] == answer["verdict"]
    assert float(row["predicted_loss"]) == pytest.approx(answer["predicted_loss"], abs=1e-6)


def test_the_training_commands_are_those_that_are_tested() -> None:
    """``docs/training.md`` gives the same commands, and tests/training runs those on drawn images."""

    def commands(text: str) -> list[str]:
        (block,) = [block for block in blocks(text) if "overread train classifier" in block]
        joined = block.replace("\\\n", " ")
        return [" ".join(line.split("#")[0].split()) for line in joined.splitlines() if line.startswith("overread")]

    ours, theirs = commands(README), commands((ROOT / "docs" / "training.md").read_text())
    assert ours[:4] == theirs[:4]
    assert [line.split()[1] for line in ours] == ["train", "export", "calibrate", "evaluate", "release", "evaluate"]


def test_a_wrong_block_is_seen(live: Server, tmp_path: Path) -> None:
    assert run(f"curl -sf {URL}/v1/nothing", live, tmp_path).returncode != 0


def test_the_line_printed_at_the_start_works(live: Server, tmp_path: Path) -> None:
    line, *others = [line for line in live.log.read_text().splitlines() if line.startswith("  curl ")]
    answer = json.loads(run(line, live, tmp_path).stdout)
    assert answer["findings"][0]["label"] == "pneumonia"
    assert len(others) == len(shipped_models()) - 1
    for other in others:
        assert json.loads(run(other, live, tmp_path).stdout)["quantities"]["count"] > 0
