"""From a prediction to a verdict with reasons: the card's limits, or a site's own; and what may be called under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from models.card import ModelCard, Triage
from models.objects import DetectedObject
from models.postprocess import Prediction

Verdict = Literal["accept", "review", "refuse"]

REASONS: dict[str, str] = {
    "within_limits": "Predicted loss and distance from the training data are within the limits.",
    "predicted_loss_high": "The model expects to be wrong on this image more often than on most.",
    "domain_far": "The image differs from those the model was trained on.",
    "out_of_domain": "The image is too far from anything the model was trained on; no finding is called.",
    "colour_image": "A colour image was given to a model for grey images; no finding is called.",
    "phantom": "The header says that the subject is a quality control phantom, not a patient; no finding is called.",
    "modality_not_stated": "The header does not state the modality.",
    "body_part_not_stated": "The header does not state the body part.",
    "view_not_stated": "The header does not state the view.",
    "age_not_stated": "The header does not state the patient's age.",
    "uid_reused": "The SOP Instance UID was seen before with other pixels.",
}
"""Reason code -> what it tells a reader. Codes are stable."""

_REFUSING = frozenset({"out_of_domain", "colour_image", "phantom"})


class Doubt(Protocol):
    """What a verdict looks at; a :class:`~models.postprocess.Prediction` has it, and a :class:`~models.objects.Segmentation`."""

    @property
    def loss_percentile(self) -> float:
        """Rank of the predicted loss in the calibration set."""

    @property
    def domain_distance(self) -> float:
        """Distance from the training data, in the graph's unit."""

    @property
    def domain_percentile(self) -> float:
        """Its rank in the calibration set."""


@dataclass(frozen=True)
class Judgement:
    """A verdict and why.

    ``reasons`` are keys of :data:`REASONS`, never empty. Under ``refuse`` no finding may be called positive, and no object.
    """

    verdict: Verdict
    reasons: tuple[str, ...]


def judge(prediction: Doubt, triage: Triage, notes: Sequence[str] = ()) -> Judgement:
    """Judge one prediction.

    Parameters
    ----------
    prediction : Prediction or Segmentation
    triage : Triage
        The limits in force.
    notes : sequence of str
        Reason codes found before the model ran (what the header does not state, a colour image, a reused UID).

    Raises
    ------
    KeyError
        If a note is not in :data:`REASONS`.
    """
    reasons = [note for note in notes if REASONS[note]]
    if prediction.domain_distance > triage.refuse_domain_distance:
        reasons.append("out_of_domain")
    elif prediction.domain_percentile >= triage.review_domain_percentile:
        reasons.append("domain_far")
    if prediction.loss_percentile >= triage.review_loss_percentile:
        reasons.append("predicted_loss_high")
    if not reasons:
        return Judgement("accept", ("within_limits",))
    return Judgement("refuse" if _REFUSING.intersection(reasons) else "review", tuple(reasons))


def positives(prediction: Prediction, card: ModelCard, verdict: Verdict) -> dict[str, bool]:
    """Say which findings are called positive: at or above the operating point, and never under ``refuse``."""
    return called_findings(prediction.probabilities, card, verdict)


def called_findings(probabilities: Mapping[str, float], card: ModelCard, verdict: Verdict) -> dict[str, bool]:
    """Say what :func:`positives` says, where no more than the probabilities is known."""
    return {
        finding.label: verdict != "refuse" and probabilities[finding.label] >= finding.operating_point
        for finding in card.output.findings
    }


def called_objects(objects: Sequence[DetectedObject], verdict: Verdict) -> tuple[DetectedObject, ...]:
    """Say which objects are called: all, and none under ``refuse``."""
    return () if verdict == "refuse" else tuple(objects)
