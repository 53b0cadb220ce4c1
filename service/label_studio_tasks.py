"""Tasks for Label Studio: what waits to be labelled, with its pixels, and the labelling interface for it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import numpy as np
import sqlalchemy as sa
from PIL.PngImagePlugin import PngImageFile

from models.card import ModelCard, SegmenterCard
from models.durable import write_whole
from models.errors import Refusal
from models.rendered import Picture
from service.audit import note, operator
from service.items import WAITING, Row
from service.kept import Kept
from service.label_studio import label_config
from service.store import Store
from service.tables import items, kept_images, results

CONFIG = "label_config.xml"
LOCAL_FILES = "/data/local-files/?d="
"""How Label Studio names a file under its document root."""


def write_tasks(
    store: Store,
    kept: Kept,
    card: ModelCard | SegmenterCard,
    file: Path,
    images: Path | None = None,
    *,
    leave_out_burned_in: bool = False,
) -> int:
    """Write the tasks of a model's waiting items, the most doubtful first, and ``label_config.xml`` beside them.

    Parameters
    ----------
    store : Store
    kept : Kept
    card : ModelCard or SegmenterCard
        Of the model.
    file : Path
        Becomes the list of tasks, JSON.
    images : Path or None
        Folder for the images, which tasks then name as Label Studio's local files; without one, they are in the tasks as data.
    leave_out_burned_in : bool
        Whether images that are said to hold writing are left out, rather than refused.

    Returns
    -------
    int
        Tasks written.

    Raises
    ------
    Refusal
        ``data_invalid`` if nothing waits, ``burned_in_annotation``, ``output_exists``.
    """
    if file.exists():
        raise Refusal("output_exists", "The file is there already: name another one.")
    rows = list(_waiting(store, card.name))
    if leave_out_burned_in:
        rows = [row for row in rows if row["facts"]["burned_in"] != "yes"]
    elif any(row["facts"]["burned_in"] == "yes" for row in rows):
        raise Refusal("burned_in_annotation", "An image is said to hold writing; --leave-out-burned-in goes without it.")
    with store.writing() as connection:
        note(connection, operator(), "labels_exported", [row["image_sha256"] for row in rows])
    tasks = []
    for row in rows:
        png = kept.read(row["image_sha256"])
        if png is None:  # it expired just now
            continue
        data = {name: row[name] for name in ("result_id", "image_sha256", "site")} | {"item_id": row["id"]}
        tasks.append({"data": data | {"image": _image(png, row["image_sha256"], images)}})
    if not tasks:
        raise Refusal("data_invalid", "No item of this model waits for a label.")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file.parent / CONFIG, label_config(card).encode())
    part = file.with_name(f".{file.name}.part")
    part.touch(mode=0o600)
    part.write_text(json.dumps(tasks, allow_nan=False), encoding="utf-8")
    part.replace(file)
    return len(tasks)


def _waiting(store: Store, name: str) -> Iterator[Row]:
    query = (
        sa.select(items.c.id, items.c.image_sha256, items.c.result_id, items.c.site, kept_images.c.facts)
        .join(kept_images, kept_images.c.image_sha256 == items.c.image_sha256)
        .join(results, results.c.id == items.c.result_id)
        .where(items.c.model_name == name, items.c.state.in_(WAITING), kept_images.c.removed_at.is_(None))
        # Doubt of two packages is not comparable
        .order_by(items.c.model_sha256, results.c.loss_percentile.desc(), items.c.id)
    )
    with store.reading() as connection:
        yield from [dict(row) for row in connection.execute(query).mappings()]


def _image(png: bytes, image_sha256: str, folder: Path | None) -> str:
    shown = _eight_bits(png)
    if folder is None:
        return "data:image/png;base64," + base64.b64encode(shown).decode()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / f"{image_sha256}.png").write_bytes(shown)
    return LOCAL_FILES + quote(f"{folder.name}/{image_sha256}.png")


def _eight_bits(png: bytes) -> bytes:
    """Return a kept PNG as a browser shows it best: its values are display values, so the upper eight bits are enough."""
    with PngImageFile(BytesIO(png)) as stored:
        pixels = np.asarray(stored)
    return Picture((pixels >> 8).astype(np.uint8), None).png() if pixels.dtype == np.uint16 else png
