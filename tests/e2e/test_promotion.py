"""Packages change under a running service, and commands are killed: every answer is one package's, and the state stays whole."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from models.card import read_package
from service.promotion import Desk
from service.promotions import Promotions, in_force
from service.settings import Settings
from service.store import Store
from tests.conftest import ROOT, Server
from tests.service.packages import compare, identity, output, write


def overread(server: Server, package: Path, *words: str) -> str:
    """Run a command beside the server, on the same state."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("OVERREAD_")}
    known |= {"OVERREAD_STATE": str(server.state), "OVERREAD_MODELS": str(package)}
    command = [sys.executable, "-m", "models.cli", *words]
    done = subprocess.run(command, cwd=ROOT, env=known, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Senders:
    """Four clients that send images until they are told to stop."""

    def __init__(self, server: Server, draw: Callable[..., bytes]) -> None:
        self.answers: list[dict[str, Any]] = []
        self.statuses: Counter[int] = Counter()
        self._stop = threading.Event()
        self._server, self._draw = server, draw
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(4)]
        for thread in self._threads:
            thread.start()

    def _send(self, number: int) -> None:
        seed = 1000 * (number + 1)
        headers = {"content-type": "image/png"}
        with httpx.Client(base_url=self._server.url, timeout=60) as client:
            while not self._stop.is_set():
                seed += 1
                response = client.post("/v1/predict", content=self._draw(seed), headers=headers)
                self.statuses[response.status_code] += 1
                if response.status_code == 200:
                    self.answers.append(response.json())

    def versions(self) -> list[str]:
        return [answer["model"]["version"] for answer in self.answers]

    def until(self, version: str, number: int) -> None:
        """Wait until so many more answers of a version have come."""
        wanted, end = self.versions().count(version) + number, time.monotonic() + 120
        while self.versions().count(version) < wanted:
            assert time.monotonic() < end, Counter(self.versions())
            time.sleep(0.05)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_packages_change_while_requests_run(
    start_server: Callable[..., Server], package: Path, draw: Any, predict: Any, tmp_path: Path, ask: Any, metrics: Any
) -> None:
    server = start_server(package, OVERREAD_QUEUE="64")
    second = write(tmp_path / "second", "1.1.0", **output(0.25))
    compare(second, package)
    first = predict(server, draw(1)).content
    senders = Senders(server, draw)
    try:
        senders.until("1.0.0", 70)
        overread(server, package, "promote", str(second))
        senders.until("1.1.0", 70)
        overread(server, package, "rollback", "tiny", "--reason", "a drill")
        senders.until("1.0.0", 70)
    finally:
        senders.stop()
    assert len(senders.answers) >= 200
    assert set(senders.statuses) == {200}
    points = {("1.0.0", identity(package)): 0.5, ("1.1.0", identity(second)): 0.25}
    for answer in senders.answers:
        model = answer["model"]
        assert answer["findings"][0]["operating_point"] == points[model["version"], model["sha256"]]
        assert answer["result_id"] == hashlib.sha256(f"{answer['image_sha256']}:{model['sha256']}".encode()).hexdigest()
    assert predict(server, draw(1)).content == first  # to the byte
    again = "SELECT result_id FROM verdicts WHERE scored_again"  # open items get the new package's result by themselves
    stored = ask(server.state, f"SELECT model_sha256, count(*) FROM results WHERE id NOT IN ({again}) GROUP BY model_sha256")
    assert dict(stored) == Counter(answer["model"]["sha256"] for answer in senders.answers) + Counter({identity(package): 1})
    series = metrics(server)
    assert {value for name, value in series.items() if name.startswith("overread_model_info{")} == {0.0, 1.0}
    assert sum(value for name, value in series.items() if name.startswith("overread_package_failures_total")) == 0


def fatal(state: Path, at: int) -> None:
    """Make this process kill itself with -9 at its ``at``-th step on the state folder: a file, a rename, a flush, a statement."""
    steps = 0

    def step(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event in {"open", "os.rename", "os.mkdir"} and str(state) in str(arguments[0]):
            step()

    sync = os.fsync

    def fsync(descriptor: int) -> None:
        step()
        sync(descriptor)

    os.fsync = fsync
    sys.addaudithook(heard)
    sa.event.listen(sa.Engine, "before_cursor_execute", step)
    sa.event.listen(sa.Engine, "commit", step)


def in_child(act: Callable[[], Any]) -> int:
    """Run ``act`` in a process of its own; return 0, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            act()
        except BaseException:  # noqa: BLE001
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_promotion_is_killed_at_every_step(package: Path, tmp_path: Path) -> None:
    second = write(tmp_path / "second", "1.1.0")
    clean = tmp_path / "clean"
    Store(clean / "overread.sqlite3").close()  # the schema is another test's matter
    shutil.rmtree(clean / "packages", ignore_errors=True)

    def promote(state: Path, at: int) -> None:
        settings = Settings.model_validate({"state": state, "models": (package,)})
        store = Store(settings.database)
        if at:
            fatal(state, at)
        Desk(settings, store).promote(second, "because")

    def current(state: Path) -> str:
        store = Store(state / "overread.sqlite3")
        try:
            rows = Promotions(store).rows()
        finally:
            store.close()
        assert len(rows) in {0, 2}  # both rows, or none
        return in_force(rows, "current").get("tiny", identity(package))

    outcomes: list[str] = []
    for at in range(1, 200):
        state = tmp_path / f"state-{at}"
        shutil.copytree(clean, state)
        ended = in_child(lambda state=state, at=at: promote(state, at))
        found = current(state)
        if found != identity(package):  # whatever is current lies there whole, and so does what it replaced
            assert {read_package(state / "packages" / sha256)[2] for sha256 in (found, identity(package))} == {
                identity(package),
                identity(second),
            }
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        outcomes.append(found)
        assert in_child(lambda state=state: promote(state, 0)) == 0  # the command goes on from there
        assert current(state) == identity(second)
        copies = {path.name: identity(path) for path in (state / "packages").iterdir() if path.is_dir()}
        assert copies == {sha256: sha256 for sha256 in (identity(package), identity(second))}  # and nothing half copied
        shutil.rmtree(state)
    assert ended == 0
    assert len(outcomes) > 20
    assert outcomes == sorted(outcomes, key=lambda sha256: sha256 == identity(second))  # once it is current it stays


def test_the_kill_is_felt(tmp_path: Path) -> None:
    def write_two() -> None:
        fatal(tmp_path, 2)
        (tmp_path / "one").write_text("1")
        (tmp_path / "two").write_text("2")

    assert in_child(write_two) == -signal.SIGKILL
    assert (tmp_path / "one").exists()
    assert not (tmp_path / "two").exists()


def test_a_damaged_copy_does_not_stop_a_running_service(
    start_server: Callable[..., Server], package: Path, draw: Any, predict: Any, tmp_path: Path, metrics: Any
) -> None:
    server = start_server(package)
    second = write(tmp_path / "second", "1.1.0")
    settings = Settings.model_validate({"state": server.state, "models": (package,)})
    store = Store(settings.database)
    desk = Desk(settings, store)
    try:
        keep = desk._promotions.add

        def damaged(*arguments: Any) -> int:
            (settings.packages / identity(second) / "model.onnx").write_bytes(b"")
            return keep(*arguments)

        desk._promotions.add = damaged  # type: ignore[method-assign]
        desk.promote(second, "because")
        end = time.monotonic() + 60
        while not any(value for name, value in metrics(server).items() if name.startswith("overread_package_failures_total")):
            assert time.monotonic() < end
            time.sleep(0.1)
        assert predict(server, draw(5)).json()["model"]["version"] == "1.0.0"
        desk.roll_back("tiny", "")
    finally:
        store.close()
    assert predict(server, draw(5)).json()["model"]["version"] == "1.0.0"
