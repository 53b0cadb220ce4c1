"""A site's images and what a model package says of each, kept as it comes, so that nothing is predicted twice."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from models.batch import check_there, find_files
from models.errors import Refusal
from models.pool import look
from models.predictor import Predictor
from models.triage import judge

Row = dict[str, Any]
_KEPT = "What was predicted is kept. Give the command again."


@dataclass(frozen=True)
class Site:
    """What a model says of a folder; each image once, however many files hold it.

    Attributes
    ----------
    rows : list of dict
        A predicted image each, in order of file: file (relative), image_sha256, probabilities, predicted_loss, loss_percentile,
        verdict, reasons.
    files : dict of str to str
        Every readable file, copies too -> the digest of its image.
    failed : Counter of str
        Code -> files that could not be predicted.
    sha256 : str
        Digest of the names and contents of all files.
    """

    rows: list[Row]
    files: dict[str, str]
    failed: Counter[str]
    sha256: str

    @property
    def answered(self) -> list[Row]:
        """The images of which findings are called: all but those with the verdict ``refuse``."""
        return [row for row in self.rows if row["verdict"] != "refuse"]


def names_of(folder: Path) -> dict[str, Path]:
    """Return the files of a site by their name relative to it; refused where there is none, or no folder."""
    if not folder.is_dir():
        raise Refusal("data_invalid", "--site is not a folder.")
    found = {path.relative_to(folder).as_posix(): path for path in find_files([folder])}
    if not found:
        raise Refusal("data_invalid", "The site holds no image file.")
    return found


def predict_site(folder: Path, names: dict[str, Path], predictor: Predictor, store: Path, threads: int) -> Site:
    """Predict every image of a site that ``store`` does not hold yet.

    Parameters
    ----------
    folder : Path
    names : dict of str to Path
        Of :func:`names_of`.
    predictor : Predictor
    store : Path
        JSON lines; a finished image is appended at once. A line stands for a file again if bytes and package are the same.
    threads : int
        Images read side by side.

    Raises
    ------
    Refusal
        ``folder_unavailable`` if the folder vanishes; what was predicted stays in ``store``. ``config_invalid`` if that cannot be
        written.
    """
    known = {(row["file"], row["file_sha256"]): row for row in _kept(store) if row["model_sha256"] == predictor.sha256}
    done: list[Row] = []
    pool = ThreadPoolExecutor(threads)
    try:
        with _writing(store) as out:
            rows = pool.map(lambda name: _row(name, names[name], folder, predictor, known), names)
            for row in tqdm(rows, total=len(names), desc=predictor.card.name, unit="image", file=sys.stderr):
                if "error" not in row and (row["file"], row["file_sha256"]) not in known:
                    out.write(json.dumps(row, allow_nan=False) + "\n")
                    out.flush()
                done.append(row)
    finally:
        pool.shutdown(cancel_futures=True)
    whole = hashlib.sha256("".join(f"{row['file_sha256']} {row['file']!r}\n" for row in done).encode()).hexdigest()
    readable = [row for row in done if "error" not in row]
    once = {row["image_sha256"]: row for row in reversed(readable)}
    failed = Counter(row["error"] for row in done if "error" in row)
    return Site(
        sorted(once.values(), key=lambda row: row["file"]), {row["file"]: row["image_sha256"] for row in readable}, failed, whole
    )


def _kept(store: Path) -> Iterator[Row]:
    if not store.exists():
        return
    try:
        kept = store.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal("config_invalid", f"The predictions that are kept cannot be read ({type(error).__name__}).") from error
    for line in kept.splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # the last line of a run that was killed
            continue


@contextmanager
def _writing(store: Path) -> Iterator[Any]:
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        cut = store.exists() and store.stat().st_size > 0 and not store.read_bytes().endswith(b"\n")
        out = store.open("a", encoding="utf-8")
    except OSError as error:
        raise Refusal("config_invalid", f"The folder of the report cannot be written ({type(error).__name__}).") from error
    with out:
        if cut:
            out.write("\n")
        yield out


def _row(name: str, path: Path, folder: Path, predictor: Predictor, known: dict[tuple[str, str], Row]) -> Row:
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        check_there(folder, _KEPT)
        return {"file": name, "file_sha256": "", "error": "not_decodable"}
    if (name, digest) in known:
        return known[name, digest]
    seen = look(path, predictor)
    row: Row = {"file": name, "file_sha256": digest}
    if seen.prediction is None:
        check_there(folder, _KEPT)
        return row | {"error": seen.error}
    found = seen.prediction
    judgement = judge(found, predictor.card.triage, seen.notes)
    return row | {
        "model_sha256": predictor.sha256,
        "image_sha256": seen.digest,
        "probabilities": found.probabilities,
        "predicted_loss": found.predicted_loss,
        "loss_percentile": found.loss_percentile,
        "verdict": judgement.verdict,
        "reasons": list(judgement.reasons),
    }
