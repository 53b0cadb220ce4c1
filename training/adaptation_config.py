"""What decides how a run was adapted to a new hospital: a part of its config, and so of its card."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.card import Fraction
from training.fields import Count, Positive, Word


class Adaptation(BaseModel):
    """How, from what and to what a run was adapted.

    Attributes
    ----------
    method : str
        "consistency": style consistency and pseudo-labels (:mod:`training.adaptation`). "adabn": normalisation statistics alone
        (:mod:`training.adabn`).
    domain : str
        Name of the target.
    base_sha256 : str
        Of ``model.pt`` of the run that was adapted.
    target_sha256 : str
        Of the sorted digests of the unlabelled images used.
    labels_sha256 : str or None
        Of the rows and images of the target that were labelled, if any were.
    source : bool
        Whether the images that the run was trained on took part.
    seed : int
        Of the adaptation. The run's own seed decides its splits, and stays.
    rounds : int
        Of pseudo-labels. Each begins anew with the weights of the run that is adapted, so that a wrong pseudo-label of one round
        stays in no weight of the next.
    members : int
        Networks of the ensemble that gives pseudo-labels to the next round; the last round trains one, which is kept.
    epochs : int
        Of one training, each of as many batches as the run's.
    learning_rate : float
    consistency_weight : float
        Of the style consistency loss.
    share : float
        Of the images of a predicted class that have a pseudo-label in the last round, the most confident ones; it grows to this
        in equal steps.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["consistency", "adabn"]
    domain: Word
    base_sha256: str
    target_sha256: str
    labels_sha256: str | None
    source: bool
    seed: Annotated[int, Field(ge=0)] = 0
    rounds: Count = 3
    members: Count = 2
    epochs: Count = 2
    learning_rate: Positive = 5e-4
    consistency_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    share: Annotated[Fraction, Field(gt=0)] = 0.8
