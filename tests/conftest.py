"""Shared fixtures: where the public images lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the public images; tests that need it are skipped without it, but never in CI."""
    folder = Path(os.environ.get("OVERREAD_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "README.md").exists():
        if os.environ.get("CI") == "true":
            pytest.fail("the public images are missing; set OVERREAD_DATA")
        pytest.skip("the public images are missing; set OVERREAD_DATA")
    return folder
