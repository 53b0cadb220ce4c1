"""JSON in and out of the expert's loop: the worklist, its items and leases, sites, candidates."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.card import Finite, Fraction, Percentile
from service.schemas import Answer, FindingAnswer, Reason, SegmentationAnswer

Count = Annotated[int, Field(ge=0)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
ItemId = Annotated[int, Field(strict=True, ge=1, le=2**53)]
"""Up to what JavaScript holds exactly."""
LeaseId = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Millimetres = Annotated[float, Field(gt=0, allow_inf_nan=False)]
State = Literal["open", "adjudicate", "done", "expired", "withdrawn"]
SkipReason = Literal["unreadable", "not_my_field", "unsure", "wrong_modality", "other"]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Facts(_Document):
    """What judging and labelling need of the source's header, and nothing that says who the patient is; null: not stated.

    ``bits`` is that of the kept PNG. ``window`` is the display values that its 0 and its maximum stand for; a DICOM file's
    own window and inversion are applied. ``age_years`` is whole years, 90 for all above.
    """

    bits: Literal[8, 16]
    window: tuple[Finite, Finite] | None
    pixel_spacing_mm: tuple[Millimetres, Millimetres] | None
    modality: str | None
    body_part: str | None
    view: str | None
    age_years: Annotated[int, Field(ge=0, le=90)] | None
    phantom: bool
    burned_in: Literal["yes", "no", "unknown"]


class ItemModel(_Document):
    """The model package whose result an item shows."""

    name: str
    version: str
    sha256: Digest


class Item(_Document):
    """An image that an expert should look at, with what the model says of it; ``why`` is empty outside of a worklist.

    ``predicted_loss`` and percentiles are comparable among items of one ``model.sha256`` only. ``pixel_spacing_mm`` is the
    distance of rows, then of columns. ``blind``: it is to be read without knowing what the model says. ``findings`` is empty of
    models that find objects: ``result_id`` leads to those.
    """

    item_id: ItemId
    image_sha256: Digest
    result_id: Digest
    model: ItemModel
    origin: Literal["doubt", "random"]
    blind: bool
    site: str
    state: State
    findings: list[FindingAnswer]
    predicted_loss: Finite
    loss_percentile: Percentile
    domain_percentile: Percentile
    verdict: Literal["accept", "review", "refuse"]
    reasons: list[Reason]
    why: list[Reason]
    rows: Annotated[int, Field(ge=1)]
    columns: Annotated[int, Field(ge=1)]
    pixel_spacing_mm: tuple[Millimetres, Millimetres] | None
    facts: Facts
    leased_until: datetime | None
    created_at: datetime


class Worklist(_Document):
    """What to label next, the best first, and how many items of the model there are in each state.

    ``open`` and ``adjudicate`` count items whose result is the current package's; ``waiting_for_scores`` those whose result is
    another's, which are scored again before they are offered. ``leased`` are those of ``open`` and ``adjudicate`` that
    somebody holds.
    """

    model: str
    model_sha256: Digest
    open: Count
    leased: Count
    adjudicate: Count
    done: Count
    expired: Count
    withdrawn: Count
    waiting_for_scores: Count
    items: list[Item]


class LeaseIn(_Document):
    """What to lease: the named item, or the first of the model's worklist (of the default model where none is named)."""

    model: Annotated[str, Field(max_length=64)] | None = None
    item_id: ItemId | None = None


class Lease(_Document):
    """An item that its reader has to himself until then."""

    item: Item
    lease_id: LeaseId
    until: datetime


class SkipIn(_Document):
    """Why a reader passes an item over."""

    reason: SkipReason


class SkipCount(_Document):
    """How many readers passed an item over for a reason."""

    reason: SkipReason
    readers: Annotated[int, Field(ge=1)]


class ItemLabels(_Document):
    """How far an item's labels are: ``given`` by so many readers of ``wanted``, and whether by the caller; not what they say."""

    given: Count
    wanted: Annotated[int, Field(ge=1, le=2)]
    mine: bool
    skipped: list[SkipCount]


class ItemDetail(_Document):
    """An item, its whole result as it would be answered now, and how far its labels are."""

    item: Item
    result: Answer | SegmentationAnswer
    labels: ItemLabels


class SiteDay(_Document):
    """The scans of one site, day (UTC) and model package.

    ``site`` is empty for scans without one. ``labelled`` counts images with a label, ``agreement`` is the share of them whose
    reader confirmed what the model said, null where there are none. The ``random`` two are of the random share alone: only they
    estimate how often the model is right at the site, since the others were chosen for being doubtful.
    """

    site: str
    day: date
    model_version: str
    model_sha256: Digest
    n: Annotated[int, Field(ge=1)]
    mean_predicted_loss: Finite
    mean_domain_percentile: Percentile
    accept: Count
    review: Count
    refuse: Count
    labelled: Count
    agreement: Fraction | None
    random_labelled: Count
    random_agreement: Fraction | None


class Sites(_Document):
    """The configured sites, and what each saw, the newest day first."""

    model: str
    sites: list[str]
    days: list[SiteDay]


class ComparedScans(_Document):
    """What two packages said of the same scans of a site (empty: scans without one, or all together).

    ``same_findings`` counts scans in which the same findings were called, or whose objects overlap with a Dice of 0.9. The mean
    predicted losses are each package's own estimate of its loss; null where nothing was compared.
    """

    site: str
    compared: Count
    same_verdict: Count
    same_findings: Count
    current_mean_predicted_loss: Finite | None
    candidate_mean_predicted_loss: Finite | None


class ComparedVerdicts(_Document):
    """How many scans got ``verdict`` and would have got ``candidate_verdict``."""

    verdict: Literal["accept", "review", "refuse"]
    candidate_verdict: Literal["accept", "review", "refuse"]
    scans: Count


class ComparedErrors(_Document):
    """Labelled images of which a package called a finding wrongly.

    ``difference`` is the candidate's error rate minus the current package's, ``low`` and ``high`` its 95% interval (paired
    bootstrap over patients; null for fewer than two). Most labels are of doubtful scans: this compares the two packages on those,
    and is no estimate of either's error rate at the site.
    """

    images: Annotated[int, Field(ge=1)]
    patients: Annotated[int, Field(ge=1)]
    current_errors: Count
    candidate_errors: Count
    difference: Annotated[float, Field(ge=-1, le=1)]
    low: Annotated[float, Field(ge=-1, le=1)] | None
    high: Annotated[float, Field(ge=-1, le=1)] | None


class Shadowed(_Document):
    """The comparison of a candidate with the package that answered; ``errors`` is null without labels, and of segmenters."""

    total: ComparedScans
    by_site: list[ComparedScans]
    verdicts: list[ComparedVerdicts]
    errors: ComparedErrors | None


class CandidateModel(_Document):
    """A model, the package that answers and the one that is tried beside it; both null where none is."""

    name: str
    task: str
    current: ItemModel
    candidate: ItemModel | None
    shadow: Shadowed | None


class Candidates(_Document):
    """The models that are served, and their candidates."""

    models: list[CandidateModel]
