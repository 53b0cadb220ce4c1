"""Features that need no training, of `cifar10` and `pacs`: histograms of gradients and mean colours, kept beside the results."""

from __future__ import annotations

import csv
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.feature import hog
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

SIDE, BLOCK = 32, 8


def describe(picture: Image.Image) -> NDArray[np.float32]:
    """Return the features (336,) of a picture at 32 x 32: HOG, and the mean colour of 4 x 4 blocks."""
    pixels = np.asarray(picture.convert("RGB").resize((SIDE, SIDE)), np.float32) / 255
    gradients = hog(pixels, 8, (BLOCK, BLOCK), (2, 2), channel_axis=2)
    count = SIDE // BLOCK
    colours = pixels.reshape(count, BLOCK, count, BLOCK, 3).mean(axis=(1, 3))
    return np.concatenate([gradients, colours.ravel()]).astype(np.float32)


def load(
    name: str, data: Path, cache: Path, most: int
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.str_], tuple[str, ...]]:
    """Return features (N, 336), classes (N,), domains (N,) and the classes' names of ``most`` images, in a random order."""
    file = cache / f"simple-{name}-{most}.npz"
    if not file.exists():
        features, labels, domains = (_cifar10 if name == "cifar10" else _pacs)(data / name, most)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, features=np.stack(features), labels=np.array(labels), domains=np.array(domains))
    kept = np.load(file)
    names, classes = np.unique(kept["labels"], return_inverse=True)
    return kept["features"], classes.astype(np.int64), kept["domains"], tuple(map(str, names))


def _cifar10(folder: Path, most: int) -> tuple[list[NDArray[np.float32]], list[str], list[str]]:
    kept = np.load(folder / "cifar10_train_jpeg.npz")
    jpeg, offsets = kept["jpeg"], kept["offsets"]
    chosen = np.random.default_rng(0).permutation(len(offsets) - 1)[:most]
    pictures = (Image.open(BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes())) for i in chosen)
    return [describe(picture) for picture in pictures], [str(kept["labels"][i]) for i in chosen], ["all"] * len(chosen)


def _pacs(folder: Path, most: int) -> tuple[list[NDArray[np.float32]], list[str], list[str]]:
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:most]]
    features = [describe(Image.open(folder / row["image"])) for row in rows]
    return features, [row["label"] for row in rows], [row["domain"] for row in rows]


def head() -> Pipeline:
    """Return the model that is trained on them."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=100))
