"""A site's images and what a model package says of each."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.batch import find_files
from models.errors import Refusal
from models.postprocess import Prediction
from models.predictor import Predictor
from models.seen import Seen, look_at_all, predictions
from models.triage import judge

Row = dict[str, Any]


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
    patients : dict of str to str
        Digest of an image -> what tells its patient from others (:func:`models.seen.patient_of`). Not to be stored; empty where
        there is one image a patient.
    """

    rows: list[Row]
    files: dict[str, str]
    failed: Counter[str]
    sha256: str
    patients: dict[str, str] = field(default_factory=dict)

    @property
    def answered(self) -> list[Row]:
        """The images of which findings are called: all but those with the verdict ``refuse``."""
        return [row for row in self.rows if row["verdict"] != "refuse"]


def names_of(folder: Path) -> dict[str, Path]:
    """Return the files of a site by their name relative to it; refused where there is none, or no folder."""
    if not folder.is_dir():
        raise Refusal("data_invalid", "There is no such folder of images.")
    found = {path.relative_to(folder).as_posix(): path for path in find_files([folder])}
    if not found:
        raise Refusal("data_invalid", "The folder holds no image file.")
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
        See :func:`models.seen.predictions`.
    threads : int
        Images read side by side.

    Raises
    ------
    Refusal
        ``folder_unavailable`` if the folder vanishes, ``config_invalid``, ``storage_full`` or ``storage_unavailable`` if
        ``store`` cannot be written; what was predicted stays there.
    """
    with predictions(store, predictor) as kept:
        found = look_at_all(list(names.values()), folder, predictor, threads, predictor.card.name, kept)
    done = dict(zip(names, found, strict=True))
    whole = hashlib.sha256("".join(f"{seen.file_sha256} {name!r}\n" for name, seen in done.items()).encode()).hexdigest()
    rows = [_row(name, seen, seen.prediction, predictor) for name, seen in done.items() if seen.prediction is not None]
    once = {row["image_sha256"]: row for row in reversed(rows)}
    failed = Counter(seen.error for seen in found if seen.prediction is None)
    patients = {seen.digest: seen.patient for seen in found if seen.prediction is not None}
    files = {row["file"]: row["image_sha256"] for row in rows}
    return Site(sorted(once.values(), key=lambda row: row["file"]), files, failed, whole, patients)


def _row(name: str, seen: Seen, found: Prediction, predictor: Predictor) -> Row:
    judgement = judge(found, predictor.card.triage, seen.notes)
    return {
        "file": name,
        "image_sha256": seen.digest,
        "probabilities": found.probabilities,
        "predicted_loss": found.predicted_loss,
        "loss_percentile": found.loss_percentile,
        "verdict": judgement.verdict,
        "reasons": list(judgement.reasons),
    }
