"""What has been written is on the disk: the one place that asks the operating system for it, for files and for folders."""

from __future__ import annotations

import os
from contextlib import suppress
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


def write_whole(file: Path, content: bytes) -> None:
    """Write a file, or over one, whole or not at all, whatever ends the process or the machine; it is on disk when this returns.

    Raises
    ------
    OSError
        What stood there before stays.
    """
    part = file.with_name(file.name + ".part")
    try:
        part.write_bytes(content)
        sync(part)
        part.replace(file)
        sync(file.parent)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
