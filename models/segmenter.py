"""A segmenter's package on disk becomes a :class:`SegmenterPredictor`; an image of any size becomes objects and doubts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import uncertainty
from models.card import SEGMENTER_OUTPUTS, Calibration, SegmenterCard, read_package
from models.errors import Refusal
from models.image import Box, Image
from models.objects import Segmentation, TileDoubt
from models.predictor import Graph
from models.preprocess import in_channels, intensity_range, standardise
from models.quiet import silence_readers
from models.separation import detect
from models.tiles import Tiling

BATCH = 8
"""Tiles in one call of the graph."""


class SegmenterPredictor:
    """A verified model package of a segmenter, ready to predict. Thread-safe: calls may run side by side.

    Attributes
    ----------
    card : SegmenterCard
    sha256 : str
        Identity of the package.
    provider : str
        The onnxruntime execution provider that runs.
    """

    def __init__(self, card: SegmenterCard, graph: Graph, sha256: str) -> None:
        self.card = card
        self.graph = graph
        self.sha256 = sha256
        self.provider = graph.provider

    @classmethod
    def load(cls, folder: Path, threads: int = 1) -> SegmenterPredictor:
        """Load the package in ``folder``.

        Raises
        ------
        Refusal
            ``package_invalid`` if anything in it is not exactly as released, or it holds no segmenter.
        """
        card, graph, sha256 = read_package(folder)
        if not isinstance(card, SegmenterCard):
            raise Refusal("package_invalid", "The model package does not hold a segmenter.")
        return cls(card, Graph(graph, threads, SEGMENTER_OUTPUTS), sha256)

    def predict(self, image: Image, region: Box | None = None) -> tuple[Segmentation, NDArray[np.float32]]:
        """Find the objects of an image, or of a region of it as if it were the image.

        Parameters
        ----------
        image : Image
            Decoded at full resolution, and accepted by :func:`models.preprocess.check_accepted` before.
        region : (int, int, int, int) or None
            (x, y, width, height) in original pixels; None for the whole image.

        Returns
        -------
        segmentation : Segmentation
        foreground : ndarray, float32, shape (rows, columns)
            Probabilities, of the image or region.

        Raises
        ------
        Refusal
            ``bad_request`` if the region does not lie in the image, ``image_too_large`` or ``too_small`` if it (or the image) has
            more pixels (a side shorter than a tile's counts as long) or shorter sides than the card allows,
            ``model_output_invalid`` if any value is not finite.
        """
        x, y, width, height = self._checked(image, region)
        spec, calibration = self.card.input, self.card.calibration
        shown = in_channels(display_values(image, (x, y, width, height)), spec.channels)
        low, high = intensity_range(shown, image.rendering, spec)
        tiling = Tiling(height, width, spec.height, spec.width, self.card.output.overlap)
        corners = tiling.corners()
        runs = []
        for first in range(0, len(corners), BATCH):
            tiles = tiling.cut(shown, corners[first : first + BATCH])
            planes = np.ascontiguousarray(tiles[:, None] if tiles.ndim == 3 else np.moveaxis(tiles, 3, 1))
            tensor = standardise(planes.astype(np.float32), float(low), float(high), spec)
            runs.append(self.graph.values(tensor))
        maps, features, scores, distances = (np.concatenate(part) for part in zip(*runs, strict=True))
        for name, values in zip(SEGMENTER_OUTPUTS, (maps, features, scores, distances), strict=True):
            if not np.isfinite(values).all():
                raise Refusal("model_output_invalid", f"The model's output {name} holds a value that is not finite.")
        logits = tiling.blend(maps[:, 0]) / np.float32(calibration.temperature)
        foreground, entropy = _probabilities(logits)
        labels, found = detect(foreground, self.card.output, (x, y))
        doubts = _doubts(tiling, (x, y), scores, distances, calibration)
        loss_score, distance = scores.mean(dtype=np.float64), distances.mean(dtype=np.float64)
        segmentation = Segmentation(
            objects=found,
            label_image=labels,
            tiles=doubts,
            predicted_loss=float(np.mean([tile.predicted_loss for tile in doubts])),
            loss_score=float(loss_score),
            loss_percentile=uncertainty.image_percentile(np.array([tile.loss_percentile for tile in doubts])),
            domain_distance=float(distance),
            domain_percentile=uncertainty.image_percentile(np.array([tile.domain_percentile for tile in doubts])),
            entropy=entropy,
            features=features.mean(axis=0, dtype=np.float64).astype(np.float32),
            origin=(x, y),
        )
        return segmentation, foreground

    def _checked(self, image: Image, region: Box | None) -> Box:
        """Return the region, or the whole image, where it may be segmented."""
        x, y, width, height = region or (0, 0, image.columns, image.rows)
        if min(x, y) < 0 or min(width, height) < 1 or x + width > image.columns or y + height > image.rows:
            raise Refusal("bad_request", f"The region does not lie in the image of {image.columns} x {image.rows} pixels.")
        # What is narrower than a tile costs whole tiles
        if max(width, self.card.input.width) * max(height, self.card.input.height) > self.card.output.max_pixels:
            raise Refusal(
                "image_too_large",
                f"{width} x {height} pixels are more than the {self.card.output.max_pixels} that are segmented at once, "
                f"where no side counts as less than {self.card.input.height} and {self.card.input.width}; ask for a region.",
            )
        if min(width, height) < self.card.input.min_side:
            raise Refusal("too_small", f"{width} x {height} pixels; the model takes {self.card.input.min_side} a side and more.")
        return x, y, width, height


def display_values(image: Image, region: Box) -> NDArray[Any]:
    """Return the display values of a region, shape (height, width) or (height, width, 3), through the image's rendering.

    Parameters
    ----------
    image : Image
        Decoded at full resolution. The reader has laid transparent pictures on black, turned colour without colour into grey,
        and kept 16-bit grey as it is.
    region : (int, int, int, int)
        (x, y, width, height) in original pixels, inside the image.

    Raises
    ------
    ValueError
        If the image was decoded at a reduced resolution, or is another part of a slide.
    """
    left, top, columns, rows = image.region or (0, 0, image.columns, image.rows)
    x, y, width, height = region[0] - left, region[1] - top, *region[2:]
    if image.pixels.shape[:2] != (rows, columns) or min(x, y) < 0 or x + width > columns or y + height > rows:
        raise ValueError("the image was not decoded there, or at a reduced resolution")
    silence_readers()
    stored = image.pixels[y : y + height, x : x + width]
    how = image.rendering
    # Without a table and a chain, stored values are display values, and stay in the smaller type
    return stored if how.table is None and how.chain is None else how.look_up(stored)


def doubtful_regions(segmentation: Segmentation, count: int, side: int) -> tuple[TileDoubt, ...]:
    """Choose what an expert should annotate rather than the whole image.

    Parameters
    ----------
    segmentation : Segmentation
    count : int
        Regions at most; there are fewer where no other fits.
    side : int, pixels
        Of the square regions; smaller only where the image is.

    Returns
    -------
    tuple of TileDoubt
        The regions in the middle of the tiles most in doubt, with these tiles' doubts: inside the image, not overlapping, the
        most doubtful (greatest predicted loss, then farthest from the training data) first.
    """
    left, top = segmentation.origin
    rows, columns = segmentation.label_image.shape
    width, height = min(side, columns), min(side, rows)
    chosen: list[TileDoubt] = []
    for tile in sorted(segmentation.tiles, key=lambda tile: (-tile.predicted_loss, -tile.domain_distance)):
        x = int(np.clip(tile.x + (tile.width - width) // 2, left, left + columns - width))
        y = int(np.clip(tile.y + (tile.height - height) // 2, top, top + rows - height))
        if len(chosen) < count and all(abs(x - other.x) >= width or abs(y - other.y) >= height for other in chosen):
            chosen.append(replace(tile, x=x, y=y, width=width, height=height))
    return tuple(chosen)


def _doubts(
    tiling: Tiling,
    origin: tuple[int, int],
    scores: NDArray[np.float32],
    distances: NDArray[np.float32],
    calibration: Calibration,
) -> tuple[TileDoubt, ...]:
    """Return the doubt of every tile, by the calibration; a tile is named by its part inside the image."""
    columns = zip(
        tiling.boxes(),
        uncertainty.predicted_loss(scores, calibration).tolist(),
        uncertainty.percentile(scores, calibration.loss_quantiles).tolist(),
        distances.tolist(),
        uncertainty.percentile(distances, calibration.domain_quantiles).tolist(),
        strict=True,
    )
    return tuple(TileDoubt(x + origin[0], y + origin[1], width, height, *doubt) for (x, y, width, height), *doubt in columns)


def _probabilities(logits: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """Return the foreground probabilities of logits, and the mean over the pixels of their entropy, in nats."""
    size = np.abs(logits)
    small = np.exp(-size)
    rare = small / (1 + small)  # the probability of the less likely: no exponent overflows
    # -p log p - (1 - p) log(1 - p), in terms of the logit: finite however large it is
    entropy = np.mean(np.log(1 + small) + size * rare, dtype=np.float64)
    return np.where(logits < 0, rare, 1 - rare), float(entropy)
