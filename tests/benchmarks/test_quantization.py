"""What the benchmark of quantization calls worth keeping, from rows with known answers."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.quantization import CLOSE, QUICKER, kept, table

ROW: dict[str, Any] = {"model": "m", "form": "int8", "ms": 1.0, "ratio_low": 0.7, "ratio_high": 0.9}


@pytest.mark.parametrize(
    ("ratio", "probability", "loss", "worth"),
    [
        (QUICKER, CLOSE, CLOSE, True),
        (QUICKER + 0.01, 0.0, 0.0, False),
        (0.5, CLOSE + 0.001, 0.0, False),
        (0.5, 0.0, CLOSE + 0.001, False),
    ],
)
def test_only_what_is_quicker_and_says_the_same_is_kept(ratio: float, probability: float, loss: float, worth: bool) -> None:
    row = ROW | {"ratio": ratio, "probability_moved": probability, "predicted_loss_moved": loss}
    assert kept(row) is worth
    assert table([row]).splitlines()[-1].endswith("| yes |" if worth else "| no |")
