"""JSON in and out, and the HTTP status of each error code."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.card import Finite, Fraction, Percentile
from models.errors import CODES, Refusal

STATUS: dict[str, int] = {
    "bad_request": 400,
    "empty_body": 400,
    "unsupported_media_type": 415,
    "too_large": 413,
    "request_timeout": 408,
    "not_found": 404,
    "unknown_model": 404,
    "method_not_allowed": 405,
    "unauthenticated": 401,
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
    "multi_frame": 422,
    "modality_not_accepted": 422,
    "body_part_not_accepted": 422,
    "view_not_accepted": 422,
    "age_not_accepted": 422,
    "too_small": 422,
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


class Answer(_Document):
    """A prediction. ``predicted_loss`` and ``entropy`` are in nats, percentiles in [0, 100]."""

    result_id: str
    image_sha256: str
    sop_instance_uid: str | None
    model: ModelBlock
    task: str
    findings: list[FindingAnswer]
    predicted_loss: Finite
    loss_percentile: Percentile
    domain_distance: Finite
    domain_percentile: Percentile
    entropy: Finite
    verdict: Literal["accept", "review", "refuse"]
    reasons: list[Reason]
    heatmap: Heatmap | None = None


class LoadedModel(_Document):
    """A model that is served, with its whole card."""

    name: str
    version: str
    sha256: str
    provider: str
    default: bool
    card: dict[str, Any]


class Models(_Document):
    """The models that are served."""

    models: list[LoadedModel]


class Status(_Document):
    """The state of the service."""

    status: Literal["ok", "ready"]


def problem(refusal: Refusal) -> Problem:
    """Return the problem document of a refusal; a code without a status of its own is a fault of ours."""
    code = refusal.code if refusal.code in STATUS else "internal_error"
    detail = refusal.detail if code == refusal.code else CODES[code]
    return Problem(type=f"urn:overread:error:{code}", title=CODES[code], status=STATUS[code], code=code, detail=detail)
