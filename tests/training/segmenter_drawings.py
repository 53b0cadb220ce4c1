"""Drawn tissue: violet discs on a pink ground, and the runs made from it."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.annotation import Annotation
from models.card import InputSpec
from tests.annotations import write_annotation
from training import segmenter
from training.segmenter_config import SegmenterConfig, make_segmenter_config

SIDE = 72
SPEC: dict[str, Any] = {
    "channels": 3, "height": 48, "width": 48, "intensity": "full_range", "low": 0, "high": 100, "mean": 0.5, "std": 0.25,
    "modalities": [], "body_parts": [], "views": [], "age_years": None, "min_side": 32,
}  # fmt: skip
SMALL: dict[str, Any] = {
    "steps_per_epoch": 10, "batch_size": 4, "crop": 32, "widths": (8, 16), "blocks": 1, "edge_width": 8,
    "attention_widths": (8, 8), "overlap": 8, "precision": "32-true", "learning_rate": 1e-2,
}  # fmt: skip
"""What the command line does not offer, because nobody but a test wants so small a network."""


def config(**values: Any) -> SegmenterConfig:
    given = {"seed": 0, "label": "nucleus", "domains": ("east",), "input": InputSpec.model_validate(SPEC)} | SMALL | values
    return make_segmenter_config(**given)


def draw(random: np.random.Generator, ground: int = 220) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Return an image and its label map of nine discs, on a grid with jitter so that none touch."""
    y, x = np.mgrid[:SIDE, :SIDE]
    labels = np.zeros((SIDE, SIDE), np.uint16)
    for index in range(9):
        row, column = divmod(index, 3)
        centre = np.array([12 + 24 * row, 12 + 24 * column]) + random.uniform(-3, 3, 2)
        labels[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= random.uniform(4.5, 7) ** 2] = index + 1
    colours = np.where(labels[..., None] > 0, (110, 60, 150), (ground, 160, 190)) + random.normal(0, 8, (SIDE, SIDE, 3))
    return np.clip(colours, 0, 255).astype(np.uint8), labels


def write(folder: Path, rows: list[dict[str, str]]) -> None:
    with (folder / "manifest.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["image", "label_map", "points", "domain", "patient", "label_kind"], restval="")
        writer.writeheader()
        writer.writerows(rows)


def make(folder: Path, images: int = 30) -> list[dict[str, str]]:
    """Draw images, every third with points instead of a map; write the manifest and return its rows."""
    folder.mkdir()
    random = np.random.default_rng(0)
    rows = []
    for index in range(images):
        colours, labels = draw(random)
        Image.fromarray(colours).save(folder / f"{index}.png")
        row = {"image": f"{index}.png", "domain": "east", "patient": f"p{index}"}
        if index % 3 == 2:
            centres = np.array([np.argwhere(labels == value).mean(axis=0)[::-1] + 0.5 for value in range(1, 10)])
            write_annotation(folder / f"{index}.csv", Annotation(centres))
            row["points"] = f"{index}.csv"
        else:
            Image.fromarray(labels).save(folder / f"{index}_labels.png")
            row["label_map"] = f"{index}_labels.png"
        rows.append(row)
    write(folder, rows)
    return rows


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    """Return the arguments of ``overread train segmenter`` for drawn images."""
    spec = data / "spec.json"
    spec.write_text(json.dumps(SPEC))
    return ["--data", str(data), "--domains", "east", "--label", "nucleus", "--input", str(spec), "--out", str(out),
            "--precision", "32-true", *more]  # fmt: skip


def small(patch: pytest.MonkeyPatch) -> None:
    """Let ``overread train segmenter`` make small networks in short epochs."""
    settings = {name: value for name, value in SMALL.items() if name != "precision"}
    patch.setattr(segmenter, "make_segmenter_config", partial(make_segmenter_config, **settings))
