"""``overread score`` on two Ray nodes: the rows of a plain loop, through kills, lost archives and files that end a process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from models.batch import load_model
from models.errors import Refusal
from service import score, score_ray
from service.score_archive import Content, Folder
from service.score_output import PASSED_OVER, Made, Output
from service.score_ray import Job, Piece
from service.score_rows import row_of, rows_of
from tests.ports import free_port
from tests.service.archives import chest
from tests.service.peers import Peer

pytestmark = pytest.mark.timeout(300)
ON_RAY = pytest.mark.long
"""Ray takes minutes to start on a busy machine, and gives up on its own processes after fifteen seconds."""
VARIABLES = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a cluster of two nodes with a processor each; both end with the module."""
    own, port = Path("/tmp") / f"overread-ray-{os.getpid()}", free_port()  # sockets' names may have 107 bytes
    started = []
    try:
        for options in (
            ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={own}"],
            [f"--address=127.0.0.1:{port}"],
        ):
            # Ports that are given are not waited for: on a busy machine Ray gives up before its agents have chosen them
            agents = [
                f"--{name}={free_port()}"
                for name in (
                    "dashboard-agent-grpc-port",
                    "dashboard-agent-listen-port",
                    "runtime-env-agent-port",
                    "metrics-export-port",
                )
            ]
            command = [
                str(BIN / "ray"),
                "start",
                *options,
                *agents,
                "--num-cpus=1",
                "--num-gpus=0",
                "--object-store-memory=80000000",
                "--block",
            ]
            log = tmp_path_factory.mktemp("node") / "log"
            with log.open("w") as stream:
                started.append(
                    subprocess.Popen(command, env=os.environ | VARIABLES, stdout=stream, stderr=stream, start_new_session=True)
                )
            end = time.monotonic() + 120
            while "successfully" not in log.read_text() and "Ray runtime started" not in log.read_text():
                assert started[-1].poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(60)
        shutil.rmtree(own, ignore_errors=True)


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def archive(tmp_path: Path, draw: Callable[..., bytes]) -> Path:
    root = tmp_path / "archive"
    (root / "deeper").mkdir(parents=True)
    for number in range(20):
        (root / f"{number:02d}.png").write_bytes(draw(number))
    (root / "deeper" / "x.dcm").write_bytes(chest(1))
    (root / "05.png").write_bytes(draw(5)[:200])
    (root / "06.png").write_bytes(b"")
    return root


def loop(root: Path, package: Path) -> list[dict[str, Any]]:
    """What one thread says of the same files, one after the other."""
    predictor, source = load_model(package), Folder(root)
    columns = None
    rows = []
    for position, name in enumerate(source.names()):
        row = row_of(position, name, source, predictor, paths=True)
        columns = columns or score_ray.schema_of(predictor.card).names
        rows.append({column: row.get(column) for column in columns})
    return rows


def rows_in(out: Path) -> list[dict[str, Any]]:
    return [row for part in sorted(out.glob("part-*.parquet")) for row in rows_of(part.read_bytes())]


@pytest.fixture
def call(address: str, package: Path, tmp_path: Path) -> Callable[..., int]:
    def call(archive: str | Path, *options: str, part: int = 3) -> int:
        given = [str(archive), "--out", str(tmp_path / "out"), "--model", str(package), "--part", str(part), "--address", address]
        return score.main([*given, *options])

    return call


@ON_RAY
def test_two_nodes_give_the_rows_of_a_plain_loop(
    archive: Path, package: Path, tmp_path: Path, call: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(archive) == 1, "two files are broken"
    assert rows_in(tmp_path / "out") == loop(archive, package)
    said = capsys.readouterr()
    assert "19 files scored" in said.out
    assert "not_decodable: 2" in said.out
    assert "file/s" in said.err or "s/file" in said.err
    assert {line.partition(":")[0] for line in said.err.replace("\r", "\n").splitlines() if line.strip()} == {"tiny"}, said.err
    assert (tmp_path / "out" / PASSED_OVER).read_text().count("not_decodable") == 2
    assert not ray.is_initialized()


@ON_RAY
def test_killed_it_goes_on(archive: Path, package: Path, tmp_path: Path, address: str, call: Any) -> None:
    out = tmp_path / "out"
    words = ["score", str(archive), "--out", str(out), "--model", str(package), "--part", "1", "--address", address]
    for _ in range(2):
        done = len(list(out.glob("part-*")))
        process = subprocess.Popen([str(BIN / "overread"), *words], stderr=subprocess.PIPE, start_new_session=True)
        while len(list(out.glob("part-*"))) < done + 3 and process.poll() is None:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it was over before it could be killed"
    kept = {path: path.stat().st_ino for path in out.glob("part-*")}
    assert 6 <= len(kept) < 21
    assert call(archive, part=1) == 1
    assert {path: path.stat().st_ino for path in kept} == kept, "a part was made twice"
    assert rows_in(out) == loop(archive, package)


@ON_RAY
def test_an_archive_that_goes_away_keeps_what_was_done(
    archive: Path, package: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, real = loop(archive, package), Output.keep

    def keep(self: Output, part: int, content: bytes) -> None:
        real(self, part, content)
        if archive.exists():
            archive.rename(tmp_path / "away")

    monkeypatch.setattr(Output, "keep", keep)
    with pytest.raises(Refusal) as caught:
        call(archive, part=1)
    assert caught.value.code == "folder_unavailable"
    kept = len(list((tmp_path / "out").glob("part-*")))
    assert 1 <= kept < 21
    monkeypatch.setattr(Output, "keep", real)
    (tmp_path / "away").rename(archive)
    assert call(archive, part=1) == 1
    assert rows_in(tmp_path / "out") == expected


@ON_RAY
def test_a_file_that_ends_the_process_has_a_row(archive: Path, package: Path, tmp_path: Path, address: str) -> None:
    class Deadly(Folder):
        def read(self, name: bytes) -> Content:
            if name == b"07.png":
                os._exit(9)
            return super().read(name)

    source, card = Deadly(archive), load_model(package)
    made = Made(card.card.name, card.card.version, card.sha256, "", 4, True)
    (tmp_path / "out").mkdir()
    output = Output(tmp_path / "out", made, source.names)
    score.run(output, Job.of(package, source, paths=True), card.card, address, None)
    expected, found = loop(archive, package), rows_in(tmp_path / "out")
    assert found[7]["error"] == "internal_error"
    assert found[7]["path"] == "07.png"
    assert [row for row in found if row["position"] != 7] == [row for row in expected if row["position"] != 7]


@ON_RAY
def test_a_dicomweb_archive_without_names(package: Path, tmp_path: Path, call: Any) -> None:
    peer = Peer()
    try:
        uids = {"0020000D": "2.25.17", "0020000E": "2.25.27", "00080018": "2.25.7"}
        peer.json("/web/instances?limit=200&offset=0", [{tag: {"vr": "UI", "Value": [uid]} for tag, uid in uids.items()}])
        peer.json("/web/instances?limit=200&offset=1", [])
        peer.answers["/web/studies/2.25.17/series/2.25.27/instances/2.25.7"] = (200, "application/dicom", chest(7))
        assert call(f"{peer.url}/web", "--digest-only") == 0
    finally:
        peer.close()
    (row,) = rows_in(tmp_path / "out")
    (tmp_path / "same").mkdir()
    (tmp_path / "same" / "chest.dcm").write_bytes(chest(7))
    assert row == loop(tmp_path / "same", package)[0] | {"path": None}
    assert not any(b"2.25.7" in path.read_bytes() for path in (tmp_path / "out").iterdir())


def test_a_process_gives_rows_or_a_code(archive: Path, package: Path, tmp_path: Path) -> None:
    """As Ray calls it, without Ray."""
    names = Folder(archive).names()
    worker = score_ray.Worker(Job.of(package, Folder(archive), paths=True))
    batch = {"part": np.array([3]), "first": np.array([0]), "names": np.array([b"\0".join(names)], dtype=object)}
    answer = worker(batch)
    assert (answer["part"], answer["first"], answer["code"][0]) == ([3], [0], "")
    assert rows_of(answer["content"][0]) == loop(archive, package)
    archive.rename(tmp_path / "away")
    assert worker(batch)["code"][0] == "folder_unavailable"
    other = score_ray.Worker(Job(worker._job.package, Folder(archive), True, "0.0.0"))
    assert other(batch)["code"][0] == "cluster_unavailable"
    changed = worker._job.package | {"model.onnx": b"other"}
    assert score_ray.Worker(Job(changed, Folder(archive), True))(batch)["code"][0] == "package_invalid"


@ON_RAY
def test_what_is_wrong_with_the_cluster_has_a_code(archive: Path, package: Path, address: str) -> None:
    job = Job.of(package, Folder(archive), paths=True)
    piece = Piece(0, 0, (b"00.png",))
    with pytest.raises(Refusal, match=r"cluster_unavailable.*0\.0\.0"), score_ray.running(address, 1):
        list(score_ray.score([piece], Job(job.package, job.source, True, "0.0.0"), None))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "127.0.0.1:many"])
def test_an_address_at_which_nothing_listens_has_a_code(address: str) -> None:
    with pytest.raises(Refusal, match="cluster_unavailable"), score_ray.running(address, 1):
        pass
