"""Work that is kept as it comes, so that a command that was stopped goes on; and what is said where it cannot be written."""

from __future__ import annotations

import errno
import json
import os
from collections import UserDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from models.errors import Refusal

Record = dict[str, Any]
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def writing(code: str = "storage_unavailable") -> Iterator[None]:
    """Refuse what the operating system does not let be written.

    Raises
    ------
    Refusal
        ``storage_full`` where there is no room, else ``code``.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in _FULL
        raise Refusal("storage_full" if full else code, f"--out cannot be written ({type(error).__name__}).") from error


class Journal(UserDict[str, Record]):
    """Results by key, each appended to a file as a line of JSON before the next one is asked for.

    A process that is killed loses what it was at, and at most leaves a line without its end, which is passed over. Nothing waits
    for the disk: a machine that loses power may lose the last lines, which are then done again.

    Parameters
    ----------
    file : Path
        Made if it is not there, with its folder, for its owner alone.
    made : str
        What the results were made from. Lines that say another thing stay in the file and are not looked at, so that one file
        serves two models.

    Raises
    ------
    Refusal
        ``config_invalid`` if the file cannot be read or written, or is none of ours. Adding to it raises ``storage_full`` or
        ``storage_unavailable``; what was written before stays.
    """

    def __init__(self, file: Path, made: str) -> None:
        super().__init__()
        self._made = made
        self._cut = False
        if file.exists():
            try:
                with file.open("rb") as stream:
                    for line in stream:
                        self._take(line.decode("utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                raise Refusal("config_invalid", f"What is kept in --out cannot be read ({type(error).__name__}).") from error
        with writing("config_invalid"):
            file.parent.mkdir(parents=True, exist_ok=True)
            self._out = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def _take(self, line: str) -> None:
        self._cut = not line.endswith("\n")
        try:
            found = json.loads(line)
            if found["made"] == self._made:
                self.data[found["key"]] = dict(found["value"])
        except (ValueError, KeyError, TypeError):  # the last line of a run that was killed
            return

    def __setitem__(self, key: str, value: Record) -> None:
        """Keep a result; it is in the file when this returns."""
        line = json.dumps({"made": self._made, "key": key, "value": value}, allow_nan=False)
        rest = (("\n" if self._cut else "") + line + "\n").encode()
        with writing():
            while rest:  # a disk that fills up takes a part, and refuses the rest
                rest = rest[os.write(self._out, rest) :]
        self._cut = False
        self.data[key] = value

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._out)
