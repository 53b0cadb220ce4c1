"""One process of a kind at a time on a state folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import Refusal


@contextmanager
def only_one(state: Path, verb: str) -> Iterator[None]:
    """Let one process run a verb on a state folder, which is made if it is not there.

    The claim is a lock of the operating system, so that a process that dies lets it go.

    Raises
    ------
    Refusal
        ``config_invalid`` if another process runs it.
    """
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(state / f"{verb}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refusal("config_invalid", f"Another 'overread {verb}' uses this state folder.") from error
        yield
    finally:
        os.close(lock)
