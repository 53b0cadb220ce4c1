"""A drawn set to learn the commands with: chests of two hospitals, some with an opacity, and what ``overread train`` asks for."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from scipy import ndimage

from models.errors import Refusal

SIDE = 160
"""Of an image, pixels: more than the shipped model asks for, so that both can be measured on the same images."""
PATIENTS = 80
"""Of each hospital and class, an image each; a fifth of all is what two packages are compared on."""
HOSPITALS = {"east": (1.0, 0.6, 0.012), "west": (0.8, 1.6, 0.03)}
"""Domain -> gain of the attenuation, blur (pixels) and noise (of full scale): what their devices differ in."""
CLASSES = ("normal", "pneumonia")
LUNGS = ((45, 70), (110, 70))
"""Middles of the lungs, column and row, pixels."""

INPUT: dict[str, Any] = {
    "channels": 1, "height": 32, "width": 32, "intensity": "percentile", "low": 0.5, "high": 99.5, "mean": 0.5, "std": 0.25,
    "modalities": ["CR", "DX"], "body_parts": ["CHEST"], "views": ["PA", "AP"], "age_years": [1, 110], "min_side": 128,
}  # fmt: skip
"""An ``InputSpec``, small enough that a network learns in seconds."""

ABOUT: dict[str, Any] = {
    "intended_use": {
        "statement": "To learn how a model is made. It knows drawings, and nothing of patients.",
        "population": "Drawn chests of two drawn hospitals.",
        "not_seen": "Any real image.",
        "not_for": "Not for diagnosis, nor for any image of a patient.",
    },
    "sources": {name: {"licence": "CC0 1.0", "credit": "Drawn by overread example", "link": "none"} for name in HOSPITALS},
}
"""What ``overread release --about`` reads."""


def draw_patient(chest: NDArray[np.float64], hospital: str, label: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one patient's chest.

    Parameters
    ----------
    chest : (SIDE, SIDE) float64, nats
        Attenuation.
    hospital : str
        Of :data:`HOSPITALS`.
    label : str
        Of :data:`CLASSES`; ``pneumonia`` has a soft opacity in a lung.
    rng : numpy.random.Generator

    Returns
    -------
    (SIDE, SIDE) uint8
        Bright where rays are absorbed.
    """
    gain, blur, noise = HOSPITALS[hospital]
    attenuation = chest.copy()
    if label == "pneumonia":
        column, row = np.array(LUNGS[rng.integers(2)]) + rng.uniform((-8, -25), (8, 30))
        rows, columns = np.mgrid[:SIDE, :SIDE]
        spread = rng.uniform(9, 15)
        attenuation += rng.uniform(0.9, 1.4) * np.exp(-((columns - column) ** 2 + (rows - row) ** 2) / (2 * spread**2))
    attenuation = ndimage.shift(attenuation, rng.uniform(-4, 4, 2), order=1, mode="nearest")
    absorbed = 1 - np.exp(-np.clip(attenuation, 0, None) * gain * rng.uniform(0.9, 1.1))
    seen = ndimage.gaussian_filter(absorbed, blur) + rng.normal(0, noise, absorbed.shape)
    grey: NDArray[np.uint8] = np.clip(np.rint(255 * seen), 0, 255).astype(np.uint8)
    return grey


def write_set(folder: Path, attenuation: NDArray[np.float64]) -> Path:
    """Draw the set into a new folder: images as PNG, ``manifest.csv``, ``input.json`` and ``about.json``.

    Parameters
    ----------
    folder : Path
        Must be missing or empty.
    attenuation : (H, W) float64, nats
        Of a frontal chest, square, at least :data:`SIDE` pixels wide.

    Returns
    -------
    Path
        The manifest.

    Raises
    ------
    Refusal
        ``output_exists`` if there is anything in the folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refusal("output_exists", "The folder for the drawn set is not empty.")
    folder.mkdir(parents=True, exist_ok=True)
    chest = ndimage.zoom(
        ndimage.gaussian_filter(attenuation, attenuation.shape[0] / SIDE / 2), SIDE / attenuation.shape[0], order=1
    )
    rng = np.random.Generator(np.random.PCG64(13))
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
        manifest = csv.writer(stream)
        manifest.writerow(["image", "label", "domain", "patient", "view"])
        for hospital in HOSPITALS:
            for label in CLASSES:
                for number in range(PATIENTS):
                    patient = f"{hospital}-{label}-{number:02d}"
                    Pillow.fromarray(draw_patient(chest, hospital, label, rng)).save(folder / f"{patient}.png")
                    manifest.writerow([f"{patient}.png", label, hospital, patient, "PA"])
    for name, document in {"input.json": INPUT, "about.json": ABOUT}.items():
        (folder / name).write_text(json.dumps(document, indent=1) + "\n")
    return folder / "manifest.csv"
