"""The images of a new hospital: read without labels or with a few, and refused where nothing can be learnt from them."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from models.batch import check_there, find_files, read_file
from models.card import InputSpec
from models.errors import Refusal
from models.label_package import MANIFEST, read_label_package
from models.predictor import Predictor
from models.preprocess import preprocess
from models.seen import folder_of, patient_of
from training.config import sha256
from training.data import Row

_KEPT = "What was trained is kept. Give the command again."
LEAST = 50
"""Images of the target: with fewer, the statistics of a layer and the shares of pseudo-labels are an accident of who came."""


@dataclass(frozen=True)
class Target:
    """Images without labels, each once.

    Attributes
    ----------
    tensors : ndarray, float32, shape (N, C, H, W)
    digests : tuple of str
        Of the pixels of each: :attr:`models.image.Image.sha256`.
    patients : tuple of str
        Digest of the PatientID of each; its own digest where none is stated. Not to be stored.
    passed_over : int
        Files that cannot be read or are not accepted, and copies of an image.
    """

    tensors: NDArray[np.float32]
    digests: tuple[str, ...]
    patients: tuple[str, ...]
    passed_over: int

    def without(self, digests: frozenset[str]) -> Target:
        """Return the images that are none of these."""
        kept = [index for index, digest in enumerate(self.digests) if digest not in digests]
        of = [tuple(each[index] for index in kept) for each in (self.digests, self.patients)]
        return Target(self.tensors[kept], of[0], of[1], self.passed_over)

    @property
    def sha256(self) -> str:
        """Digest of the images, in whatever order they lay."""
        return sha256("\n".join(sorted(self.digests)).encode())


def read_target(folder: Path, spec: InputSpec) -> Target:
    """Read every image in a folder; what cannot be read is listed on standard error, and passed over.

    Raises
    ------
    Refusal
        ``data_invalid`` if there is no such folder, ``folder_unavailable`` if it goes away while it is read.
    """
    tensors, patients = [], []
    digests: dict[str, None] = {}
    passed_over, root = 0, folder_of(folder)
    files = list(find_files([folder]))
    for number, path in enumerate(tqdm(files, desc="reading the target", unit="image", mininterval=1), start=1):
        try:
            image, _ = read_file(path, spec)
            tensor = preprocess(image, spec)
            if not np.isfinite(tensor).all():
                raise Refusal("not_decodable", "It holds values that are not finite.")
        except Refusal as refusal:
            check_there(root, _KEPT)
            # Not by its name, which may be a patient's, and standard error is often a log
            print(f"passed over: file {number} in the order of their paths: {refusal}", file=sys.stderr)
            passed_over += 1
            continue
        if image.sha256 in digests:
            passed_over += 1
            continue
        tensors.append(tensor)
        digests[image.sha256] = None
        patients.append(patient_of(image))
    empty = np.empty((0, spec.channels, spec.height, spec.width), dtype=np.float32)
    return Target(np.concatenate([empty, *tensors]), tuple(digests), tuple(patients), passed_over)


def check_target(target: Target, predictor: Predictor, guided: bool, size: int = 32) -> dict[str, float]:
    """Refuse a target from which nothing can be learnt, and say how far it lies.

    Parameters
    ----------
    target : Target
    predictor : Predictor
        Of the run that is to be adapted: its domain distance, and the limit from which on it says nothing.
    guided : bool
        Whether there are labels of every class from the target, so that the model is not its own only teacher.

    Returns
    -------
    dict of str to float
        ``limit``, ``median`` of the distances, ``share_beyond`` the limit.

    Raises
    ------
    Refusal
        ``data_invalid`` if there are fewer than :data:`LEAST` images, or if more than half of them lie beyond the limit and it is
        not ``guided``: what the model refuses it cannot teach itself.

    Notes
    -----
    Images beyond the limit take part all the same: they are what the hospital sends, and leaving them out would leave out what
    makes it different.
    """
    if len(target.digests) < LEAST:
        raise Refusal(
            "data_invalid", f"The target has {len(target.digests)} usable images; at least {LEAST} different ones are needed."
        )
    found = [predictor.graph.run(target.tensors[start : start + size]) for start in range(0, len(target.tensors), size)]
    distance = np.concatenate([part.domain_distance for part in found])
    limit, median = predictor.card.triage.refuse_domain_distance, float(np.median(distance))
    beyond = float(1 - (distance <= limit).mean())  # a distance that is no number is beyond it too
    if beyond > 0.5 and not guided:
        raise Refusal(
            "data_invalid",
            f"The target is unlike anything the model has seen: {beyond:.0%} of its images lie beyond the distance {limit:.2f}, "
            f"from which on it says nothing (the median is {median:.2f}). It cannot teach itself what it refuses: give some "
            "labels of every class (--target-labels).",
        )
    return {"limit": limit, "median": median, "share_beyond": beyond}


@dataclass(frozen=True)
class TargetLabels:
    """A few labelled images of the target.

    Attributes
    ----------
    rows : tuple of Row
    digests : frozenset of str
        Of the images as the unlabelled ones are known (:attr:`models.image.Image.sha256`), whatever they were made into.
    sha256 : str
        Of the images and their labels.
    """

    rows: tuple[Row, ...]
    digests: frozenset[str]
    sha256: str


def read_labels(source: Path, classes: Sequence[str], domain: str, spec: InputSpec) -> TargetLabels:
    """Read labels of the target.

    Parameters
    ----------
    source : Path
        A label package, or a CSV file with the columns image (relative to it) and label, and patient where it is known.
    classes : sequence of str
        Labels that may occur.
    domain : str
        Of all of them.
    spec : InputSpec
        Of the model.

    Raises
    ------
    Refusal
        ``data_invalid``, naming the row: a missing column, an empty cell, an unknown label, an image that cannot be read or is
        not accepted, or one that stands there twice; two labels of one image are said to contradict each other. A package that
        is not whole is refused as :func:`models.label_package.read_label_package` says. ``folder_unavailable`` if the folder of
        the file goes away.
    """
    originals: dict[str, str] = {}
    file = source
    if source.is_dir():
        package = read_label_package(source)
        originals = {each.image: each.image_sha256 for each in package.labels.images}
        file = source / MANIFEST
    rows: list[Row] = []
    seen: dict[str, str] = {}
    lines = []
    for number, record in enumerate(_records(file), start=1):
        row = _checked(number, record, file.parent, classes, domain)
        try:
            digest = read_file(row.image, spec)[0].sha256
        except Refusal as refusal:
            check_there(file.parent, _KEPT)
            raise Refusal("data_invalid", f"row {number}: {refusal.detail}") from refusal
        digest = originals.get(record["image"].strip(), digest)
        label = record["label"].strip()
        if digest in seen:
            what = "occurs twice" if seen[digest] == label else "has two labels that contradict each other"
            raise Refusal("data_invalid", f"row {number}: this image {what}.")
        seen[digest] = label
        rows.append(replace(row, original=digest))
        lines.append(f"{digest}\t{label}")
    return TargetLabels(tuple(rows), frozenset(seen), sha256("\n".join(sorted(lines)).encode()))


def _records(file: Path) -> list[dict[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in ("image", "label") if name not in (reader.fieldnames or ())]
            records = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Refusal("data_invalid", f"The labels cannot be read ({type(error).__name__}).") from error
    if missing:
        raise Refusal("data_invalid", f"The labels lack the column {missing[0]}.")
    if not records:
        raise Refusal("data_invalid", "The file of labels has no row.")
    return records


def _checked(number: int, record: dict[str, str], folder: Path, classes: Sequence[str], domain: str) -> Row:
    name, label, patient, view = ((record.get(column) or "").strip() for column in ("image", "label", "patient", "view"))
    if not name or not label:
        raise Refusal("data_invalid", f"row {number}: a column is empty.")
    if label not in classes:
        raise Refusal("data_invalid", f"row {number}: its label is not one of {', '.join(classes)}.")
    return Row(number, folder / name, list(classes).index(label), domain, patient or f"row {number}", view)
