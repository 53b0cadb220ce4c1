"""The contract between training and serving: what goes in (:class:`InputSpec`) and what shipped (:class:`ModelCard`).

A model package is a folder of two files, ``model.onnx`` and ``card.json``; reports may lie beside them. The card holds the digest
of the graph and its own, and its bytes must be what :func:`card_bytes` writes, so that any changed byte of either is seen.
The package's identity is the SHA-256 of ``card.json``, which covers both.
"""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from models.errors import Refusal

ZOO = Path(__file__).parent / "zoo"
"""The packages that are shipped."""
DEFAULT_MODEL = ZOO / "cxr-pneumonia"
SCHEMA_VERSION = 1
GRAPH_INPUT = "image"
GRAPH_OUTPUTS = ("logits", "features", "loss_score", "domain_distance", "heatmap")
"""Names in a classifier's graph: image (N, C, H, W) -> logits (N, K), features (N, D), loss_score (N,), domain_distance (N,),
heatmap (N, K, h, w); all float32, N dynamic."""
SEGMENTER_OUTPUTS = ("foreground_logits", "features", "loss_score", "domain_distance")
"""The same of a segmenter, a tile each: foreground_logits (N, 1, H, W) in the place of logits, and no heatmap."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Percentile = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Knots = Annotated[tuple[tuple[Finite, Annotated[float, Field(ge=0, allow_inf_nan=False)]], ...], Field(min_length=2)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputSpec(_Strict):
    """What the model takes, and how an image becomes its tensor. Written before training and used on both sides.

    Attributes
    ----------
    channels : {1, 3}
        1 for grey images, 3 for colour (RGB).
    height, width : int, pixels
        Size of the tensor. A classifier's image is squashed to it (its aspect ratio is not kept), with an antialiasing
        filter; a segmenter's is cut into tiles of it.
    intensity : "percentile" or "full_range"
        "percentile": the ``low`` and ``high`` percentiles of the resized image become 0 and 1, values beyond are
        clipped. "full_range": 8-bit colour divided by 255.
    mean, std : float
        Applied after that: (x - mean) / std.
    modalities, body_parts, views : tuple of str
        DICOM code strings accepted (Modality, BodyPartExamined, ViewPosition). A *stated* value outside is refused; an
        absent one is a reason for review, except for an empty tuple, which accepts anything. Pictures without a header
        (PNG, JPEG) state nothing.
    age_years : (float, float) or None
        Accepted ages, inclusive.
    min_side : int, pixels
        Smallest height and width accepted.
    """

    channels: Literal[1, 3]
    height: Annotated[int, Field(ge=16, le=4096)]
    width: Annotated[int, Field(ge=16, le=4096)]
    intensity: Literal["percentile", "full_range"]
    low: Percentile
    high: Percentile
    mean: Finite
    std: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    modalities: tuple[str, ...]
    body_parts: tuple[str, ...]
    views: tuple[str, ...]
    age_years: tuple[Finite, Finite] | None
    min_side: Annotated[int, Field(ge=1)]


class Finding(_Strict):
    """A class that is reported as a finding, with the probability from which on it is called positive."""

    label: str
    operating_point: Fraction
    rule: str


class OutputSpec(_Strict):
    """What the logits mean: softmax over ``classes`` (K of them, in order); ``findings`` are the reported ones."""

    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    findings: Annotated[tuple[Finding, ...], Field(min_length=1)]


class ObjectSpec(_Strict):
    """What a segmenter's tiles mean, and how the image's foreground becomes objects.

    The image keeps its size: it is cut into overlapping tiles of the input's height and width, and their logits are blended.

    Attributes
    ----------
    label, threshold : str, float
        What an object is, such as "nucleus", and the foreground probability from which on a pixel belongs to one.
    separation : "distance_watershed"
        Touching objects: watershed of the smoothed distance to the background, from its peaks.
    smoothing : float, pixels
        Standard deviation of the Gaussian over the distance.
    peak_distance, overlap : int, pixels
        Least distance of two peaks, and overlap of neighbouring tiles.
    min_area, max_pixels : int, pixels
        Smaller objects are dropped; larger images or regions are refused.
    rule : str
        On what, and how, these were chosen.
    """

    label: Annotated[str, Field(min_length=1)]
    threshold: Annotated[Fraction, Field(gt=0, lt=1)]
    separation: Literal["distance_watershed"]
    smoothing: Annotated[Finite, Field(ge=0)]
    peak_distance: Annotated[int, Field(ge=1)]
    min_area: Annotated[int, Field(ge=1)]
    overlap: Annotated[int, Field(ge=0)]
    max_pixels: Annotated[int, Field(ge=1)]
    rule: str


class Calibration(_Strict):
    """From raw scores to units, fitted on held-out patients with the exported graph.

    Attributes
    ----------
    temperature : float
        Logits are divided by it before the softmax.
    loss_knots : tuple of (score, loss)
        Monotone piecewise-linear map from the raw loss score to the expected loss in nats, constant beyond its ends.
    loss_quantiles, domain_quantiles : tuple of float
        101 quantiles (0%, 1%, ..., 100%) of the raw loss score and of the domain distance in the calibration set.
    n, method : int, str
        Images in the calibration set, and on what the loss was fitted.
    unseen_loss_knots : tuple of (entropy, loss), or None
        The same from the softmax's entropy for images of unseen domains, by the errors of siblings there; None without any.
    """

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    loss_knots: Knots
    loss_quantiles: Annotated[tuple[Finite, ...], Field(min_length=101, max_length=101)]
    domain_quantiles: Annotated[tuple[Finite, ...], Field(min_length=101, max_length=101)]
    n: Annotated[int, Field(ge=1)]
    method: str
    # Absent rather than null: the bytes of cards released before must stay what they are
    unseen_loss_knots: Annotated[Knots | None, Field(exclude_if=lambda knots: knots is None)] = None

    @model_validator(mode="after")
    def _in_order(self) -> Calibration:
        for knots in (self.loss_knots, self.unseen_loss_knots or ()):
            if any(a[0] >= b[0] or a[1] > b[1] for a, b in pairwise(knots)):
                raise ValueError("loss_knots and unseen_loss_knots must increase in score and not decrease in loss")
        if any(a > b for table in (self.loss_quantiles, self.domain_quantiles) for a, b in pairwise(table)):
            raise ValueError("quantiles must not decrease")
        return self


class Triage(_Strict):
    """Defaults for the verdict; a site may set its own.

    ``review`` at or above either percentile; ``refuse`` above ``refuse_domain_distance`` (in the graph's unit).
    """

    review_loss_percentile: Percentile
    review_domain_percentile: Percentile
    refuse_domain_distance: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class IntendedUse(_Strict):
    """For whom and for what; shown in every answer."""

    statement: str
    population: str
    not_seen: str
    not_for: str


class Source(_Strict):
    """A data set the model was trained on."""

    domain: str
    images: int
    patients: int
    licence: str
    credit: str
    link: str


class Figure(_Strict):
    """One measured figure of the shipped file, or of the same recipe with a domain held out.

    ``held_out``: "patients" (domain seen, patients not) or "domain" (unseen). ``low``, ``high``: 95% interval (bootstrap over
    patients). ``value`` is None if not defined; ``note`` says why. All ``n`` images count, refused ones as if they were not.
    """

    domain: str
    held_out: Literal["patients", "domain"]
    subgroup: str
    metric: str
    value: Finite | None
    low: Finite | None
    high: Finite | None
    n: int
    note: str


class Training(_Strict):
    """Where the weights come from."""

    command: str
    seed: int
    data_sha256: str
    sources: tuple[Source, ...]
    config: dict[str, Any]
    versions: dict[str, str]


class _Card(_Strict):
    """What all models' cards say."""

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    version: Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$")]
    created: str
    model_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    card_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    input: InputSpec
    calibration: Calibration
    triage: Triage
    intended_use: IntendedUse
    training: Training
    evaluation: Annotated[tuple[Figure, ...], Field(min_length=1)]


class ModelCard(_Card):
    """The one document about a classifier, written once by ``overread release``."""

    task: Literal["classification"]
    output: OutputSpec


class SegmenterCard(_Card):
    """The one document about a segmenter. Its losses are 1 - Dice of a tile, and its calibration set consists of tiles."""

    task: Literal["segmentation"]
    output: ObjectSpec

    @model_validator(mode="after")
    def _tiles_advance(self) -> SegmenterCard:
        if 2 * self.output.overlap > min(self.input.height, self.input.width):
            raise ValueError("overlap must be half a tile at most")
        return self


AnyCard = Annotated[ModelCard | SegmenterCard, Field(discriminator="task")]
_CARD: TypeAdapter[ModelCard | SegmenterCard] = TypeAdapter(AnyCard)


def _serialise(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def card_bytes(card: ModelCard | SegmenterCard) -> bytes:
    """Return the exact bytes of ``card.json``: the card with ``card_sha256`` set to the digest of the rest."""
    document = card.model_dump(mode="json")
    document["card_sha256"] = ""
    document["card_sha256"] = hashlib.sha256(_serialise(document)).hexdigest()
    return _serialise(document)


def read_package(folder: Path) -> tuple[ModelCard | SegmenterCard, bytes, str]:
    """Read a model package and verify it.

    Parameters
    ----------
    folder : Path
        Holds ``model.onnx`` and ``card.json``.

    Returns
    -------
    card : ModelCard or SegmenterCard
    graph : bytes
        Of ``model.onnx``, verified: returned, so that nothing is read twice.
    sha256 : str
        SHA-256 of ``card.json``.

    Raises
    ------
    Refusal
        ``package_invalid`` if a file or field is missing, the schema is unknown, or any byte differs from the release.
    """
    try:
        raw = (folder / "card.json").read_bytes()
        graph = (folder / "model.onnx").read_bytes()
    except OSError as error:
        raise Refusal("package_invalid", f"A file of the model package cannot be read ({type(error).__name__}).") from error
    try:
        document = json.loads(raw)
    except ValueError as error:
        raise Refusal("package_invalid", "card.json is not JSON.") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise Refusal("package_invalid", f"card.json has schema {version!r}; this version reads schema {SCHEMA_VERSION}.")
    try:
        card = _CARD.validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "task"  # the first names the kind of card
        raise Refusal("package_invalid", f"card.json, field {where}: {first['msg']}.") from error
    if card_bytes(card) != raw:
        raise Refusal("package_invalid", "card.json was changed after its release.")
    if hashlib.sha256(graph).hexdigest() != card.model_sha256:
        raise Refusal("package_invalid", "model.onnx is not the file that the card describes.")
    return card, graph, hashlib.sha256(raw).hexdigest()
