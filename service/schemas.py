"""JSON in and out, and the HTTP status of each error code."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.card import Finite, Fraction, Percentile, Triage
from models.errors import CODES, Refusal

STATUS: dict[str, int] = {
    "bad_request": 400,
    "empty_body": 400,
    "unsupported_media_type": 415,
    "too_large": 413,
    "request_timeout": 408,
    "not_found": 404,
    "unknown_model": 404,
    "not_acceptable": 406,
    "method_not_allowed": 405,
    "unauthenticated": 401,
    "session_expired": 401,
    "csrf": 403,
    "unknown_site": 400,
    "forbidden": 403,
    "rate_limited": 429,
    "overloaded": 503,
    "deadline_exceeded": 503,
    "not_ready": 503,
    "storage_full": 507,
    "storage_unavailable": 503,
    "internal_error": 500,
    "not_decodable": 400,
    "inconsistent_image": 400,
    "unsupported_transfer_syntax": 415,
    "no_pixel_data": 422,
    "image_too_large": 413,
    "own_output": 422,
    "multi_frame": 422,
    "region_required": 422,
    "not_tissue": 422,
    "modality_not_accepted": 422,
    "body_part_not_accepted": 422,
    "view_not_accepted": 422,
    "age_not_accepted": 422,
    "too_small": 422,
    "worklist_empty": 404,
    "item_taken": 409,
    "lease_lost": 409,
    "label_invalid": 422,
    "label_conflict": 409,
    "stale_result": 409,
    "model_output_invalid": 500,
}
"""Error code -> HTTP status, for the codes that a request can meet; the other codes belong to commands."""

RETRY_AFTER = {429: "5", 503: "1", 507: "60"}
"""HTTP status -> Retry-After in seconds."""


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Problem(_Document):
    """An error, as RFC 9457 problem details. ``code`` is stable; ``detail`` is for people."""

    type: str
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    code: str
    detail: str


class Reason(_Document):
    """Why a verdict was given."""

    code: str
    message: str


class FindingAnswer(_Document):
    """A finding; ``positive`` at or above the operating point, never under the verdict ``refuse``."""

    label: str
    probability: Fraction
    operating_point: Fraction
    positive: bool


class ModelBlock(_Document):
    """Which model answered, on what hardware, and for whom it is meant."""

    name: str
    version: str
    sha256: str
    provider: str
    intended_use: dict[str, str]


class Heatmap(_Document):
    """Where the evidence for a finding lies: a grey PNG, base64; 255 stands for ``peak``, a contribution to the logit."""

    label: str
    media_type: Literal["image/png"]
    peak: Finite
    data: str


class ShownPicture(_Document):
    """The image as it is shown, a PNG of 2048 pixels a side at most, base64; grey in 8 or 16 bits, or colour.

    ``rows`` and ``columns`` are those of the image that was sent, ``pixel_spacing_mm`` the distances of both. ``window`` is the
    display values that the PNG's 0 and its largest value stand for, null where they are display values.
    """

    media_type: Literal["image/png"]
    data: str
    rows: Annotated[int, Field(ge=1)]
    columns: Annotated[int, Field(ge=1)]
    window: tuple[Finite, Finite] | None
    pixel_spacing_mm: tuple[Finite, Finite] | None


class Answer(_Document):
    """A prediction: losses and entropy in nats, percentiles in [0, 100]; ``predicted_loss_unseen``: where not trained on."""

    result_id: str
    image_sha256: str
    sop_instance_uid: str | None
    model: ModelBlock
    task: str
    findings: list[FindingAnswer]
    predicted_loss: Finite
    predicted_loss_unseen: Finite | None
    loss_percentile: Percentile
    domain_distance: Finite
    domain_percentile: Percentile
    entropy: Finite
    verdict: Literal["accept", "review", "refuse"]
    reasons: list[Reason]
    heatmap: Heatmap | None = None
    picture: ShownPicture | None = None


class ObjectAnswer(_Document):
    """An object: its outer boundary, (x, y) in pixels from the image's upper left corner; area in pixels, score in [0, 1]."""

    polygon: Annotated[list[tuple[Finite, Finite]], Field(min_length=3)]
    area: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    score: Fraction


class Tile(_Document):
    """A part of the image in pixels, and how wrong the model expects to be there: ``predicted_loss`` is 1 - Dice."""

    x: int
    y: int
    width: int
    height: int
    predicted_loss: Finite
    loss_percentile: Percentile
    domain_distance: Finite
    domain_percentile: Percentile


class Quartiles(_Document):
    """Of the values that are defined; null where there are none."""

    q1: Finite | None
    median: Finite | None
    q3: Finite | None


class Distribution(Quartiles):
    """Quartiles, mean and sample standard deviation; null where too few values define them."""

    mean: Finite | None
    sd: Finite | None


class Quantities(_Document):
    """What a pathologist asks of the objects; docs/quantities.md defines each.

    ``density_per_mm2`` and what is in micrometres are null where the image does not state its pixel spacing;
    ``density_per_megapixel`` is null where it does.
    """

    count: Annotated[int, Field(ge=0)]
    density_per_mm2: Finite | None = None
    density_per_megapixel: Finite | None = None
    area_fraction: Fraction | None
    area_px: Distribution
    eccentricity: Distribution
    solidity: Distribution
    nearest_neighbour_px: Quartiles
    area_um2: Distribution | None = None
    nearest_neighbour_um: Quartiles | None = None


class RegionAnswer(_Document):
    """A polygon that came with the request, and the quantities inside it; none under the verdict ``refuse``."""

    name: str
    quantities: Quantities | None


class Picture(_Document):
    """A PNG, base64."""

    media_type: Literal["image/png"]
    data: str


class SegmentationRecord(_Document):
    """What is stored of a segmentation beside its doubts. ``region`` is x, y, width, height; None for the whole image."""

    region: tuple[int, int, int, int] | None
    objects: list[ObjectAnswer]
    quantities: Quantities
    tiles: list[Tile]
    doubtful_regions: list[Tile]


class SegmentationAnswer(_Document):
    """The objects of an image. ``predicted_loss`` is 1 - Dice, ``entropy`` in nats a pixel, percentiles in [0, 100].

    A percentile of the image is the highest, among tiles of the calibration set, that more than a third of its tiles reach.

    Under the verdict ``refuse`` there are no objects, quantities, label image and overlay; the tiles are there.
    ``doubtful_regions`` are what an expert should annotate first, the most doubtful first.
    """

    result_id: str
    image_sha256: str
    sop_instance_uid: str | None
    model: ModelBlock
    task: Literal["segmentation"]
    region: tuple[int, int, int, int] | None
    predicted_loss: Finite
    loss_percentile: Percentile
    domain_distance: Finite
    domain_percentile: Percentile
    entropy: Finite
    verdict: Literal["accept", "review", "refuse"]
    reasons: list[Reason]
    object_label: str
    objects: list[ObjectAnswer]
    quantities: Quantities | None
    regions: list[RegionAnswer] | None
    tiles: list[Tile]
    doubtful_regions: list[Tile]
    label_image: Picture | None
    overlay: Picture | None
    picture: ShownPicture | None = None


@dataclass(frozen=True)
class Extras:
    """What was asked for beside the result, and is not stored."""

    heatmap: Heatmap | None = None
    label_image: Picture | None = None
    overlay: Picture | None = None
    picture: ShownPicture | None = None
    regions: list[RegionAnswer] | None = None


class LoadedModel(_Document):
    """A model that is served, with its whole card; ``limits`` are those in force here, the card's unless the site set others."""

    name: str
    version: str
    sha256: str
    provider: str
    default: bool
    limits: Triage
    card: dict[str, Any]


class Models(_Document):
    """The models that are served."""

    models: list[LoadedModel]


class Login(_Document):
    """What one signs in with."""

    token: Annotated[str, Field(min_length=1, max_length=256)]


class SessionAnswer(_Document):
    """Who is signed in; ``role`` is null where nobody is. An open service asks nobody, and everyone is its operator.

    ``sites`` are the names that a scan may be sent with, ``site`` the one that the token is bound to, or empty.
    """

    open: bool
    role: Literal["device", "annotator", "operator"] | None
    name: str
    site: str
    sites: list[str]
    expires_at: datetime | None


class Status(_Document):
    """The state of the service."""

    status: Literal["ok", "ready"]


def problem(refusal: Refusal) -> Problem:
    """Return the problem document of a refusal; a code without a status of its own is a fault of ours."""
    code = refusal.code if refusal.code in STATUS else "internal_error"
    detail = refusal.detail if code == refusal.code else CODES[code]
    return Problem(type=f"urn:overread:error:{code}", title=CODES[code], status=STATUS[code], code=code, detail=detail)
