"""What leaves as a label package: the decided items of a model, with their pixels."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import TypeAdapter

from models.agreement import cohen_kappa
from models.card import AnyCard, ModelCard, SegmenterCard
from models.errors import Refusal
from models.label_package import NO_SITE, LabelPackage, Labels, write_label_package
from service.audit import note, operator
from service.items import DONE
from service.kept import Kept
from service.label_documents import Document, class_of, likeness
from service.label_rules import READER, Decision, Row, decide, in_force
from service.pseudonyms import Pseudonyms
from service.store import Store
from service.tables import items, kept_images, labels, models

_CARD: TypeAdapter[ModelCard | SegmenterCard] = TypeAdapter(AnyCard)
Why = Literal["expired", "burned_in", "two_sites"]
Readers = Callable[[str], str]
"""A reader's name -> the name that leaves."""


@dataclass(frozen=True)
class Wish:
    """What to export.

    Attributes
    ----------
    model : str or None
        Name of the model; None where all labels are of one.
    since : datetime or None
        Only what was decided by a label from then on.
    names : bool
        Readers' names rather than pseudonyms.
    leave_out_burned_in : bool
        Whether images that are said to hold writing are left out, rather than refused.
    """

    model: str | None = None
    since: datetime | None = None
    names: bool = False
    leave_out_burned_in: bool = False


@dataclass(frozen=True)
class Decided:
    """An item that is done: its row with that of its kept pixels, its labels in force, and the one that holds."""

    item: Row
    standing: list[Row]
    label: Row


class Exporter:
    """Makes label packages of one site.

    Parameters
    ----------
    store : Store
    kept : Kept
    pseudonyms : Pseudonyms
    """

    def __init__(self, store: Store, kept: Kept, pseudonyms: Pseudonyms) -> None:
        self._store, self._kept, self._pseudonyms = store, kept, pseudonyms

    def write(self, wish: Wish, folder: Path) -> LabelPackage:
        """Write a label package of what is decided.

        Raises
        ------
        Refusal
            ``data_invalid`` if nothing is decided, the labels are of several models and none is named, or of several label sets;
            ``burned_in_annotation``; ``output_exists``.
        """
        with self._store.reading() as connection:
            name = _name(connection, wish.model)
            found = decided(connection, name, wish.since)
            packages = {row["sha256"]: row for row in _rows(connection, sa.select(models).where(models.c.name == name))}
        left_out: dict[Why, int] = defaultdict(int)
        chosen = list(self._choose(found, wish.leave_out_burned_in, left_out))
        if not chosen:
            raise Refusal("data_invalid", "No image is decided by labels whose pixels are still kept.")
        newest = max(chosen, key=lambda each: _at(each.label)).label
        card = _CARD.validate_python(packages[newest["model_sha256"]]["card"])
        of_classes = isinstance(card, ModelCard)
        readers: Readers = (lambda reader: reader[:128]) if wish.names else self._pseudonyms.reader
        readings = [row for each in chosen for row in each.standing]
        classes = card.output.classes if isinstance(card, ModelCard) else (card.output.label,)
        if of_classes and not {class_of(row["document"]) for row in readings} <= set(classes):
            raise Refusal("data_invalid", "The labels are of several label sets; leave the older ones out by --since.")
        document = Labels.model_validate({
            "schema_version": 1, "model_name": name, "task": card.task, "classes": classes,
            "created_at": max(_at(row) for row in readings), "images": [_image(each, readers) for each in chosen],
            "left_out": dict(left_out), "agreement": _agreement(chosen, readers), "files": {},
            "models": {
                sha256: {"name": name, "version": packages[sha256]["version"]}
                for sha256 in sorted({row["model_sha256"] for row in readings})
            },
        })  # fmt: skip
        with self._store.writing() as connection:
            note(connection, operator(), "labels_exported", [each.item["image_sha256"] for each in chosen])
        return write_label_package(folder, document, self._content(chosen))

    def _choose(self, decided: Iterable[Decided], leave_out_burned_in: bool, left_out: dict[Why, int]) -> Iterable[Decided]:
        """Yield what may leave, and count what may not."""
        sites: dict[str, str] = {}
        for each in decided:
            item = each.item
            if item["removed_at"] is not None:
                left_out["expired"] += 1
            elif item["facts"]["burned_in"] == "yes":
                if not leave_out_burned_in:
                    raise Refusal(
                        "burned_in_annotation", "An image is said to hold writing; --leave-out-burned-in goes without it."
                    )
                left_out["burned_in"] += 1
            elif sites.setdefault(item["patient"], item["site"]) != item["site"]:
                left_out["two_sites"] += 1
            else:
                yield each

    def _content(self, chosen: Sequence[Decided]) -> Callable[[str], bytes]:
        documents = {each.item["image_sha256"]: each.label["document"] for each in chosen}

        def content(path: str) -> bytes:
            folder, file = path.split("/")
            image_sha256 = file.split(".")[0]
            if folder == "points":
                return (json.dumps(documents[image_sha256], allow_nan=False) + "\n").encode()
            png = self._kept.read(image_sha256)
            if png is None:
                raise Refusal("data_invalid", "Pixels expired while they were exported: try again.")
            return png

        return content


def _rows(connection: sa.Connection, query: sa.Select[Any]) -> list[Row]:
    return [dict(row) for row in connection.execute(query).mappings()]


def _at(row: Row) -> datetime:
    at: datetime = row["created_at"]
    return at.replace(tzinfo=UTC)


def _name(connection: sa.Connection, wanted: str | None) -> str:
    names = list(connection.execute(sa.select(items.c.model_name).where(items.c.state == DONE).distinct()).scalars())
    if wanted is not None:
        return wanted
    if len(names) > 1:
        raise Refusal("data_invalid", f"There are labels for several models; name one by --model: {', '.join(sorted(names))}.")
    return names[0] if names else ""


def decided(connection: sa.Connection, name: str, since: datetime | None = None) -> list[Decided]:
    """Return the items of a model that are done, by their number, each with the label that holds; those labelled from then on."""
    kept = (kept_images.c.rows, kept_images.c.columns, kept_images.c.facts, kept_images.c.removed_at)
    query = (
        sa.select(items, *kept)
        .join(kept_images, kept_images.c.image_sha256 == items.c.image_sha256)
        .where(items.c.model_name == name, items.c.state == DONE)
        .order_by(items.c.id)
    )
    given: dict[int, list[Row]] = defaultdict(list)
    done = sa.select(items.c.id).where(items.c.model_name == name, items.c.state == DONE)
    for row in _rows(connection, sa.select(labels).where(labels.c.item_id.in_(done)).order_by(labels.c.id)):
        given[row["item_id"]].append(row)
    found = []
    for item in _rows(connection, query):
        standing = in_force(given[item["id"]])
        label = _decision(item, standing).label
        if label is not None and (since is None or _at(label) >= since):
            found.append(Decided(item, standing, label))
    return found


def _decision(item: Row, standing: Sequence[Row]) -> Decision:
    # It is done, by however many readers were asked for then
    size = item["rows"], item["columns"]
    return decide(standing, 1, lambda a, b: likeness(a["kind"], a["document"], b["document"], *size))


def said(row: Row) -> str | None:
    """Return the class that a label names; None of an annotation."""
    document: Document = row["document"]
    return class_of(document) if row["kind"] == "classes" else None


def _image(decided: Decided, readers: Readers) -> dict[str, Any]:
    item = decided.item
    reading = ("label_id", "standing", "model_sha256", "result_id", "model_was_right", "source")
    return {name: item[name] for name in ("image_sha256", "rows", "columns", "patient", "origin")} | {
        "domain": item["site"] or NO_SITE,
        "burned_in": item["facts"]["burned_in"],
        "label": said(decided.label),
        "decided_by": decided.label["label_id"],
        "readings": [
            {name: row[name] for name in reading} | {"reader": readers(row["reader"]), "label": said(row), "created_at": _at(row)}
            for row in decided.standing
        ],
    }


def _agreement(chosen: Sequence[Decided], readers: Readers) -> list[dict[str, Any]]:
    """Return the agreement of every two readers over the images that both labelled, as readers."""
    pairs: dict[tuple[str, str], list[tuple[Row, Row, Row]]] = defaultdict(list)
    for each in chosen:
        given = sorted((row for row in each.standing if row["standing"] == READER), key=lambda row: str(row["reader"]))
        for first, second in combinations(given, 2):
            pairs[first["reader"], second["reader"]].append((each.item, first, second))
    found = []
    for (one, other), both in sorted(pairs.items()):
        if both[0][1]["kind"] == "classes":
            measure = "cohen_kappa"
            value = cohen_kappa([str(said(row)) for _, row, _ in both], [str(said(row)) for _, _, row in both])
        else:
            measure = "mean_overlap"
            alike = [
                likeness("annotation", a["document"], b["document"], item["rows"], item["columns"]).value for item, a, b in both
            ]
            known = [each for each in alike if each is not None]
            value = sum(known) / len(known) if known else None
        found.append({"readers": (readers(one), readers(other)), "measure": measure, "n": len(both), "value": value})
    return found
