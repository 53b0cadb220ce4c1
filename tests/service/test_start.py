"""What a start brings in, each of its three processes no more than it needs, and what one that is refused leaves open."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from models.errors import Refusal
from models.example import FILE_NAME, TISSUE_NAME, write_examples
from service.database import newest
from service.serve import main as serve
from service.tokens import add_token
from tests.service.test_migrations import ALL

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"numpy", "scipy", "sqlalchemy", "alembic", "onnxruntime", "onnx", "pydicom", "PIL", "service.analysis"}
SELDOM = {"scipy", "alembic", "sklearn", "torch", "pandas", "pyarrow", "cryptography", "pynetdicom"}
"""What only some requests, or the first start with a database, need."""


def brought_by(*lines: str) -> set[str]:
    """Return the modules that a fresh interpreter holds after some lines."""
    code = "\n".join(["import sys", *lines, "print(*sys.modules)"])
    environment = os.environ | {"BENTOML_DO_NOT_TRACK": "True"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_command_and_the_process_manager_leave_to_the_workers_what_they_do_not_need() -> None:
    worker = brought_by("sys.argv.append('--worker-id')", "import service.app, service.worker")
    assert worker >= HEAVY - SELDOM, "the control: it is seen where it is brought in"
    assert not SELDOM & worker
    for lines in ("import service.serve", "import service.app"):
        assert not HEAVY & brought_by(lines), lines


def test_what_is_seldom_needed_is_seen_where_it_is_brought_in() -> None:
    assert {"scipy", "alembic"} <= brought_by("import scipy, alembic")


def test_a_database_of_the_newest_schema_is_opened_without_alembic(tmp_path: Path) -> None:
    lines = (
        "from pathlib import Path",
        "from service.store import Store",
        f"Store(Path({str(tmp_path / 'a.sqlite3')!r})).close()",
    )
    assert "alembic" in brought_by(*lines)
    assert "alembic" not in brought_by(*lines)
    assert newest() == ALL[-1]


def test_the_images_to_try_are_drawn_beside_the_start_once(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "execve", lambda *_: None)
    for name, value in {"STATE": tmp_path / "state", "MODELS": package}.items():
        monkeypatch.setenv(f"OVERREAD_{name}", str(value))
    serve([])
    files = [tmp_path / "state" / "example" / name for name in (FILE_NAME, TISSUE_NAME)]
    assert f"--data-binary @{files[0]} " in capsys.readouterr().out
    end = time.monotonic() + 60
    while not all(file.exists() for file in files) and time.monotonic() < end:
        time.sleep(0.1)
    (tmp_path / "expected").mkdir()
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in write_examples(tmp_path / "expected")]
    drawn = [file.stat().st_mtime_ns for file in files]
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("they are there"))
    serve([])
    assert [file.stat().st_mtime_ns for file in files] == drawn


def test_what_refuses_to_start_leaves_no_connection_open(make_site: Any, tmp_path: Path) -> None:
    def connections() -> int:
        open_files = Path("/proc/self/fd").iterdir()
        links = [os.path.realpath(name) for name in open_files]
        return sum(link.startswith(f"{tmp_path / 'state'}{os.sep}") for link in links)

    site = make_site(sites=("east", "west"))
    assert connections() > 0  # the control: those of a site that runs
    site.close()
    assert connections() == 0
    add_token(tmp_path / "state" / "tokens.json", "ct", "device", "west")
    with pytest.raises(Refusal, match="OVERREAD_SITES") as refusal:
        make_site(sites=("east",))
    assert refusal.value.__traceback__ is not None  # which holds on to all that was opened
    assert connections() == 0
