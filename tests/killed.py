"""Commands and workers that are killed, by SIGKILL and for real: commands in the middle of what they keep or write."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.conftest import ROOT, Server

_CODE = """
import os, signal, sys
from models.cli import main
real, left = os.write, int(sys.argv[1])

def write(handle, data):
    global left
    left -= 1
    if left < 0:
        real(handle, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return real(handle, data)

os.write = write
main(sys.argv[2:])
"""


def killed_after(lines: int, command: Sequence[str]) -> None:
    """Run ``overread`` with ``command`` in a process of its own, which dies when it has kept ``lines`` results and a half."""
    done = subprocess.run([sys.executable, "-c", _CODE, str(lines), *command], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


_OPENING = """
import os, signal, sys
from models.cli import main
left, folder = int(sys.argv[1]), sys.argv[2] + os.sep

def heard(event, arguments):
    global left
    if event == "open" and str(arguments[0]).startswith(folder):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(heard)
main(sys.argv[3:])
"""


def killed_opening(files: int, folder: Path, command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run ``overread`` with ``command`` in a process of its own, which dies when it opens one file too many in ``folder``."""
    code = [sys.executable, "-c", _OPENING, str(files), str(folder), *command]
    done = subprocess.run(code, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


def kill_worker(server: Server, seconds: float = 60) -> int:
    """Kill a worker of a server as soon as there is one; return its process id once it is dead, so that none is killed twice."""
    end = time.monotonic() + seconds
    while not (found := server.workers()):
        assert time.monotonic() < end, "no worker starts"
        time.sleep(0.02)
    os.kill(found[0], signal.SIGKILL)
    while found[0] in server.workers():
        assert time.monotonic() < end, "it does not die"
        time.sleep(0.01)
    return found[0]
