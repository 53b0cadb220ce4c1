"""Drawn images that a shift of style makes hard: an upright bar or a level one, in hospitals of different looks."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HOSPITALS = {"east": (90.0, 0.0, 14.0, 70.0, 0.0), "west": (60.0, 1.0, 10.0, 70.0, 0.0), "north": (90.0, 2.0, 18.0, 49.0, 25.0)}
"""Brightness, rise of it from row to row (halved), noise, contrast of the bar, level stripes. ``north`` is never trained on."""


def bar(upright: bool, hospital: str, random: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one image of 40 x 40 pixels."""
    base, slope, noise, contrast, stripes = HOSPITALS[hospital]
    y, x = np.mgrid[:40, :40]
    centre = random.uniform(12, 28, 2)
    height, width = (9, 3) if upright else (3, 9)
    grey = base + 2 * slope * y + random.normal(0, noise, (40, 40))
    grey += contrast * np.exp(-0.75 * (((y - centre[0]) / height) ** 2 + ((x - centre[1]) / width) ** 2))
    grey += stripes * np.sin(0.9 * y)
    return np.clip(grey, 0, 255).astype(np.uint8)


def draw_hospital(folder: Path, hospitals: tuple[str, ...], each: int, seed: int) -> Path:
    """Draw ``each`` images of both classes of each hospital, two a patient, with a manifest."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    rows = []
    for hospital in hospitals:
        for label in ("level", "upright"):
            for index in range(each):
                name = f"{hospital}_{label}_{index}.png"
                Image.fromarray(bar(label == "upright", hospital, random)).save(folder / name)
                patient = f"{hospital}-{label}-{index // 2}"
                rows.append({"image": name, "label": label, "domain": hospital, "patient": patient, "view": "AP"})
    write_rows(folder / "manifest.csv", rows)
    return folder


def write_rows(file: Path, rows: list[dict[str, str]]) -> None:
    """Write rows as CSV."""
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
