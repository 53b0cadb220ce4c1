"""Drawn nuclei, and real ones, for the tests of annotations."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from models.annotation import Annotation

Labels = NDArray[np.int32]
SIDE = 120


def at(*points: tuple[float, float], region: NDArray[np.float64] | None = None) -> Annotation:
    return Annotation(np.array(points, float).reshape(-1, 2), region=region)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> NDArray[np.float64]:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


def nuclei(side: int = SIDE) -> Labels:
    """Draw a grid of discs of radius 7, 24 pixels apart, and one nucleus shaped like a C, whose centroid lies outside it."""
    y, x = np.mgrid[0:side, 0:side]
    inside = np.hypot(x % 24 - 11.5, y % 24 - 11.5) < 7
    image = np.where(inside, y // 24 * (side // 24) + x // 24 + 1, 0).astype(np.int32)
    image[0:24, 0:24] = 0
    ring = np.hypot(x - 11.5, y - 11.5)
    image[(ring < 10) & (ring > 6) & ~((x > 11) & (abs(y - 11.5) < 4))] = 1
    return image


def stained(label_image: Labels) -> NDArray[np.uint8]:
    """Draw the nuclei violet on pink, with noise."""
    colours = np.where((label_image > 0)[..., None], (110, 70, 150), (230, 180, 210))
    return np.clip(colours + np.random.default_rng(0).normal(0, 12, colours.shape), 0, 255).astype(np.uint8)


def pixels(annotation: Annotation) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    x, y = np.floor(annotation.points).astype(np.intp).T
    return y, x


def real(data_root: Path, kind: str) -> tuple[NDArray[np.uint8], Labels]:
    """Return the first image with that kind of instance masks, and its label image."""
    with (data_root / "nuclei" / "manifest.csv").open(newline="") as stream:
        row = next(row for row in csv.DictReader(stream) if row["label_kind"] == kind)
    image = np.asarray(PIL.Image.open(data_root / "nuclei" / row["image"]).convert("RGB"))
    return image, np.asarray(PIL.Image.open(data_root / "nuclei" / row["label_map"])).astype(np.int32)
