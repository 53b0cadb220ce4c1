"""deploy/systemd: valid to systemd itself, closed by its own rating, and of one mind with what the service has."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from models import cli
from service.settings import Settings
from tests.conftest import ROOT, require

UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
EXPOSURE = 15
"""Tenths of systemd's rating, at most."""


def closed(unit: Path) -> bool:
    """Tell whether systemd rates a unit as closed as is asked for."""
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", str(unit)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def valid(text: str, folder: Path) -> bool:
    """Tell whether systemd reads a unit without a complaint; the program that it names need not be there."""
    unit = folder / "checked.service"
    unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, check=False)
    return done.returncode == 0 and not done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_are_valid_and_closed(unit: Path, tmp_path: Path) -> None:
    require("systemd-analyze")
    text = unit.read_text()
    assert valid(text, tmp_path)
    assert not valid(text.replace("ProtectSystem=strict", "ProtectSystem=strickt"), tmp_path), "the control"
    assert closed(unit)
    (tmp_path / unit.name).write_text(text.replace("SystemCallFilter=@system-service", ""))
    assert not closed(tmp_path / unit.name), "the control"


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_name_commands_and_settings_that_there_are(unit: Path) -> None:
    text = unit.read_text()
    (command,) = re.findall(r"^ExecStart=\S+/overread (\w+)", text, re.MULTILINE)
    assert command in cli.VERBS
    named = set(re.findall(r"\bOVERREAD_([A-Z_]+)=", text))
    assert named
    assert named <= {name.upper() for name in Settings.model_fields}
    assert re.search(r"^StateDirectory=overread$", text, re.MULTILINE)
    assert "OVERREAD_STATE=/var/lib/overread " in text, "what StateDirectory makes"
