"""Model packages that were given to this site: copies under ``state/packages``, so that a rollback needs nothing from outside."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.card import read_package
from models.comparison import REPORT, SEEN
from models.durable import sync, write_new
from models.errors import Refusal
from models.signature import SIGNATURE
from service.database import coded

_PART = ".part-"


@contextmanager
def alone(packages: Path) -> Iterator[None]:
    """Let one command at a time change which packages there are and which is current.

    Raises
    ------
    Refusal
        ``storage_full`` or ``storage_unavailable`` where the folder cannot be used.
    """
    with coded():
        packages.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(packages / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def keep(package: Path, sha256: str, packages: Path) -> None:
    """Copy a model package into a folder named by its identity, whole or not at all; a copy that was damaged is replaced.

    Parameters
    ----------
    package : Path
    sha256 : str
        Its identity, as it was checked.
    packages : Path
        The caller holds :func:`alone` of it.

    Raises
    ------
    Refusal
        ``package_invalid`` if it is not that package any more; ``storage_full`` or ``storage_unavailable``.
    """
    target = packages / sha256
    if _whole(target, sha256):
        with coded():
            _sign_again(package, target)
        return
    _, graph, found = read_package(package)
    with coded():
        for left in packages.glob(f"{_PART}*"):  # of a command that was killed
            shutil.rmtree(left, ignore_errors=True)
        part = Path(tempfile.mkdtemp(prefix=_PART, dir=packages))
        write_new(part / "model.onnx", graph)
        for name in ("card.json", SIGNATURE, REPORT, SEEN):
            if (package / name).exists():
                write_new(part / name, (package / name).read_bytes())
        sync(part)
    if found != sha256 or read_package(part)[2] != sha256:
        raise Refusal("package_invalid", "The package was changed while it was copied.")
    with coded():
        if target.exists():  # damaged, as was seen above
            target.rename(part.with_name(f"{part.name}-damaged"))
        part.rename(target)
        sync(packages)


def _sign_again(package: Path, target: Path) -> None:
    """Copy a signature that was made since the copy was."""
    try:
        signature = (package / SIGNATURE).read_bytes()
    except FileNotFoundError:
        return
    part = target.parent / f"{_PART}{SIGNATURE}"
    part.unlink(missing_ok=True)
    write_new(part, signature)
    part.rename(target / SIGNATURE)
    sync(target)


def _whole(folder: Path, sha256: str) -> bool:
    try:
        return read_package(folder)[2] == sha256
    except Refusal:
        return False
