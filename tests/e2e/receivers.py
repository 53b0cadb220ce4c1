"""A running ``overread receive``, dcmtk's tools that call it, and PDUs that no tool would send."""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pydicom

from tests.conftest import ROOT
from tests.e2e.orthancs import SECONDS, until
from tests.ports import free_port

TITLES = {"OVERREAD_DIMSE_TITLE": "OVERREAD", "OVERREAD_DIMSE_CALLERS": "CT-1,STORESCU"}


class Receiver:
    """A running ``overread receive``, on one state folder through restarts."""

    def __init__(self, package: Path, folder: Path, **settings: str) -> None:
        self.state, self.log = folder / "state", folder / "receive.log"
        self.port = free_port()
        self.state.mkdir(exist_ok=True)
        known = {name: value for name, value in os.environ.items() if not name.startswith("OVERREAD_")}
        given = {"STATE": str(self.state), "MODELS": str(package), "THREADS": "1", "DIMSE_PORT": str(self.port)}
        self.environment = known | TITLES | {f"OVERREAD_{name}": value for name, value in (given | settings).items()}
        self.start()

    def start(self) -> None:
        """Start, and wait until it listens."""
        lines = self.log.read_text().count("receive_ready") if self.log.exists() else 0
        with self.log.open("ab") as out:
            command = [sys.executable, "-m", "models.cli", "receive"]
            self.process = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=out, stderr=out)
        until(lambda: self.process.poll() is not None or self.log.read_text().count("receive_ready") > lines)
        assert self.process.poll() is None, self.log.read_text()[-2000:]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)

    def call(self, tool: str, *arguments: str | Path, called: str = "OVERREAD", calling: str = "CT-1") -> tuple[int, str]:
        """Run a tool of dcmtk against it; return its exit code and what it said."""
        titles = ["-aec", called, "-aet", calling]
        command = [tool, "-v", *titles, "127.0.0.1", str(self.port), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
        return done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace")

    def send(self, *files: Path, **titles: str) -> list[str]:
        """Send files, and return what was answered to each: the status as hexadecimal digits, or Success."""
        shown = self.call("storescu", "-d", "-nh", *files, **titles)[1]
        found = re.findall(r"DIMSE Status\s*: 0x([0-9a-f]{4})", shown)
        return [status.upper() for status in found]

    def failures(self) -> list[list[str]]:
        command = [sys.executable, "-m", "models.cli", "watch", "--failures"]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=99, check=False)
        rows = [line.split("\t") for line in done.stdout.splitlines()]
        assert done.returncode == (1 if rows else 0)
        return rows


def request(calling: bytes = b"CT-1", called: bytes = b"OVERREAD") -> bytes:
    """Return an A-ASSOCIATE-RQ that proposes CT Image Storage, implicit little endian (PS3.8, 9.3.2)."""

    def item(kind: int, content: bytes) -> bytes:
        return struct.pack(">BBH", kind, 0, len(content)) + content

    application = item(0x10, b"1.2.840.10008.3.1.1.1")
    syntaxes = item(0x30, pydicom.uid.CTImageStorage.encode()) + item(0x40, b"1.2.840.10008.1.2")
    user = item(0x50, item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3"))
    body = struct.pack(">HH16s16s32x", 1, 0, called.ljust(16), calling.ljust(16))
    body += application + item(0x20, b"\x01\0\0\0" + syntaxes) + user
    return struct.pack(">BBL", 1, 0, len(body)) + body


def fragment(flags: int, content: bytes) -> bytes:
    """Return a P-DATA-TF with one fragment."""
    return struct.pack(">BBLLBB", 4, 0, len(content) + 6, len(content) + 2, 1, flags) + content


def resident_mib(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def ended(connection: socket.socket) -> bool:
    """Tell whether the other side closes, aborts or rejects."""
    with connection:
        try:
            return connection.recv(1) in {b"", b"\x03", b"\x07"}
        except ConnectionResetError:
            return True
