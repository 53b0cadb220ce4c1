"""What a model says of the images in a folder: each is predicted once, and kept as it comes."""

from __future__ import annotations

import base64
import hashlib
import sys
from collections.abc import MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

import models
from models.batch import check_there, file_bytes, read_bytes
from models.dicom import read_elements
from models.errors import Refusal
from models.image import Image
from models.imaging import DEFAULT_LIMITS, refusing, sniff
from models.journal import Journal, Record
from models.postprocess import Prediction
from models.predictor import Predictor

KEPT = "What was predicted is kept. Give the command again."
_NUMBERS = ("predicted_loss", "loss_percentile", "loss_score", "domain_distance", "domain_percentile", "entropy")
_IDENTITY = ("PatientID", "IssuerOfPatientID")


@dataclass(frozen=True)
class Seen:
    """A file and what was read of it: a prediction, or why there is none.

    Attributes
    ----------
    file : Path
    file_sha256 : str
        Of its bytes; empty where they could not be read.
    digest : str
        Of the image: :attr:`models.image.Image.sha256`.
    patient : str
        See :func:`patient_of`. Not to be stored.
    notes : tuple of str
        Codes of what is a reason for review.
    prediction : Prediction or None
    error, detail : str
        Code and sentence, where there is no prediction.
    """

    file: Path
    file_sha256: str = ""
    digest: str = ""
    patient: str = ""
    notes: tuple[str, ...] = ()
    prediction: Prediction | None = None
    error: str = ""
    detail: str = ""


def _patient(identity: str, issuer: str, image_sha256: str) -> str:
    return hashlib.sha256(f"{issuer}\t{identity}".encode()).hexdigest() if identity else image_sha256


def patient_of(image: Image) -> str:
    """Return what tells an image's patient from others: a digest of PatientID and its issuer, or else the image's own."""
    if image.header is None:
        return image.sha256
    identity, issuer = (str(image.header.get(keyword, "") or "") for keyword in _IDENTITY)
    return _patient(identity, issuer, image.sha256)


def predictions(file: Path, predictor: Predictor) -> Journal:
    """Open what is kept of a model package's predictions, by the digest of a file's bytes.

    The file holds no name and nothing of a patient: digests of files and images, and what the model says of each.
    """
    return Journal(file, f"overread {models.__version__}, model {predictor.sha256}")


def _record(seen: Seen, found: Prediction) -> Record:
    features = base64.b64encode(found.features.astype("<f4").tobytes()).decode()
    numbers = {name: getattr(found, name) for name in _NUMBERS}
    return {
        "image_sha256": seen.digest, "notes": list(seen.notes), "probabilities": found.probabilities, **numbers,
        "features": features,
    }  # fmt: skip


def _prediction(record: Record) -> Prediction:
    features = np.frombuffer(base64.b64decode(record["features"]), dtype="<f4").astype(np.float32)
    numbers = {name: float(record[name]) for name in _NUMBERS}
    return Prediction(probabilities=dict(record["probabilities"]), features=features, heatmap=None, **numbers)


def _again(path: Path, file_sha256: str, data: bytes, record: Record) -> Seen:
    """Return what was kept of a file; its patient, who is not, is read of the header once more."""
    digest, found = str(record["image_sha256"]), _prediction(record)
    patient = digest
    if sniff(data) == "application/dicom":
        with refusing():
            header = read_elements(data, DEFAULT_LIMITS, _IDENTITY)
        patient = _patient(header.get("PatientID", ""), header.get("IssuerOfPatientID", ""), digest)
    return Seen(path, file_sha256, digest, patient, tuple(record["notes"]), found)


def look(path: Path, predictor: Predictor, kept: MutableMapping[str, Record]) -> Seen:
    """Read a file, and predict it unless that was done before; what cannot be is said in the answer."""
    file_sha256 = ""
    try:
        data = file_bytes(path)
        file_sha256 = hashlib.sha256(data).hexdigest()
        if file_sha256 in kept:
            return _again(path, file_sha256, data, kept[file_sha256])
        image, notes = read_bytes(data, predictor.card.input)
        (prediction,) = predictor.predict([image])
    except Refusal as refusal:
        return Seen(path, file_sha256, error=refusal.code, detail=refusal.detail)
    return Seen(path, file_sha256, image.sha256, patient_of(image), tuple(notes), prediction)


def folder_of(named: Path) -> Path:
    """Return the folder that is read where a folder, or one file, is named."""
    return named if named.is_dir() else named.parent


def look_at_all(
    paths: Sequence[Path],
    folder: Path,
    predictor: Predictor,
    threads: int,
    description: str,
    kept: MutableMapping[str, Record],
) -> list[Seen]:
    """Read and predict files of a folder side by side, in their order, with a progress bar on standard error.

    Parameters
    ----------
    paths : sequence of Path
    folder : Path
        Where they lie.
    predictor : Predictor
    threads : int
        Images read side by side.
    description : str
        Of the progress bar.
    kept : mapping
        What was predicted before, and receives what is predicted now, as it comes: of :func:`predictions`.

    Raises
    ------
    Refusal
        ``folder_unavailable`` if the folder goes away meanwhile: a part of it must not pass for the whole. ``storage_full`` or
        ``storage_unavailable`` if what is predicted cannot be kept.
    """

    def looked(path: Path) -> Seen:
        seen = look(path, predictor, kept)
        if seen.prediction is None:
            check_there(folder, KEPT)
        return seen

    pool = ThreadPoolExecutor(threads)
    found = []
    try:
        for seen in tqdm(pool.map(looked, paths), total=len(paths), desc=description, unit="image", file=sys.stderr):
            if seen.prediction is not None and seen.file_sha256 not in kept:
                kept[seen.file_sha256] = _record(seen, seen.prediction)
            found.append(seen)
    finally:
        pool.shutdown(cancel_futures=True)
    return found
