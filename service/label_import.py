"""Labels that were given elsewhere: classes from CSV, marks from QuPath's GeoJSON."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

from models.annotation import LARGEST_FILE
from models.errors import Refusal
from service.label_schemas import LabelIn
from service.labels import Labels

COLUMNS = ("image_sha256", "label")
DIGEST = re.compile("[0-9a-f]{64}")


def import_labels(
    labels: Labels, file: Path, reader: str, model: str, image: str | None = None, *, corrects: bool = False
) -> int:
    """Store the labels of a file. What is there already is not stored again, so that a killed import can be repeated.

    Parameters
    ----------
    labels : Labels
    file : Path
        ``.csv`` with the columns image_sha256 and label, others are passed over; or ``.geojson`` or ``.json``, one image's marks.
    reader : str
        Who gave them.
    model : str
        Name of the model whose images they are.
    image : str or None
        Digest of the image that marks are of; by default the file is named by it, as in a label package.
    corrects : bool
        Whether they replace the reader's own earlier labels, where these differ.

    Returns
    -------
    int
        Labels of the file, all of which are stored.

    Raises
    ------
    Refusal
        ``data_invalid`` for a file that cannot be read, or an image that the service has no result of; ``label_invalid`` for
        what does not fit; both before anything is stored. ``label_conflict``: the rows before it are stored. The message
        names the row.
    """
    text = _text(file)
    found = _classes(text) if file.suffix.lower() == ".csv" else _marks(text, image or file.stem)
    given = []
    for where, digest, says in found:
        subject = labels.subject(digest, model) if DIGEST.fullmatch(digest) else None
        if subject is None:
            raise Refusal("data_invalid", f"{where}there is no result of this image by the model {model}.")
        label = LabelIn.model_validate(subject.model_dump() | {"model_was_right": False} | says)
        with _named(where):
            labels.checked(label)
        given.append((where, label))
    for where, label in given:
        with _named(where):
            labels.add(label, reader, source="import", corrects=corrects)
    return len(given)


@contextmanager
def _named(where: str) -> Iterator[None]:
    try:
        yield
    except Refusal as refusal:
        raise Refusal(refusal.code, where + refusal.detail) from refusal


def _text(file: Path) -> str:
    try:
        if file.suffix.lower() not in {".csv", ".geojson", ".json"}:
            raise Refusal("data_invalid", "Labels are a .csv, .geojson or .json file.")
        if file.stat().st_size > LARGEST_FILE:
            raise Refusal("data_invalid", f"The file is larger than {LARGEST_FILE // 2**20} MiB.")
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal("data_invalid", f"The file cannot be read ({type(error).__name__}).") from error


def _classes(text: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield where each label stands, the image's digest, and what it says."""
    try:
        reader = csv.DictReader(StringIO(text), strict=True)
        names = list(reader.fieldnames or ())
        records = list(reader)
    except csv.Error as error:
        raise Refusal("data_invalid", "The file is no readable CSV.") from error
    if any(names.count(name) != 1 for name in COLUMNS):
        raise Refusal("data_invalid", "The file needs one column image_sha256 and one column label.")
    for number, record in enumerate(records, start=1):
        label = (record["label"] or "").strip()
        if not 0 < len(label) <= 128:
            raise Refusal("data_invalid", f"row {number}: it has no label.")
        yield f"row {number}: ", (record["image_sha256"] or "").strip().lower(), {"classes": {label: True}}


def _marks(text: str, digest: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refusal("data_invalid", "The file is no readable JSON.") from error
    # QuPath may write the list of features alone
    collection = {"type": "FeatureCollection", "features": document} if isinstance(document, list) else document
    if not isinstance(collection, dict):
        raise Refusal("data_invalid", "The file is no GeoJSON.")
    yield "", digest.lower(), {"annotation": collection}
