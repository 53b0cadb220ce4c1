"""A file is there whole, as it was before, or not at all; and it is on the disk before it has its name."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from models.durable import write_whole


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_what_stood_there_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    file = tmp_path / "table.csv"
    write_whole(file, b"first")

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "planted")

    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    with pytest.raises(OSError, match="planted"):
        write_whole(file, b"second")
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"table.csv": b"first"}
    write_whole(file, b"second")  # the control
    assert file.read_bytes() == b"second"


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, real = tmp_path / "table.csv", os.fsync
    named: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda handle: (named.append(file.exists()), real(handle))[1])
    write_whole(file, b"first")
    assert named == [False, True]  # the draft, then the folder that names it
