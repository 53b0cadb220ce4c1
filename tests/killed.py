"""Commands that are killed, by SIGKILL and for real, in the middle of a line of what they keep."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence

from tests.conftest import ROOT

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
