"""Data sets of several domains as arrays: read once, kept beside the results, split by patient, changed at random."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.color import hed_from_rgb, rgb_from_hed
from torch import Generator, Tensor
from torch.nn import functional

from models.card import InputSpec
from models.imaging import read_image
from models.preprocess import preprocess
from training.augmentation import augment


@dataclass(frozen=True)
class Source:
    """How a data set is used: column and values of its label, targets, and who is drawn equally often in training."""

    column: str
    classes: tuple[str, ...]
    targets: tuple[str, ...]
    channels: int
    balance: str


SOURCES = {
    "pacs": Source(
        "label", ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person"),
        ("art_painting", "cartoon", "photo", "sketch"), 3, "domain",
    ),
    "cxr": Source("abnormal", ("0", "1"), ("kermany_guangzhou", "nih_chestxray"), 1, "class"),
    "wbc": Source("label", ("eosinophil", "lymphocyte", "monocyte", "neutrophil"), ("bccd", "tecom"), 3, "domain"),
}  # fmt: skip
"""``balance``: domains of about one size are drawn equally often; two of the X-rays' are small and of one class, so there it is
the classes."""


@dataclass(frozen=True)
class Domains:
    """A data set.

    Attributes
    ----------
    name : str
        A key of :data:`SOURCES`.
    images : ndarray, uint8, shape (N, C, side, side)
    labels : ndarray, int64, shape (N,)
    domains, patients : ndarray of str, shape (N,)
        Where no patient is known, every image has its own.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    domains: NDArray[np.str_]
    patients: NDArray[np.str_]

    def split(self, target: str, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the indices of training, source validation (a fifth of the source domains' patients) and target."""
        share = np.array([_share(f"{seed}:{patient}") for patient in self.patients])
        home = self.domains != target
        return np.flatnonzero(home & (share >= 0.2)), np.flatnonzero(home & (share < 0.2)), np.flatnonzero(~home)


def _share(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def spec(name: str, side: int) -> InputSpec:
    """Return how an image of a data set becomes a tensor; grey ones as in the X-ray model that ships."""
    grey = SOURCES[name].channels == 1
    return InputSpec(
        channels=SOURCES[name].channels, height=side, width=side, intensity="percentile" if grey else "full_range",
        low=0.5, high=99.5, mean=0.5, std=0.25, modalities=(), body_parts=(), views=(), age_years=None, min_side=16,
    )  # fmt: skip


def load(name: str, data: Path, cache: Path, side: int, most: int) -> Domains:
    """Read a data set, by the code that the service uses, or its copy in ``cache``; at most ``most`` of a class and domain."""
    source = SOURCES[name]
    kept = cache / f"{name}-{side}-{most}"
    if not (kept / "rows.json").exists():
        rows = _rows(name, data / name / "manifest.csv", most)
        images = np.empty((len(rows), source.channels, side, side), dtype=np.uint8)
        for index, row in enumerate(rows):
            image = read_image((data / name / row["image"]).read_bytes(), target=(side, side))
            tensor = preprocess(image, spec(name, side))[0]
            images[index] = np.rint((tensor * 0.25 + 0.5).clip(0, 1) * 255).astype(np.uint8)
        kept.mkdir(parents=True, exist_ok=True)
        np.save(kept / "images.npy", images)
        (kept / "rows.json").write_text(json.dumps(rows))
    rows = json.loads((kept / "rows.json").read_text())
    patients = [row.get("patient") or row["image"] for row in rows]
    labels = np.array([source.classes.index(row[source.column]) for row in rows])
    return Domains(name, np.load(kept / "images.npy"), labels, np.array([row["domain"] for row in rows]), np.array(patients))


def _rows(name: str, manifest: Path, most: int) -> list[dict[str, str]]:
    """Return the rows of known classes, in an order that no label decides."""
    column = SOURCES[name].column
    with manifest.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row[column] in SOURCES[name].classes]
    rows.sort(key=lambda row: _share(row["image"]))
    kept: list[dict[str, str]] = []
    count: Counter[tuple[str, str]] = Counter()
    for row in rows:
        count[row["domain"], row[column]] += 1
        if count[row["domain"], row[column]] <= most:
            kept.append(row)
    return kept


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Return float32 tensors as the preprocessing gives them: grey values or colours in [0, 1], less 0.5, over 0.25."""
    return (torch.from_numpy(images).float() / 255 - 0.5) / 0.25


def change(images: Tensor, name: str, strong: bool, generator: Generator) -> Tensor:
    """Change preprocessed images at random: crop and mirror; if ``strong``, also as a practitioner would for this kind.

    PACS: brightness, contrast and saturation by up to 40%, one in ten grey. Stains: jitter in haematoxylin, eosin and DAB.
    X-rays: what the shipped model is trained with (gamma, contrast, brightness, sharpness, noise, small moves) in its place.

    References
    ----------
    Tellez et al., "Quantifying the effects of data augmentation and stain color normalization in convolutional neural
    networks for computational pathology", Medical Image Analysis 2019, arXiv:1902.06543, section 3.3 (HED-strong: factors of
    0.8 to 1.2, offsets of -0.2 to 0.2, of absorbed light as a natural logarithm).
    """
    if name == "cxr" and strong:
        return augment(images, spec(name, images.shape[-1]), True, generator)
    count = len(images)
    scale = torch.empty(count).uniform_(0.7, 1.0, generator=generator)  # side of the crop, as a share
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    shift = torch.empty(count, 2).uniform_(-1, 1, generator=generator) * (1 - scale)[:, None]
    zero = torch.zeros(count)
    rows = torch.stack([scale * mirror, zero, shift[:, 0], zero, scale, shift[:, 1]], dim=1).view(count, 2, 3)
    places = functional.affine_grid(rows, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, places, mode="bilinear", padding_mode="border", align_corners=False)
    if not strong:
        return moved
    colours = (moved * 0.25 + 0.5).clamp(0, 1)
    colours = _stain(colours, generator) if name == "wbc" else _colour(colours, generator)
    return (colours.clamp(0, 1) - 0.5) / 0.25


def _factor(count: int, width: float, generator: Generator) -> Tensor:
    return torch.empty(count, 1, 1, 1).uniform_(1 - width, 1 + width, generator=generator)


def _colour(colours: Tensor, generator: Generator) -> Tensor:
    count = len(colours)
    colours = colours * _factor(count, 0.4, generator)
    mean = colours.mean(dim=(1, 2, 3), keepdim=True)
    colours = (colours - mean) * _factor(count, 0.4, generator) + mean
    grey = colours.mean(dim=1, keepdim=True)
    saturation = _factor(count, 0.4, generator)
    saturation[torch.rand(count, generator=generator) < 0.1] = 0
    return (colours - grey) * saturation + grey


def _stain(colours: Tensor, generator: Generator) -> Tensor:
    count = len(colours)
    to_stain = torch.tensor(hed_from_rgb, dtype=torch.float32)
    to_colour = torch.tensor(rgb_from_hed, dtype=torch.float32)
    density = -torch.log(colours.clamp(min=1e-3))
    stains = torch.einsum("nchw,cs->nshw", density, to_stain)
    factor = torch.empty(count, 3, 1, 1).uniform_(0.8, 1.2, generator=generator)
    offset = torch.empty(count, 3, 1, 1).uniform_(-0.2, 0.2, generator=generator)
    return torch.exp(-torch.einsum("nshw,sc->nchw", stains * factor + offset, to_colour))


def batches(data: Domains, indices: NDArray[np.int64], size: int, steps: int, seed: int) -> NDArray[np.int64]:
    """Return the images of every step, shape (steps, size): each group as often as every other, reshuffled when used up."""
    key = data.domains if SOURCES[data.name].balance == "domain" else data.labels
    groups = [indices[key[indices] == value] for value in np.unique(key[indices])]
    random = np.random.default_rng(seed)
    each = math.ceil(steps * size / len(groups))
    drawn = [np.concatenate([random.permutation(group) for _ in range(math.ceil(each / len(group)))])[:each] for group in groups]
    order = np.stack(drawn, axis=1).ravel()[: steps * size].reshape(steps, size)
    return random.permuted(order, axis=1)
