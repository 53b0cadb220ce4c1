"""What decides a segmenter's training run: one frozen document, written beside the run as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.card import Fraction, InputSpec
from training.config import RunOf, config_of, read_run_of
from training.fields import Count, Positive, Word

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SegmenterConfig(BaseModel):
    """Everything that decides the weights of a segmenter, except the images and their annotations.

    Attributes
    ----------
    label : str
        What an object is, such as "nucleus".
    domains : tuple of str
        Domains trained on.
    input : InputSpec
        How a tile becomes a tensor; its height and width are those of the served tiles.
    overlap : int, pixels
        Of neighbouring served tiles.
    fractions : (float, float, float)
        Share of the groups of images in the splits train, calibration and test.
    labels : str
        What pixels are compared with. "points": discs around the points, and what was drawn; without drawn background nothing
        says what is none. "voronoi": points, and the lines halfway between them as background (PseudoEdgeNet). "cluster":
        half that, half clusters by colour and nearness (Qu et al.). "masks": full masks, the upper bound.
    edges : str
        "none"; "pseudo_edge": boundaries are compared with those that a shallow network finds in the image;
        "pseudo_edge_attention": of which an attention chooses. See :class:`models.networks.pseudo_edge.PseudoEdge`.
    crf : bool
        Whether near pixels of like colour are asked to be of one kind: :func:`training.losses.pairwise_loss`.
    normalization : str
        "batch", or "batch_instance": see :class:`models.networks.normalization.BatchInstanceNorm2d`.
    stain : bool
        Whether stains are jittered: :func:`training.augmentation.stain_jitter`.
    loss_prediction : str
        "joint": trained with the segmenter, on 1 - Dice of each crop against what it is trained with. "none": no module; the
        mean entropy of a tile's pixels is served in its place.
    epochs, steps_per_epoch, batch_size : int
        An epoch is a fixed number of batches of crops, balanced by domain. A checkpoint is written after each.
    crop : int, pixels
        Side of the crops.
    learning_rate, weight_decay : float
        AdamW; a linear warm-up over the first twentieth of the steps, then a cosine to zero.
    widths, blocks : tuple of int, int
        See :class:`models.networks.segmenter.Segmenter`.
    edge_width, attention_widths : int, tuple of int
        See :class:`models.networks.pseudo_edge.PseudoEdge`.
    point_radius : float, pixels
        Of the discs of "points".
    boundary_weight : float
        Of all Voronoi lines together; all points have 1.
    edge_weight, crf_weight : float
        Of these losses.
    crf_radius, crf_place_sigma, crf_colour_sigma : int, float, float
        Of the pairwise loss: pixels at half the resolution, and RGB in [0, 1].
    loss_weight, ranking_margin, loss_gradient_until : float
        As of a classifier, see :class:`training.config.RunConfig`.
    labels_sha256 : str or None
        Digest of the label package among the data; None without one.
    label_domains : tuple of str
        Domains whose images are the label package's alone, whatever a manifest beside it holds of them.
    precision : str
        "32-true", or "bf16-mixed" (twice as fast on processors and cards that know it).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    verb: Literal["train segmenter"] = "train segmenter"
    seed: Annotated[int, Field(ge=0)]
    label: Word
    domains: Annotated[tuple[Word, ...], Field(min_length=1)]
    input: InputSpec
    overlap: Annotated[int, Field(ge=0)] = 48
    fractions: tuple[Fraction, Fraction, Fraction] = (0.6, 0.2, 0.2)
    labels: Literal["points", "voronoi", "cluster", "masks"] = "voronoi"
    edges: Literal["none", "pseudo_edge", "pseudo_edge_attention"] = "none"
    crf: bool = False
    normalization: Literal["batch", "batch_instance"] = "batch"
    stain: bool = False
    loss_prediction: Literal["joint", "none"] = "joint"
    epochs: Count = 20
    steps_per_epoch: Count = 30
    batch_size: Annotated[int, Field(ge=2)] = 8
    crop: Annotated[int, Field(ge=16)] = 128
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 1e-2
    widths: Annotated[tuple[Count, ...], Field(min_length=1)] = (16, 32, 64, 128)
    blocks: Count = 2
    edge_width: Count = 64
    attention_widths: Annotated[tuple[Count, ...], Field(min_length=1)] = (16, 32, 64)
    point_radius: NotNegative = 2.0
    boundary_weight: NotNegative = 0.1
    edge_weight: NotNegative = 1.0
    crf_weight: NotNegative = 1.0
    crf_radius: Count = 3
    crf_place_sigma: Positive = 3.0
    crf_colour_sigma: Positive = 0.1
    loss_weight: NotNegative = 0.1
    ranking_margin: Positive = 1.0
    loss_gradient_until: Fraction = 0.6
    labels_sha256: str | None = None
    label_domains: tuple[Word, ...] = ()
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"

    @model_validator(mode="after")
    def _consistent(self) -> SegmenterConfig:
        if len(set(self.domains)) != len(self.domains):
            raise ValueError("domains holds one value twice")
        if self.input.channels != 3 or self.input.intensity != "full_range":
            raise ValueError("a segmenter takes colour, of the full range: crops and tiles have no percentiles of their own")
        if 2 * self.overlap > min(self.input.height, self.input.width):
            raise ValueError("overlap must be half a tile at most")
        if abs(sum(self.fractions) - 1) > 1e-9 or min(self.fractions) <= 0:
            raise ValueError("fractions must be above 0 and sum to 1")
        return self

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.epochs * self.steps_per_epoch


SegmenterRun = RunOf[SegmenterConfig]


def make_segmenter_config(**values: Any) -> SegmenterConfig:
    """Return a segmenter's config; see :func:`training.config.config_of`."""
    return config_of(SegmenterConfig, values)


def read_segmenter_run(folder: Path) -> SegmenterRun:
    """Read ``run.json`` of a segmenter's run; see :func:`training.config.read_run_of`."""
    return read_run_of(folder, SegmenterRun)
