"""From images to batches of crops, with what each pixel is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.card import InputSpec
from models.preprocess import standardise
from training.data import BalancedBatches
from training.segmenter_config import SegmenterConfig
from training.segmenter_data import Tissue
from training.weak_labels import cluster_labels, point_labels, voronoi_labels

Labels = NDArray[np.int8]
Drawn = tuple[int, tuple[int, ...]]


def supervision(tissue: Tissue, config: SegmenterConfig) -> Labels:
    """Return what the foreground is compared with.

    Returns
    -------
    ndarray, int8, shape (K, rows, columns)
        1 foreground, 0 background, IGNORE elsewhere. Two for "cluster" (Voronoi, clusters), else one.
    """
    rows, columns = tissue.colours.shape[:2]
    if config.labels == "points":
        return point_labels(tissue.annotation, rows, columns, config.point_radius)[None]
    if config.labels == "masks":
        if tissue.foreground is None:
            raise ValueError("masks were asked for, and there are none")
        return tissue.foreground.astype(np.int8)[None]
    voronoi = voronoi_labels(tissue.annotation, rows, columns)
    if config.labels == "voronoi":
        return voronoi[None]
    return np.stack([voronoi, cluster_labels(tissue.colours, tissue.annotation, config.seed)])


def tensors(colours: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.float32]:
    """Return colours (..., rows, columns, 3) as the network takes them, float32, shape (..., 3, rows, columns)."""
    planes = np.moveaxis(standardise(colours, 0.0, 255.0, spec), -1, -3)
    return np.ascontiguousarray(planes, np.float32)


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Batches of crops: place, mirroring and quarter turns follow from the numbers a crop is drawn with.

    Parameters
    ----------
    images : sequence of ndarray, uint8, shape (rows, columns, 3)
    labels : sequence of ndarray, int8, shape (K, rows, columns)
        Of :func:`supervision`.
    config : SegmenterConfig
    """

    def __init__(self, images: Sequence[NDArray[np.uint8]], labels: Sequence[Labels], config: SegmenterConfig) -> None:
        self.images = list(images)
        self.labels = list(labels)
        self.config = config

    def __getitem__(self, batch: Sequence[Drawn]) -> tuple[Tensor, Tensor]:
        """Return images (N, 3, crop, crop) and labels (N, K, crop, crop) of (image, numbers of the crop), N of them."""
        pairs = [self._crop(index, numbers) for index, numbers in batch]
        colours, labels = (np.stack(part) for part in zip(*pairs, strict=True))
        return torch.from_numpy(tensors(colours, self.config.input)), torch.from_numpy(labels)

    def _crop(self, index: int, numbers: tuple[int, ...]) -> tuple[NDArray[np.uint8], Labels]:
        random = np.random.default_rng(numbers)
        side = self.config.crop
        image, labels = self.images[index], self.labels[index]
        top = random.integers(0, image.shape[0] - side + 1)
        left = random.integers(0, image.shape[1] - side + 1)
        turns, mirrored = int(random.integers(4)), bool(random.integers(2))
        colours = np.rot90(image[top : top + side, left : left + side], turns, axes=(0, 1))
        known = np.rot90(labels[:, top : top + side, left : left + side], turns, axes=(1, 2))
        if mirrored:  # tissue has no left and right
            colours, known = colours[:, ::-1], known[:, :, ::-1]
        return np.ascontiguousarray(colours), np.ascontiguousarray(known)


class CropBatches(BalancedBatches):
    """Which image each crop of a batch is cut from, domains evenly, and the numbers that it is drawn with."""

    def __iter__(self) -> Iterator[list[Drawn]]:  # type: ignore[override]
        for number, batch in enumerate(super().__iter__()):
            yield [(index, (self.seed, self.epoch, number, place)) for place, index in enumerate(batch)]


def crop_loader(images: Sequence[Tissue], config: SegmenterConfig, workers: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return the batches of a run.

    Parameters
    ----------
    images : sequence of Tissue
        The training split.
    config : SegmenterConfig
    workers : int
        Processes that cut crops beside the training; the batches are the same with any number.
    """
    crops = Crops([each.colours for each in images], [supervision(each, config) for each in images], config)
    batches = CropBatches([(each.domain, 0) for each in images], config.steps_per_epoch, config.batch_size, config.seed)
    # As the sampler, not the batch sampler: Lightning tells only the former which epoch it is.
    return DataLoader(crops, sampler=batches, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
