"""What is kept of a command's work: every whole line, of what it was made from, and coded errors where it cannot be written."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from models.errors import Refusal
from models.journal import Journal


def test_what_was_kept_is_there_again_exactly(tmp_path: Path) -> None:
    file = tmp_path / "new" / "kept.jsonl"
    value = {"score": 0.1 + 0.2, "tiny": 5e-324, "names": ["a", "é"], "count": 3}
    with Journal(file, "this") as kept:
        kept["one"] = value
        kept["two"] = {}
    assert file.stat().st_mode & 0o777 == 0o600
    with Journal(file, "this") as kept:
        assert dict(kept) == {"one": value, "two": {}}


def test_results_of_something_else_stay_and_are_not_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "kept.jsonl"
    for made in ("this", "that"):
        with Journal(file, made) as kept:
            assert "one" not in kept
            kept["one"] = {"made by": made}
    with Journal(file, "this") as kept:
        assert kept["one"] == {"made by": "this"}
    assert len(file.read_text().splitlines()) == 2


@pytest.mark.parametrize("cut", range(1, 45, 7))
def test_a_line_without_its_end_costs_that_line_alone(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "kept.jsonl"
    with Journal(file, "this") as kept:
        kept["one"], kept["two"] = {"n": 1}, {"n": 2}
    whole = file.read_bytes()
    assert len(whole.splitlines()[1]) > 44
    file.write_bytes(whole[:-cut])
    with Journal(file, "this") as kept:
        assert kept["one"] == {"n": 1}
        assert ("two" in kept) == (cut == 1)  # the line's end alone is missing
        kept["three"] = {"n": 3}
    with Journal(file, "this") as kept:
        assert kept["one"] == {"n": 1}
        assert kept["three"] == {"n": 3}


def test_what_is_no_number_is_not_kept(tmp_path: Path) -> None:
    with Journal(tmp_path / "kept.jsonl", "this") as kept:
        with pytest.raises(ValueError, match="not JSON compliant"):
            kept["one"] = {"n": float("nan")}
        assert "one" not in kept
    assert (tmp_path / "kept.jsonl").read_bytes() == b""


def test_a_file_that_is_none_of_ours_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "kept.jsonl"
    file.write_bytes(b"\xff\xfe{}\n")
    with pytest.raises(Refusal) as refusal:
        Journal(file, "this")
    assert refusal.value.code == "config_invalid"
    assert file.read_bytes() == b"\xff\xfe{}\n"
    with pytest.raises(Refusal) as refusal:
        Journal(tmp_path, "this")  # a folder
    assert refusal.value.code == "config_invalid"


def test_where_nothing_can_be_written_it_is_said_at_once() -> None:
    with pytest.raises(Refusal) as refusal:
        Journal(Path("/proc/overread/kept.jsonl"), "this")
    assert refusal.value.code == "config_invalid"


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "storage_full"), (errno.EDQUOT, "storage_full"), (errno.EROFS, "storage_unavailable"),
     (errno.ESTALE, "storage_unavailable")],
)  # fmt: skip
def test_a_disk_that_fails_half_way_through_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    file, real = tmp_path / "kept.jsonl", os.write
    calls: list[int] = []

    def short(handle: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) == 3:
            raise OSError(number, "planted")
        return real(handle, data[:10]) if len(calls) == 2 else real(handle, data)

    with Journal(file, "this") as kept:
        monkeypatch.setattr(os, "write", short)
        kept["one"] = {"n": 1}
        with pytest.raises(Refusal) as refusal:
            kept["two"] = {"n": 2}
        monkeypatch.undo()
        assert "two" not in kept
    assert refusal.value.code == code
    assert calls[2] == calls[1] - 10  # what did not fit was tried again
    with Journal(file, "this") as kept:
        assert dict(kept) == {"one": {"n": 1}}


def test_lines_are_plain_json_that_says_what_it_was_made_from(tmp_path: Path) -> None:
    with Journal(tmp_path / "kept.jsonl", "this") as kept:
        kept["one"] = {"n": 1}
    assert json.loads((tmp_path / "kept.jsonl").read_text()) == {"made": "this", "key": "one", "value": {"n": 1}}
