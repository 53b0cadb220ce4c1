"""``overread serve``: check everything first, then hand over to ``bentoml serve``."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from models.example import FILE_NAME, chest_phantom
from models.predictor import Predictor
from service.access import Access, check_bind
from service.settings import child_environment, read_settings

GRACE_SECONDS = 25


def _write_example(state: Path) -> Path:
    """Write the drawn phantom, so that the line printed at the start works as it stands, on a machine without any scan."""
    state.mkdir(parents=True, exist_ok=True, mode=0o700)  # results and tokens will lie in it
    folder = state / "example"
    folder.mkdir(exist_ok=True)
    scan = folder / FILE_NAME
    scan.write_bytes(chest_phantom())
    return scan.absolute()


def main(argv: list[str]) -> int:
    """Run ``overread serve``; does not return unless something is wrong.

    Raises
    ------
    Refusal
        ``config_invalid`` or ``package_invalid``, before anything was started.
    """
    parser = argparse.ArgumentParser(
        prog="overread serve",
        description="Serve the models of OVERREAD_MODELS over HTTP. docs/settings.md lists the settings.",
        epilog="example: OVERREAD_STATE=/var/lib/overread overread serve --port 3000",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; anything but loopback needs tokens")
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=1, help="processes; one with several threads is the fastest on few cores")
    options = parser.parse_args(argv)
    settings = read_settings()
    check_bind(options.host, Access.read(settings.tokens))
    for folder in settings.models:
        Predictor.load(folder)
    host = "127.0.0.1" if options.host == "localhost" else options.host
    url = f"http://{host}:{options.port}"
    scan = _write_example(settings.state)
    print(
        f"overread: starting on {url}, ready in a few seconds (documentation at {url}/, state in {settings.state})\n"
        f"overread: try, in another terminal:\n"
        f"  curl -s -H 'Content-Type: application/dicom' --data-binary @{shlex.quote(str(scan))} {url}/v1/predict",
        flush=True,
    )
    command = [sys.executable, "-m", "bentoml", "serve", "service.app:Overread", "--host", host, "--port", str(options.port)]
    command += ["--timeout-graceful-shutdown", str(GRACE_SECONDS), "--working-dir", str(Path(__file__).parents[1])]
    environment = child_environment(settings.state.absolute(), options.workers)
    os.execve(sys.executable, command, environment)  # noqa: S606  (no shell; the arguments are ours)
