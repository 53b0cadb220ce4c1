"""The folder of a scored archive: what it was made from, and a part for each stretch of the listing, whole or not there."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import models
from models.durable import sync, write_new
from models.errors import Refusal
from models.journal import writing
from service.score_rows import count_of, rows_of

MANIFEST, LISTING, PASSED_OVER = "manifest.json", "listing", "passed_over.csv"


@dataclass(frozen=True)
class Made:
    """What a folder of rows is made from: another run goes on with it only if all of this is the same.

    Attributes
    ----------
    model, model_version, model_sha256 : str
        The model package.
    archive_sha256 : str
        Digest of where the archive is, since that may hold a name.
    part_files : int
        Files of a part; the last one may have fewer.
    paths : bool
        Whether rows hold the files' names.
    overread : str
        Version of the software.
    """

    model: str
    model_version: str
    model_sha256: str
    archive_sha256: str
    part_files: int
    paths: bool
    overread: str = models.__version__


class Output:
    """The folder of one run, which nobody else writes to meanwhile.

    Parameters
    ----------
    folder : Path
        There is one.
    made : Made
    names : callable
        Lists the archive; called only where the folder is new, so that a run goes on with what it began with.

    Raises
    ------
    Refusal
        ``output_exists`` if the folder was made from something else, ``config_invalid`` if it cannot be written, and whatever
        ``names`` raises.
    """

    def __init__(self, folder: Path, made: Made, names: Callable[[], list[bytes]]) -> None:
        self.folder, self.made = folder, made
        with writing("config_invalid"):
            for left in folder.glob(".*.tmp"):  # of a run that was killed
                left.unlink()
            document = self._manifest()
            if document is None:
                if any(folder.glob("part-*.parquet")):
                    raise Refusal("output_exists", "--out holds parts of which nothing says what they were made from.")
                found = names()
                listing = b"".join(name + b"\0" for name in found)
                digest = hashlib.sha256(listing).hexdigest()
                document = {"schema": 1, **asdict(made), "files": len(found), "listing_sha256": digest}
                self._write(LISTING, listing)
                self._write(MANIFEST, json.dumps(document, indent=1).encode() + b"\n")
        self.files: int = document["files"]
        self._listing_sha256: str = document["listing_sha256"]
        self.parts = range((self.files + made.part_files - 1) // made.part_files)
        self.missing = [part for part in self.parts if count_of(self._path(part)) != self.size(part)]

    def _manifest(self) -> dict[str, Any] | None:
        path = self.folder / MANIFEST
        if not path.exists():
            return None
        try:
            document: dict[str, Any] = json.loads(path.read_bytes())
            differs = [name for name, value in asdict(self.made).items() if document[name] != value]
            _ = document["files"] + 0, document["listing_sha256"] + ""
        except (ValueError, KeyError, TypeError) as error:
            raise Refusal("output_exists", f"{MANIFEST} in --out is none.") from error
        if differs:
            raise Refusal("output_exists", f"--out was made from something else ({', '.join(differs)}); give another folder.")
        return document

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part:06d}.parquet"

    def size(self, part: int) -> int:
        """Return how many files a part has."""
        return min(self.made.part_files, self.files - part * self.made.part_files)

    def listing(self) -> list[bytes]:
        """Return the names of all files, in order.

        Raises
        ------
        Refusal
            ``output_exists`` if the listing is not the one that the parts were made from.
        """
        try:
            listing = (self.folder / LISTING).read_bytes()
        except OSError as error:
            raise Refusal("output_exists", f"The listing in --out cannot be read ({type(error).__name__}).") from error
        if hashlib.sha256(listing).hexdigest() != self._listing_sha256:
            raise Refusal("output_exists", "The listing in --out was changed; give another folder.")
        return listing.split(b"\0")[:-1]

    def keep(self, part: int, content: bytes) -> None:
        """Write a part; once this returns it survives a loss of power.

        Raises
        ------
        Refusal
            ``storage_full`` or ``storage_unavailable``; what was written before stays.
        """
        with writing():
            self._write(self._path(part).name, content)

    def _write(self, name: str, content: bytes) -> None:
        draft = self.folder / f".{name}.tmp"
        draft.unlink(missing_ok=True)
        write_new(draft, content)
        draft.replace(self.folder / name)
        sync(self.folder)

    def finish(self) -> tuple[Counter[str], Counter[str]]:
        """List what was passed over in a file of its own, and drop the listing where names are not to be kept.

        Returns
        -------
        verdicts, errors : Counter of str
            Verdict, and error code -> files.
        """
        verdicts: Counter[str] = Counter()
        errors: Counter[str] = Counter()
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["position", "path", "error", "detail"])
        with writing():
            for part in self.parts:
                for row in rows_of(self._path(part).read_bytes(), ["position", "path", "verdict", "error", "detail"]):
                    if row["error"] is None:
                        verdicts[row["verdict"]] += 1
                    else:
                        errors[row["error"]] += 1
                        writer.writerow([row["position"], row["path"], row["error"], row["detail"]])
            self._write(PASSED_OVER, text.getvalue().encode())
            if not self.made.paths:
                (self.folder / LISTING).unlink(missing_ok=True)
        return verdicts, errors
