"""What has been written is on the disk: the one place that asks the operating system for it, for files and for folders."""

from __future__ import annotations

import os
from pathlib import Path


def sync(*paths: Path) -> None:
    """Return when files or folders are on disk; of a folder it is which names it holds.

    Raises
    ------
    OSError
    """
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_new(file: Path, content: bytes) -> None:
    """Write a file of mode 0600 that is not there yet; it is on disk when this returns, its name once its folder is.

    Raises
    ------
    OSError
    """
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
