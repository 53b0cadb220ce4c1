"""A site's labels: read, checked, and found again among its images."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import Refusal
from models.site import Row, Site

PROBABILITY = "inclusion_probability"
COLUMNS = ("file", "label", PROBABILITY, "image_sha256")


@dataclass(frozen=True)
class Label:
    """A line of a file of labels; ``probability`` is None where the file has no such column."""

    file: str
    label: str
    probability: float | None


def is_draw(file: Path) -> bool:
    """Tell whether a file of labels has all columns that ``overread certify --draw`` writes."""
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            return set(COLUMNS) <= set(next(csv.reader(stream), []))
    except (OSError, csv.Error) as error:
        raise Refusal("data_invalid", f"--labels cannot be read ({type(error).__name__}).") from error


def read_labels(file: Path, column: str | None, classes: Sequence[str] | None, names: dict[str, Path]) -> tuple[list[Label], int]:
    """Read a file of labels.

    Parameters
    ----------
    file : Path
        CSV with the columns file (relative to the site) and label, and perhaps inclusion probabilities.
    column : str or None
        Their name; None takes ``inclusion_probability`` if it is there.
    classes : sequence of str
        Of the model card; None takes any.
    names : dict
        Of :func:`names_of`.

    Returns
    -------
    labels : list of Label
    empty : int
        Lines whose label is empty: drawn and not labelled.

    Raises
    ------
    Refusal
        ``data_invalid`` with the number of the row; names of files are not told.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            reader = csv.DictReader(stream)
            header, lines = list(reader.fieldnames or []), list(reader)
    except (OSError, csv.Error) as error:
        raise Refusal("data_invalid", f"--labels cannot be read ({type(error).__name__}).") from error
    wanted = column or (PROBABILITY if PROBABILITY in header else None)
    missing = {"file", "label", wanted} - {None, *header}
    if missing:
        raise Refusal("data_invalid", f"--labels lacks the columns {sorted(map(str, missing))}; commas part its columns.")
    first: dict[str, tuple[int, str]] = {}
    labels, empty = [], 0
    for number, line in enumerate(lines, start=2):
        name, label = (line["file"] or "").strip(), (line["label"] or "").strip()
        if name not in names:
            raise Refusal("data_invalid", f"Row {number} of --labels names a file that is not in the folder of images.")
        if not label:
            empty += 1
            continue
        if classes is not None and label not in classes:
            raise Refusal("data_invalid", f"Row {number} of --labels has a class that the model card does not know.")
        if name in first:
            _again(first[name], number, label)
            continue
        first[name] = number, label
        labels.append(Label(name, label, _probability(line[wanted], number) if wanted else None))
    return labels, empty


def _again(before: tuple[int, str], number: int, label: str) -> None:
    if before[1] != label:
        raise Refusal("data_invalid", f"Rows {before[0]} and {number} of --labels contradict each other about one image.")


def _probability(text: str | None, number: int) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not 0 < value <= 1:
        raise Refusal("data_invalid", f"Row {number} of --labels has an inclusion probability that is not above 0 and at most 1.")
    return value


def join(labels: Sequence[Label], site: Site, rows: Sequence[Row]) -> tuple[NDArray[np.int64], list[Label]]:
    """Find the labelled images among the rows of a site.

    Returns
    -------
    index : ndarray of int, shape (n,)
        Into ``rows``.
    labels : list of Label, length n
        In that order; those of images that are not among the rows (not readable, refused) are left out.

    Raises
    ------
    Refusal
        ``data_invalid`` if two files of one image have different labels.
    """
    places = {row["image_sha256"]: place for place, row in enumerate(rows)}
    found: dict[int, Label] = {}
    for label in labels:
        place = places.get(site.files.get(label.file, ""))
        if place is None:
            continue
        if place in found and found[place].label != label.label:
            raise Refusal("data_invalid", "Two files of --labels hold the same image, and their labels contradict each other.")
        found.setdefault(place, label)
    return np.array(list(found), dtype=np.int64), list(found.values())
