"""Bombs are cheap to refuse: time and memory of refusing files that would unfold to hundreds of megabytes.

Figures: 100 ms and 32 MB; here ten times looser, for noisy machines. ``OVERREAD_STRICT=1`` takes the figures themselves.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.models.bombs import BOMBS, PLAIN

SLACK = 1 if os.environ.get("OVERREAD_STRICT") == "1" else 10
EXPECTED = {
    "deflated element": "image_too_large",
    "deflated pixels": "inconsistent_image",
    "deflated header": "image_too_large",
    "huge header": "image_too_large",
    "million frames": "multi_frame",
    "nested sequences": "not_decodable",
    "million items": "image_too_large",
    "million items of a look-up table": "image_too_large",
    "million elements": "image_too_large",
    "million values": "inconsistent_image",
    "million unused values": "no_pixel_data",
    "rle": "not_decodable",
    "png": "image_too_large",
    "jpeg": "image_too_large",
    "jpeg scans": "not_decodable",
}


def measured(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "tests/models/bombs.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_cheaply(name: str) -> None:
    result = measured(name)
    assert result["code"] == EXPECTED[name]
    assert result["seconds"] < 0.1 * SLACK
    assert result["grown_mb"] < 32 * SLACK


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_reader_grows(name: str) -> None:
    """Control: the files are bombs."""
    result = measured(name, "--plain")
    assert result["grown_mb"] > 400
    assert result["bytes"] < 2_000_000
