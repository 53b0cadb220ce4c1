"""Kept pixels on disk: one PNG an image, named by the image's digest, of mode 0600. The only file that touches that folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from models.durable import sync

_PART = ".partial"


class Kept:
    """The folder of kept pixels.

    Parameters
    ----------
    folder : Path
        Created when missing, with the mode 0700.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _file(self, image_sha256: str) -> Path:
        return self._folder / image_sha256[:2] / f"{image_sha256}.png"

    def write(self, image_sha256: str, png: bytes) -> None:
        """Write an image's PNG, whole or not at all; it is on disk when this returns.

        Raises
        ------
        OSError
        """
        file = self._file(image_sha256)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # the mode is the last folder's only
        file.parent.mkdir(exist_ok=True, mode=0o700)
        descriptor, part = tempfile.mkstemp(dir=file.parent, suffix=_PART)  # of mode 0600
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(png)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, file)  # noqa: PTH105  (a replace is one step: a crash leaves nothing or the whole file)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
        sync(file.parent)

    def read(self, image_sha256: str) -> bytes | None:
        """Return an image's PNG, or None where there is none."""
        try:
            return self._file(image_sha256).read_bytes()
        except FileNotFoundError:
            return None

    def holds(self, image_sha256: str) -> bool:
        """Tell whether there is a file."""
        return self._file(image_sha256).exists()

    def remove(self, image_sha256: str) -> None:
        """Remove an image's PNG, where there is one."""
        self._file(image_sha256).unlink(missing_ok=True)

    def older_than(self, moment: float) -> Iterator[str]:
        """Yield the digest of each file written before ``moment`` (seconds since 1970); unfinished ones are removed at once."""
        for file in self._folder.glob("*/*"):
            try:
                if file.stat().st_mtime >= moment:
                    continue
                if file.suffix == _PART:
                    file.unlink()
                elif file == self._file(file.stem):
                    yield file.stem
            except FileNotFoundError:  # another worker was first
                continue
