"""Backup, restore and erasure of a site that is at work, each of them killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import ROOT
from tests.e2e.conftest import query
from tests.e2e.test_kills import Load, check_stored, wait_for

KILLS = 2


def command(state: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OVERREAD_")}
    environment |= {"OVERREAD_STATE": str(state)}
    return subprocess.Popen(
        [sys.executable, "-m", "models.cli", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(state: Path, *arguments: str) -> str:
    process = command(state, *arguments)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return output


def kill_once_there(process: subprocess.Popen[str], path: Path, seconds: float) -> bool:
    """Kill a command a moment after it made a path; tell whether it was still at work."""
    while process.poll() is None and not path.exists():
        time.sleep(0.001)
    time.sleep(seconds)
    at_work = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return at_work


@pytest.fixture(scope="module")
def busy(start_server: Callable[..., Any], package: Path, draw: Any) -> Any:
    """A server whose every scan becomes an item, and its load."""
    server = start_server(package, OVERREAD_REVIEW_LOSS_PERCENTILE="0", OVERREAD_SITES="")
    load = Load(draw)
    load.url = server.url
    load.start()
    while len(load.acknowledged) < 20:
        time.sleep(0.05)
    yield server, load
    load.stop()


def test_a_backup_under_load_holds_all_that_was_answered_before(
    busy: Any, start_server: Callable[..., Any], package: Path, tmp_path: Path
) -> None:
    server, load = busy
    out, rng = tmp_path / "backup", random.Random(1)
    hit = 0
    for _ in range(KILLS):
        hit += kill_once_there(command(server.state, "backup", "--out", str(out)), tmp_path / "backup.partial", rng.random() / 20)
        if out.exists():  # it was done already
            assert "whole" in run(server.state, "restore", "--check", str(out))
            out.rename(tmp_path / f"early-{rng.random()}")
    assert hit, "no kill met a backup at work"
    before = set(load.acknowledged)
    assert "secrets (pseudonym.key)" in run(server.state, "backup", "--out", str(out))
    assert len(load.acknowledged) > len(before), "it went on answering"
    there = tmp_path / "state"
    kill_once_there(command(there, "restore", str(out)), there / ".restoring", 0.05)
    if not (there / "overread.sqlite3").exists():
        run(there, "restore", str(out))
    check_stored(there / "overread.sqlite3", before)
    check_stored(server.state / "overread.sqlite3", before)
    restored = start_server(package, state=there, OVERREAD_REVIEW_LOSS_PERCENTILE="0")
    for key in sorted(before)[:5]:
        answers = [httpx.get(f"{each.url}/v1/results/{key}", timeout=30) for each in (server, restored)]
        assert answers[0].status_code == 200
        assert answers[1].json() == answers[0].json()
        image = answers[0].json()["image_sha256"]
        pictures = [httpx.get(f"{each.url}/v1/images/{image}", timeout=30) for each in (server, restored)]
        assert pictures[0].status_code == 200
        assert pictures[1].content == pictures[0].content
    # The control: what was answered later is not in it
    with pytest.raises(AssertionError, match="are lost"):
        check_stored(there / "overread.sqlite3", set(load.acknowledged))


def test_an_erasure_under_load_ends_whole(busy: Any) -> None:
    server, load = busy
    # Images that no other test has read, since the audit of them is compared, and that the load does not bring back
    before = set(load.settled)
    wait_for(lambda: len(load.settled - before) >= 2, "no work goes on")
    keys = sorted(load.settled - before)[:2]
    images = [httpx.get(f"{server.url}/v1/results/{key}", timeout=30).json()["image_sha256"] for key in keys]
    named = [part for image in images for part in ("--image", image)]
    process = command(server.state, "erase", *named)
    begun = "SELECT 1 FROM audit WHERE action = 'erasure_asked'"
    wait_for(lambda: process.poll() is not None or query(server.state, begun), "the erasure does not begin")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    run(server.state, "erase", *named)
    for key, image in zip(keys, images, strict=True):
        for path in (f"/v1/results/{key}", f"/v1/images/{image}"):
            assert httpx.get(f"{server.url}{path}", timeout=30).status_code == 404
    rows = run(server.state, "audit", "--subject", images[0]).splitlines()
    assert [row.split("\t")[3] for row in rows] == ["result_read", "image_erased"]
    files = [path for path in server.state.glob("overread.sqlite3*") if path.suffix != ".lock"]
    assert files
    assert not any(key.encode() in path.read_bytes() for key in keys for path in files)
    load.stop()
    check_stored(server.state / "overread.sqlite3", load.acknowledged - set(keys))
