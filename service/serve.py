"""``overread serve``: check everything first, then hand over to ``bentoml serve``."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.card import ModelCard, SegmenterCard, read_package
from models.command import command_parser
from service.access import Access, check_bind
from service.callers import Proxy
from service.settings import child_environment, read_settings

if TYPE_CHECKING:
    from models.signature import PublicKey

GRACE_SECONDS = 25
ROOT = Path(__file__).parents[1]
EXAMPLES = ("chest-phantom.dcm", "tissue-phantom.png")
"""What ``overread example`` writes."""


def _read_card(folder: Path, trusted: Sequence[PublicKey]) -> ModelCard | SegmenterCard:
    """Verify a package and return its card. Its graph, which is what was released, is loaded by the workers alone."""
    card, _, _ = read_package(folder)
    if trusted:
        from models.signature import verify  # most sites need no cryptography

        verify(folder, card, trusted)
    return card


def _examples(state: Path) -> list[Path]:
    """Have images drawn, so that the lines printed at the start work as they stand, on a machine without any scan.

    They are drawn beside the start, which takes longer, and only where they are not there.
    """
    state.mkdir(parents=True, exist_ok=True, mode=0o700)  # results and tokens will lie in it
    folder = state.absolute() / "example"
    folder.mkdir(exist_ok=True)
    files = [folder / name for name in EXAMPLES]
    if not all(file.exists() for file in files):
        between = os.fork()  # which ends at once: the children of a service are its workers, and nobody else waits for this one
        if not between:
            try:
                command = [sys.executable, "-m", "models.cli", "example", "--out", str(folder)]
                subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # noqa: S603  (ours)
            finally:
                os._exit(0)
        os.waitpid(between, 0)
    return files


def _lines_to_try(cards: list[ModelCard | SegmenterCard], state: Path, url: str) -> list[str]:
    """Return a command for the first model of each kind that is served; the first of all is the default and needs no name."""
    chest, tissue = _examples(state)
    lines: dict[str, str] = {}
    for card in cards:
        media_type, file = ("image/png", tissue) if card.task == "segmentation" else ("application/dicom", chest)
        target = f"{url}/v1/predict" + ("" if card is cards[0] else f"?model={card.name}")
        command = f"  curl -s -H 'Content-Type: {media_type}' --data-binary @{shlex.quote(str(file))} {shlex.quote(target)}"
        lines.setdefault(card.task, command)
    return list(lines.values())


def main(argv: list[str]) -> int:
    """Run ``overread serve``; does not return unless something is wrong.

    Raises
    ------
    Refusal
        ``config_invalid``, ``package_invalid`` or ``package_untrusted``, before anything was started.
    """
    parser = command_parser(
        "serve",
        "Serve the models of OVERREAD_MODELS over HTTP. docs/settings.md lists the settings.",
        "OVERREAD_STATE=/var/lib/overread overread serve --port 3000",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; anything but loopback needs tokens")
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=1, help="processes; one with several threads is the fastest on few cores")
    options = parser.parse_args(argv)
    settings = read_settings()
    access = Access.read(settings.tokens, proxied=Proxy.read(settings) is not None)
    access.check_sites(settings.sites)
    check_bind(options.host, access)
    trusted = settings.trusted()
    cards = [_read_card(folder, trusted) for folder in settings.models]
    host = "127.0.0.1" if options.host == "localhost" else options.host
    url = f"http://{host}:{options.port}"
    print(
        f"overread: starting on {url}, ready in a few seconds (documentation at {url}/, state in {settings.state})\n"
        f"overread: the page for people is {url}/ui\n"
        f"overread: try, in another terminal:"
    )
    print(*_lines_to_try(cards, settings.state, url), sep="\n", flush=True)
    command = [sys.executable, "-m", "bentoml", "serve", "service.app:Overread", "--host", host, "--port", str(options.port)]
    command += ["--timeout-graceful-shutdown", str(GRACE_SECONDS), "--working-dir", str(ROOT)]
    environment = child_environment(settings.state.absolute(), options.workers, options.port)
    os.execve(sys.executable, command, environment)  # noqa: S606  (no shell; the arguments are ours)
