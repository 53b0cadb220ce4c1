"""What is answered beside what is stored: from the card, as the model says it of the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.card import read_package


def test_an_answer_says_what_to_expect_at_a_hospital_that_was_not_trained_on(client: Any, draw: Any, package: Path) -> None:
    answer = client.predict(draw(1)).json()
    card = read_package(package)[0]
    assert card.calibration.unseen_loss_knots is not None
    entropies, losses = zip(*card.calibration.unseen_loss_knots, strict=True)
    assert answer["predicted_loss_unseen"] == pytest.approx(float(np.interp(answer["entropy"], entropies, losses)))
    assert answer["predicted_loss_unseen"] != pytest.approx(answer["predicted_loss"])
