"""CONTRIBUTING.md names targets, files and names that exist."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.conftest import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def untrue(text: str) -> list[str]:
    """List what a text names in code marks and is not there: make targets, files, and names in the files of their paragraph."""
    found = []
    for paragraph in text.split("\n\n"):
        marked = [mark for mark in re.findall(r"`([^`]+)`", paragraph) if "*" not in mark and "NAME" not in mark]
        files = [word for mark in marked for word in re.findall(r"[\w.-]+/[\w./-]+|[\w-]+\.(?:toml|txt)", mark)]
        files = [file for file in files if not file.startswith(".venv")]
        found += [file for file in files if not (ROOT / file).exists()]
        places = [ROOT / file for file in files]
        code = "".join(path.read_text() for place in places for path in ([place] if place.is_file() else place.glob("*.py")))
        names = [mark for mark in marked if re.fullmatch(r"[A-Z]{3,}|[A-Z][a-z]+|[a-z]+_[a-z]+", mark)]
        found += [name for name in names if files and not re.search(rf"\b{name}\b", code)]
        for mark in marked + re.findall(r"^make .*", paragraph, re.MULTILINE):
            if targets := re.match(r"make ((?:[a-z-]+ ?)+)", mark):
                command = ["make", "-n", *targets[1].split()]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
                found += [mark] if done.returncode else []
    return found


def test_what_it_names_is_there() -> None:
    assert untrue(TEXT) == []
    assert len(re.findall(r"`make ", TEXT)) > 5


@pytest.mark.parametrize(
    ("planted", "seen"),
    [
        ("`make no-such-target`", ["make no-such-target"]),
        ("`models/no_such.py`", ["models/no_such.py"]),
        ("an entry of `KODES` in `models/errors.py`", ["KODES"]),
    ],
)
def test_what_is_not_there_is_seen(planted: str, seen: list[str]) -> None:
    assert untrue(planted) == seen
