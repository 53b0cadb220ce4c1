"""Every benchmark runs in its shortest form, and every committed result says how it was made and what it missed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, require


def takes(script: Path, option: str) -> bool:
    """Tell whether a script has an option, by itself or through the command line that all with cells share."""
    source = script.read_text()
    return f'"{option}"' in source or "report.cells_parser(" in source


def is_benchmark(path: Path) -> bool:
    """Tell whether a file is run by itself at a scale, rather than imported by one that is."""
    return '__name__ == "__main__"' in path.read_text() and takes(path, "--scale")


BENCHMARKS = sorted(filter(is_benchmark, (ROOT / "benchmarks").glob("*.py")))
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
KEYS = {"command", "commit", "date", "machine", "scale", "seeds", "rows", "goals"}


def faults(document: dict[str, Any]) -> list[str]:
    """List what is wrong with a result."""
    found = [f"keys {sorted(set(document) ^ KEYS)}"] if set(document) != KEYS else []
    if found:
        return found
    if not document["rows"]:
        found.append("no rows")
    if document["scale"] == "smoke" and document["goals"]:
        found.append("a smoke run judges goals")
    # A timing takes its spread from repeats, with other images or steps each time, on one set of weights.
    repeats = max(row.get("repeats", row.get("n", 0)) for row in document["rows"] or [{}])
    if document["scale"] != "smoke" and max(len(document["seeds"]), repeats) < 3:
        found.append("fewer than three seeds or repeats")
    found += [f"goal {goal}" for goal in document["goals"] if set(goal) != {"name", "value", "goal", "met"}]
    return found


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of checkpoints, which one benchmark leaves to another."""
    return tmp_path_factory.mktemp("work")


STARTS_RAY = {"score"}
"""Ray gives up where its own processes take too long to start, as beside another test: these are among the long tests."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "script",
    [pytest.param(path, id=path.stem, marks=pytest.mark.long if path.stem in STARTS_RAY else ()) for path in BENCHMARKS],
)
def test_smoke(script: Path, data_root: Path, work: Path) -> None:
    if '"Orthanc"' in script.read_text():
        require("Orthanc")
    command = [sys.executable, str(script), "--scale", "smoke"]
    if takes(script, "--data"):
        command += ["--data", str(data_root)]
    if takes(script, "--work"):
        command += ["--work", str(work)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    document = json.loads((ROOT / "build" / "benchmarks" / f"{script.stem}.json").read_text())
    assert document["scale"] == "smoke"
    assert faults(document) == []


@pytest.mark.parametrize("file", RESULTS, ids=lambda path: path.stem)
def test_committed_results_are_whole(file: Path) -> None:
    document = json.loads(file.read_text())
    assert document["scale"] in {"small", "paper"}
    assert faults(document) == []
    script = re.fullmatch(r"python (benchmarks/\w+\.py) .*--scale (small|paper).*", document["command"])
    assert script
    assert (ROOT / script[1]).exists()
    assert file.with_suffix(".png").exists() or file.with_suffix(".svg").exists()


def test_every_script_with_cells_is_run_and_nothing_else() -> None:
    names = {path.stem for path in BENCHMARKS}
    assert {"generalization", "doubt", "active_learning", "weak_nuclei", "adaptation", "plan", "serving"} <= names
    assert not {"report", "domains", "serving_rivals"} & names


def test_a_result_without_its_command_or_with_two_seeds_is_seen() -> None:
    whole = {key: [1, 2, 3] for key in KEYS} | {"scale": "small", "goals": [], "rows": [{"mean": 1.0}]}
    assert faults(whole) == []
    assert faults({key: value for key, value in whole.items() if key != "command"})
    assert faults(whole | {"seeds": [0, 1]})
    assert faults(whole | {"rows": []})
    assert faults(whole | {"scale": "smoke", "goals": [{"name": "x", "value": 1, "goal": 1, "met": True}]})
