"""The rows of a scored archive: one a file, typed, as Parquet."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from models.batch import DOUBTS, MAX_FILE_BYTES, QUANTITIES, UNSEEN, AnyPredictor, classified, read_bytes, segmented
from models.card import ModelCard, SegmenterCard
from models.errors import Refusal
from models.predictor import Predictor
from service.dicom_results import is_ours
from service.score_archive import AWAY, Source

Row = dict[str, Any]
_IDENTITY = {"position": pa.int64(), "path": pa.string(), "file_sha256": pa.string(), "image_sha256": pa.string(),
             "model": pa.string(), "model_version": pa.string(), "model_sha256": pa.string()}  # fmt: skip
_FOUND = {"verdict": pa.string(), "reasons": pa.list_(pa.string()), "error": pa.string(), "detail": pa.string()}


def schema_of(card: ModelCard | SegmenterCard) -> pa.Schema:
    """Return the columns that a model's rows have; ``docs/score.md`` says what each holds."""
    said: dict[str, pa.DataType] = dict.fromkeys(QUANTITIES, pa.float64())
    if isinstance(card, ModelCard):
        kinds = {"probability": pa.float64(), "positive": pa.bool_()}
        said = {f"{kind}_{item.label}": kinds[kind] for item in card.output.findings for kind in kinds} | {UNSEEN: pa.float64()}
    return pa.schema([*_IDENTITY.items(), *said.items(), *((name, pa.float64()) for name in DOUBTS), *_FOUND.items()])


def text_of(name: bytes) -> str:
    """Return a file's name as text; bytes that are no UTF-8 are written as a backslash, x and two digits."""
    return name.decode("utf-8", "backslashreplace")


def row_of(position: int, name: bytes, source: Source, predictor: AnyPredictor, *, paths: bool) -> Row:
    """Score one file.

    Parameters
    ----------
    position : int
        Of the file in the archive's listing, from 0.
    name : bytes
    source : Source
    predictor : Predictor or SegmenterPredictor
    paths : bool
        Whether the row may hold the file's name.

    Returns
    -------
    dict
        Of the columns of :func:`schema_of`, those that are known; ``error`` and ``detail`` where the file could not be scored.

    Raises
    ------
    Refusal
        Only where the archive itself is gone: what the file did is not known then.
    """
    card = predictor.card
    row: Row = {"position": position, "path": text_of(name) if paths else None}
    row |= {"model": card.name, "model_version": card.version, "model_sha256": predictor.sha256}
    try:
        content = source.read(name)
        row["file_sha256"] = content.sha256
        if content.data is None:
            raise Refusal("too_large", f"The file may have {MAX_FILE_BYTES} bytes at most.")
        return row | _scored(content.data, predictor)
    except Refusal as refusal:
        if refusal.code in AWAY:
            raise
        return row | {"error": refusal.code, "detail": refusal.detail}
    # Whatever one file can cause must not end the run: it becomes a row that says so
    except Exception as error:  # noqa: BLE001
        return row | {"error": "internal_error", "detail": f"An unexpected fault ({type(error).__name__})."}


def _scored(data: bytes, predictor: AnyPredictor) -> Row:
    image, notes = read_bytes(data, predictor.card.input, whole=not isinstance(predictor, Predictor))
    if image.header is not None and is_ours(image.header):
        raise Refusal("own_output")
    if isinstance(predictor, Predictor):
        found = classified(image, predictor, notes)
    else:
        _, found = segmented(image, predictor, notes)
    return found | {"reasons": found["reasons"].split()}


def failed_row(position: int, name: bytes, card: ModelCard | SegmenterCard, sha256: str, *, paths: bool) -> Row:
    """Return the row of a file whose reading ended the process each time."""
    row: Row = {"position": position, "path": text_of(name) if paths else None}
    row |= {"model": card.name, "model_version": card.version, "model_sha256": sha256}
    return row | {"error": "internal_error", "detail": "The process that read the file ended, each time."}


def parquet_of(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> bytes:
    """Return rows as a Parquet file; the same rows give the same bytes."""
    table = pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema)
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd")
    return stream.getvalue()


def rows_of(content: bytes, columns: Sequence[str] | None = None) -> list[Row]:
    """Return the rows of a Parquet file, or some columns of them."""
    found: list[Row] = pq.read_table(io.BytesIO(content), columns=columns and list(columns)).to_pylist()
    return found


def count_of(file: Path) -> int | None:
    """Return how many rows a Parquet file has; None if it is not whole, or is not there."""
    try:
        return int(pq.read_metadata(file).num_rows)
    except (OSError, pa.ArrowException):
        return None
