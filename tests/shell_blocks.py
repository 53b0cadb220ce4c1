"""The shell blocks of a page, as a newcomer would copy them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

URL = "http://127.0.0.1:3000"
"""Where the pages say that the service is."""


def blocks(page: str) -> list[str]:
    """Return the ``sh`` blocks of a page in Markdown, in order."""
    return re.findall(r"^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def is_for_elsewhere(block: str) -> bool:
    """Tell whether a block of the README needs what a newcomer's machine has not: hours, images of patients, an archive."""
    return "overread train" in block or "make pacs" in block


def run_block(block: str, folder: Path, url: str, state: Path) -> subprocess.CompletedProcess[str]:
    """Run a block in ``folder`` as a newcomer's shell would, but for where the service is and keeps its state."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OVERREAD_STATE": str(state)}
    script = "set -euo pipefail\n" + block.replace(URL, url)
    return subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False)
