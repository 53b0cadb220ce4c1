"""The servers that are measured, each in processes of its own: start, pause, processor time, memory, stop."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import psutil

from benchmarks.report import ROOT
from service.tokens import add_token

START_SECONDS = 90.0
STOP_SECONDS = 40.0


def free_port() -> int:
    """Return a TCP port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A running server.

    Parameters
    ----------
    command : list of str
        After the interpreter; ``{port}`` is replaced.
    health : str
        Path that answers 200 once images are taken.
    path : str
        Path that takes them.
    environment : dict of str
        Beside what this process has, less our own settings.
    log : Path

    Attributes
    ----------
    ready_seconds : float
        From the start of the process to its first 200.
    """

    def __init__(
        self, command: list[str], health: str, path: str, environment: dict[str, str], log: Path, token: str = "none"
    ) -> None:
        self.port, self.path, self.token = free_port(), path, token
        self._health = health
        known = {name: value for name, value in os.environ.items() if not name.startswith("OVERREAD_")}
        words = [sys.executable, *(word.format(port=self.port) for word in command)]
        started = time.perf_counter()
        with log.open("wb") as out:
            self._process = subprocess.Popen(words, cwd=ROOT, env=known | environment, stdout=out, stderr=out)
        while not self._ready():
            if self._process.poll() is not None or time.perf_counter() - started > START_SECONDS:
                self.stop()
                raise RuntimeError(f"a server did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.02)
        self.ready_seconds = time.perf_counter() - started

    def _ready(self) -> bool:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", self._health, headers={"Authorization": f"Bearer {self.token}"})
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def _tree(self) -> list[psutil.Process]:
        try:
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cpu_seconds(self) -> float:
        """Return the processor time used so far by all processes."""
        return float(sum(sum(process.cpu_times()[:2]) for process in self._tree()))

    def memory_mib(self) -> list[float]:
        """Return the resident memory of each process, largest first."""
        return sorted((round(process.memory_info().rss / 2**20, 1) for process in self._tree()), reverse=True)

    def pause(self) -> None:
        """Stop every process, so that idling costs whoever is measured nothing."""
        for process in self._tree():
            process.suspend()

    def resume(self) -> None:
        """Let every process go on."""
        for process in self._tree():
            process.resume()

    def stop(self) -> None:
        """End every process, in an orderly way first."""
        tree = self._tree()
        self.resume()
        self._process.terminate()
        _, alive = psutil.wait_procs(tree, STOP_SECONDS)
        for process in alive:
            process.kill()
        self._process.wait()


@contextmanager
def overread(package: Path, folder: Path) -> Iterator[Server]:
    """Start the service as a hospital would: 1 worker, 2 threads, store, tokens, metrics, log.

    Parameters
    ----------
    package : Path
        The model package.
    folder : Path
        For its database, tokens and log; on a real disk, or a commit costs nothing.
    """
    state = folder / "state"
    token = add_token(state / "tokens.json", "benchmark", "device")
    environment = {
        "OVERREAD_STATE": str(state),
        "OVERREAD_MODELS": str(package),
        "OVERREAD_THREADS": "2",
        "OVERREAD_QUEUE": "64",
    }
    command = ["-m", "models.cli", "serve", "--port", "{port}"]
    server = Server(command, "/readyz", "/v1/predict", environment, folder / "server.log", token)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def rival(framework: str, package: Path, folder: Path) -> Iterator[Server]:
    """Start a server of :mod:`benchmarks.serving_rivals`."""
    command = ["benchmarks/serving_rivals.py", framework, "--package", str(package), "--port", "{port}"]
    server = Server(command, "/health", "/predict", {}, folder / f"{framework}.log")
    try:
        yield server
    finally:
        server.stop()


def sync_ms(folder: Path) -> float:
    """Return what a commit must wait for at least: the median of 50 appends of 32 KiB, each brought to the disk."""
    times = []
    with (folder / "probe").open("wb") as file:
        for _ in range(50):
            file.write(bytes(32768))
            file.flush()
            begun = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times)
