"""A finished segmenter's run becomes ``model.onnx``, with the domain distance fitted on the tiles of its training images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.card import SEGMENTER_OUTPUTS
from models.errors import Refusal
from models.networks.domain_distance import DomainDistance, stage_statistics
from models.networks.loss_prediction import LossPrediction
from models.networks.normalization import fold_normalization
from models.networks.segmenter import Segmenter
from models.tiles import Tiling
from training.export import GRAPH, fit_distance, write_graph
from training.segmenter import load_segmenter
from training.segmenter_config import SegmenterConfig, read_segmenter_run
from training.segmenter_crops import tensors
from training.segmenter_data import Tissue, Tissues, read_tissues
from training.sources import Sources


class ServedSegmenter(nn.Module):
    """Everything that is served of a tile, in one pass: see :data:`models.card.SEGMENTER_OUTPUTS`.

    Without a loss prediction module the loss score is the mean entropy of the tile's pixels.
    """

    def __init__(self, segmenter: Segmenter, loss_prediction: LossPrediction | None, distance: DomainDistance) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.loss_prediction = loss_prediction
        self.distance = distance

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return foreground logits (N, 1, H, W), features (N, D), loss score (N,) and domain distance (N,)."""
        maps = self.segmenter.stage_maps(image)
        logits = self.segmenter.decode(maps, (image.shape[2], image.shape[3]))
        if self.loss_prediction is None:
            score = (functional.softplus(logits) - logits * torch.sigmoid(logits)).mean(dim=(1, 2, 3))
        else:
            score = self.loss_prediction(maps)
        return logits, self.segmenter.pool(maps), score, self.distance(stage_statistics(maps))


def cut(tissue: Tissue, config: SegmenterConfig) -> tuple[Tiling, NDArray[np.float32]]:
    """Cut an image as it will be served.

    Returns
    -------
    tiling : Tiling
    tiles : ndarray, float32, shape (T, 3, H, W)
    """
    rows, columns = tissue.colours.shape[:2]
    tiling = Tiling(rows, columns, config.input.height, config.input.width, config.overlap)
    return tiling, tensors(tiling.cut(tissue.colours, tiling.corners()), config.input)


@torch.no_grad()
def build(folder: Path, images: Sequence[Tissue]) -> ServedSegmenter:
    """Return the module to export.

    Parameters
    ----------
    folder : Path
        A finished run.
    images : sequence of Tissue
        Its training split, on which the domain distance is fitted, without augmentation.
    """
    trained = load_segmenter(folder)
    found, domains = [], []
    for each in images:
        tiles = cut(each, trained.config)[1]
        for start in range(0, len(tiles), 8):
            found.append(stage_statistics(trained.segmenter.stage_maps(torch.from_numpy(tiles[start : start + 8]))))
        domains += [each.domain] * len(tiles)
    served = None if trained.config.loss_prediction == "none" else trained.loss_prediction
    distance = fit_distance(torch.cat(found).numpy(), domains)
    return ServedSegmenter(fold_normalization(trained.segmenter), served, distance).eval()


def load_run_tissues(folder: Path, data: Path | Sources) -> Tissues:
    """Return the images of a run, after checking that they are those it was trained on.

    Raises
    ------
    Refusal
        ``data_invalid`` if they are not.
    """
    run = read_segmenter_run(folder)
    images = read_tissues(data, run.config)
    if images.sha256 != run.data_sha256:
        raise Refusal("data_invalid", "These are not the rows and images that the run was trained on.")
    return images


def export_segmenter(folder: Path, data: Path | Sources) -> int:
    """Run ``overread export`` for a segmenter; returns 0."""
    config = read_segmenter_run(folder).config
    images = load_run_tissues(folder, data)
    some = np.concatenate([cut(each, config)[1] for each in images.where("calibration", config)])[:16]
    served = build(folder, images.where("train", config))
    size, difference = write_graph(folder, served, config, some, SEGMENTER_OUTPUTS)
    print(f"{folder / GRAPH}: {size / 1e6:.2f} MB, differs from torch by {difference:.1e} at most")
    return 0
