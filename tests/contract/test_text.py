"""What the project's own files may hold: no long file, no machine's path, no registry's host, no weights that do not belong."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 320
LARGEST = 5 * 1024 * 1024
# In pieces, so that this file does not hold what it looks for.
FOLDERS = ("root", "home/" + r"\w+", "wo" + "rk")
HOSTS = ("py" + "pi.org", "python" + "hosted", "registry." + "npmjs", "deb." + "debian", "download." + "pytorch")
FORBIDDEN = re.compile(rf"(?<![\w.])/(?:{'|'.join(FOLDERS)})/|" + "|".join(map(re.escape, HOSTS)))


def tracked() -> list[Path]:
    shown = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [ROOT / name for name in shown.split("\0") if name and (ROOT / name).exists()]


def texts() -> list[Path]:
    return [path for path in tracked() if path.suffix not in {".onnx", ".png", ".jpg", ".svg"} and path != Path(__file__)]


def test_no_file_names_a_machine_or_a_registry() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}" for path in texts() for match in [FORBIDDEN.search(path.read_text())] if match
    ]
    assert found == []


@pytest.mark.parametrize("planted", ["see /ro" + "ot/x", f"https://{HOSTS[0]}/simple", f"cp /{FOLDERS[2]}/main/a b"])
def test_a_planted_one_is_seen(planted: str) -> None:
    assert FORBIDDEN.search(planted)


def test_the_public_images_are_named_only_where_tests_look_for_them() -> None:
    named = {
        path.relative_to(ROOT).as_posix() for path in texts() if '"shared"' in path.read_text() or "../shared" in path.read_text()
    }
    assert named <= {"tests/conftest.py"}


def test_python_files_hold_one_thing_each() -> None:
    long = {
        path.relative_to(ROOT).as_posix(): n
        for path in tracked()
        if path.suffix == ".py"
        if (n := path.read_text().count("\n")) > LONGEST
    }
    assert long == {}


def test_each_shipped_package_is_small() -> None:
    sizes: dict[str, int] = {}
    for path in tracked():
        if "zoo" in path.parts:
            sizes[path.parent.name] = sizes.get(path.parent.name, 0) + path.stat().st_size
    assert sizes
    assert all(size <= LARGEST for size in sizes.values())
