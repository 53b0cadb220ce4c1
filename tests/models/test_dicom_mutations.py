"""Malformed DICOM is refused with a code: thousands of seeded mutations of all real files, in processes of their own.

``OVERREAD_MUTATIONS`` sets their number (100,000 for the long run). A recipe's number repeats it:
``python tests/models/mutations.py DATA N N+1``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from models.errors import CODES
from tests.conftest import ROOT
from tests.models.mutations import recipe

COUNT = int(os.environ.get("OVERREAD_MUTATIONS", "10000"))
SECONDS = 2.0
"""Of processor time, which a noisy machine does not stretch."""
MEGABYTES = 512


def start(folder: Path, progress: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "tests/models/mutations.py", str(folder), *arguments, "--progress", str(progress)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], progress: Path, timeout: float) -> dict[str, Any]:
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        pytest.fail(f"it hung at mutation {progress.read_text()}")
    assert process.returncode == 0, f"the process died ({process.returncode}) at mutation {progress.read_text()}: {errors[-500:]}"
    assert errors == "", "a decoder wrote to stderr, where a header's values may show"
    result: dict[str, Any] = json.loads(output)
    return result


@pytest.mark.timeout(0)
def test_every_mutation_is_an_image_or_a_coded_refusal(data_root: Path, tmp_path: Path) -> None:
    halves = [(0, COUNT // 2), (COUNT // 2, COUNT)]
    marks = [tmp_path / "first", tmp_path / "second"]
    running = [start(data_root / "dicom", mark, str(first), str(last)) for mark, (first, last) in zip(marks, halves, strict=True)]
    results = [finish(process, mark, 120 + COUNT * 0.2) for process, mark in zip(running, marks, strict=True)]
    for result in results:
        assert result["failures"] == []
        assert result["slowest"][0] < SECONDS, result["slowest"]
        assert result["grown_mb"] < MEGABYTES
        assert set(result["codes"]) <= set(CODES) | {"image"}
    assert sum(sum(result["codes"].values()) for result in results) == COUNT
    assert sum(result["codes"]["image"] for result in results) > COUNT / 20, "hardly anything is decoded: the damage is too crude"


@pytest.mark.parametrize("fault", ["IndexError", "slow", "memory", "crash"])
def test_a_planted_fault_is_seen(fault: str, data_root: Path, tmp_path: Path) -> None:
    """Control: what must not happen is reported when it does."""
    process = start(data_root / "dicom", tmp_path / "mark", "0", "4", "--plant", fault)
    if fault == "crash":
        with pytest.raises(AssertionError, match="died"):
            finish(process, tmp_path / "mark", 60)
        return
    result = finish(process, tmp_path / "mark", 60)
    if fault == "IndexError":
        assert len(result["failures"]) == 1
        assert "IndexError: planted" in result["failures"][0]
    elif fault == "slow":
        assert result["slowest"][0] > 2
    else:
        assert result["grown_mb"] > MEGABYTES


def test_a_recipe_repeats_itself(data_root: Path) -> None:
    for number in range(0, 800, 97):
        path, kind, data = recipe(data_root / "dicom", number)
        again, same, copy = recipe(data_root / "dicom", number)
        assert (path, kind, data) == (again, same, copy)
        assert data != path.read_bytes() or kind == "length_field"
