"""What the walk through the whole loop is made of: commands that can be killed, a service that can be, and real images.

Commands run in children that a fork server makes, so that the libraries of training are imported once, not for each of them.
"""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.conftest import ROOT, Server

HOME, NEW = "kermany_guangzhou", "nih_chestxray"
CLASSES = ("normal", "pneumonia")
NAME = "chest"
SIDE = 64
"""Pixels a side of what the network sees: enough to learn from, and quick."""
ABOUT = ROOT / "training" / "specs" / "cxr-pneumonia.json"
GOING_ON = "going on from step 50"
"""What a training says that found the checkpoint after its first epoch."""
PRELOADED = ("classifier", "export", "calibrate", "evaluate", "release", "compare")
Row = dict[str, str]


def _run(words: list[str], environment: dict[str, str], log: str, fatal: str) -> None:
    """Run a verb in this process. With ``fatal``, the process kills itself before it would put that name in its place."""
    from models.cli import main

    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(out, stream)
    for name in [name for name in os.environ if name.startswith("OVERREAD_")]:
        del os.environ[name]
    os.environ.update(environment)

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and fatal and Path(os.fsdecode(arguments[1])).name == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(heard)
    code = main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@dataclass
class Commands:
    """Runs verbs of ``overread`` on one state folder; what they print is in ``log``."""

    environment: dict[str, str]
    log: Path

    def __post_init__(self) -> None:
        self._children = multiprocessing.get_context("forkserver")
        self._children.set_forkserver_preload([f"training.{name}" for name in PRELOADED])

    def begin(self, *words: object, fatal: str = "") -> Any:
        """Start a verb; return its process."""
        given = ([str(word) for word in words], self.environment, str(self.log), fatal)
        child = self._children.Process(target=_run, args=given)
        child.start()
        return child

    def code(self, *words: object, fatal: str = "") -> int:
        """Run a verb; return its exit code, or minus the signal that ended it."""
        child = self.begin(*words, fatal=fatal)
        child.join(580)
        assert child.exitcode is not None, f"{words[0]} takes too long: {self.said()}"
        return int(child.exitcode)

    def run(self, *words: object) -> None:
        """Run a verb that must succeed."""
        assert self.code(*words) == 0, self.said()

    def killed_and_again(self, *words: object, at: str) -> None:
        """Kill a verb with -9 before it puts ``at`` in its place; then give it again: it must succeed."""
        assert self.code(*words, fatal=at) == -signal.SIGKILL, self.said()
        self.run(*words)

    def train(self, out: Path, *words: object) -> None:
        """Train, killed with -9 after the first checkpoint, and go on."""
        child = self.begin("train", "classifier", *words, "--out", out)
        while not (out / "last.ckpt").exists() and child.is_alive():
            time.sleep(0.02)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL, self.said()
        assert not (out / "model.pt").exists(), "it ended before it was killed"
        before = self.log.read_text().count(GOING_ON)
        self.run("train", "classifier", *words, "--out", out)
        assert self.log.read_text().count(GOING_ON) == before + 1

    def measured(self, run: Path, *sources: object, kill: bool) -> None:
        """Export, calibrate and evaluate a run; if ``kill``, each is killed once."""
        for verb, report in (("export", "model.onnx"), ("calibrate", "calibration.json"), ("evaluate", "evaluation.json")):
            if kill:
                self.killed_and_again(verb, run, *sources, at=report)
            else:
                self.run(verb, run, *sources)

    def said(self) -> str:
        """Return the end of what was printed."""
        return self.log.read_text()[-1500:] if self.log.exists() else ""


@dataclass
class Service:
    """``overread serve`` at one address, which can be killed and started again."""

    package: Path
    state: Path
    port: int
    settings: dict[str, str]
    log: Path
    server: Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The settings, as the service and the commands beside it get them."""
        return {"OVERREAD_STATE": str(self.state), "OVERREAD_MODELS": str(self.package)} | self.settings

    def start(self) -> None:
        """Start, and wait until it takes images."""
        known = {name: value for name, value in os.environ.items() if not name.startswith("OVERREAD_")}
        command = [sys.executable, "-m", "models.cli", "serve", "--port", str(self.port)]
        with self.log.open("ab") as out:
            process = subprocess.Popen(
                command, cwd=ROOT, env=known | self.environment, stdout=out, stderr=out, start_new_session=True
            )
        self.server = Server(process, self.url, self.state, self.log)
        self.server.wait_ready()

    def kill(self) -> None:
        """Kill all of its processes with -9: a worker that outlives its parent for a moment would still answer."""
        assert self.server is not None
        parent = psutil.Process(self.server.process.pid)
        processes = [parent, *parent.children(recursive=True)]
        for process in processes:
            process.kill()
        self.server.process.wait(30)
        _, alive = psutil.wait_procs(processes, timeout=30)
        assert not alive

    def stop(self) -> None:
        """Stop it, if it runs."""
        if self.server is not None:
            self.server.stop()

    def ask(self, path: str, token: str) -> Any:
        """Ask as the holder of a token."""
        response = httpx.get(self.url + path, headers={"authorization": f"Bearer {token}"}, timeout=60)
        assert response.status_code == 200, response.text
        return response.json()


def read_rows(data: Path) -> list[Row]:
    """Return the rows of the two hospitals, one image a patient."""
    with (data / "cxr" / "manifest.csv").open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["domain"] in {HOME, NEW}]
    return list({row["patient"]: row for row in rows}.values())


def take(rows: Sequence[Row], domain: str, each: int, skip: int = 0) -> list[Row]:
    """Return ``each`` rows of either class of a domain, after the first ``skip`` of it, the classes by turns."""
    found = [[row for row in rows if row["domain"] == domain and row["label"] == label][skip : skip + each] for label in CLASSES]
    assert {len(part) for part in found} == {each}
    return [row for pair in zip(*found, strict=True) for row in pair]


def write_folder(folder: Path, data: Path, rows: Sequence[Row]) -> Path:
    """Write a manifest of some rows, with the images where they lie."""
    folder.mkdir()
    for domain in {row["domain"] for row in rows}:
        (folder / domain).symlink_to(data / "cxr" / domain)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["image", "label", "domain", "patient", "view"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def write_spec(file: Path) -> Path:
    """Write the shipped model's input at a smaller size."""
    spec = json.loads((ROOT / "training" / "specs" / "chest_xray.json").read_text())
    file.write_text(json.dumps(spec | {"height": SIDE, "width": SIDE, "min_side": SIDE}))
    return file


def split_of(patient: str, seed: int) -> int:
    """Return 0, 1 or 2 for train, calibration or test, by the rule that docs/training.md states."""
    position = int.from_bytes(hashlib.sha256(f"{seed}:{patient}".encode()).digest()[:8], "big") / 2**64
    return int(position >= 0.6) + int(position >= 0.8)


def seed_for(manifest: Path) -> int:
    """Return the first seed whose splits have every class each: a few labels are not spread so by any."""
    with manifest.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    wanted = {(label, split) for label in CLASSES for split in range(3)}
    return next(n for n in range(5000) if {(row["label"], split_of(row["patient"], n)) for row in rows} == wanted)


def until(what: str, done: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"it did not come to this: {what}"
        time.sleep(0.02)
