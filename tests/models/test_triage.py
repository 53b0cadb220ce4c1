"""Verdicts: each limit alone, together, and what no verdict may do."""

import numpy as np
import pytest

from models.card import Triage
from models.postprocess import Prediction
from models.triage import REASONS, judge, positives
from tests.conftest import tiny_card, tiny_graph

LIMITS = Triage(review_loss_percentile=90, review_domain_percentile=95, refuse_domain_distance=2.0)


def prediction(loss: float = 10.0, rank: float = 10.0, distance: float = 0.5, probability: float = 0.9) -> Prediction:
    return Prediction(
        probabilities={"normal": 1 - probability, "pneumonia": probability},
        predicted_loss=0.1,
        loss_percentile=loss,
        loss_score=0.0,
        domain_distance=distance,
        domain_percentile=rank,
        entropy=0.3,
        features=np.zeros(2, np.float32),
        heatmap=None,
    )


@pytest.mark.parametrize(
    ("given", "notes", "verdict", "reasons"),
    [
        (prediction(), (), "accept", ("within_limits",)),
        (prediction(loss=89.9), (), "accept", ("within_limits",)),
        (prediction(loss=90), (), "review", ("predicted_loss_high",)),
        (prediction(rank=95), (), "review", ("domain_far",)),
        (prediction(rank=100, distance=2.0), (), "review", ("domain_far",)),
        (prediction(rank=100, distance=2.1), (), "refuse", ("out_of_domain",)),
        (prediction(loss=99, rank=100, distance=9), (), "refuse", ("out_of_domain", "predicted_loss_high")),
        (prediction(), ("view_not_stated",), "review", ("view_not_stated",)),
        (prediction(), ("colour_image",), "refuse", ("colour_image",)),
        (prediction(), ("phantom",), "refuse", ("phantom",)),
        (prediction(), ("uid_reused",), "review", ("uid_reused",)),
    ],
)
def test_verdict(given: Prediction, notes: tuple[str, ...], verdict: str, reasons: tuple[str, ...]) -> None:
    judgement = judge(given, LIMITS, notes)
    assert (judgement.verdict, judgement.reasons) == (verdict, reasons)


def test_every_reason_is_explained() -> None:
    assert all(text.endswith(".") for text in REASONS.values())
    with pytest.raises(KeyError):
        judge(prediction(), LIMITS, ["no such reason"])


@pytest.mark.parametrize(("verdict", "expected"), [("accept", True), ("review", True), ("refuse", False)])
def test_no_finding_is_positive_under_refuse(verdict: str, expected: bool) -> None:
    card = tiny_card(tiny_graph())
    assert positives(prediction(probability=0.5), card, verdict) == {"pneumonia": expected}  # type: ignore[arg-type]
    assert positives(prediction(probability=0.49), card, verdict) == {"pneumonia": False}  # type: ignore[arg-type]
