"""Without a GPU the benchmark of GPUs measures nothing, and says so."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import gpu, report
from models.predictor import CUDA


class OtherProvider:
    """Stands for a graph on some provider."""

    provider = "CPUExecutionProvider"

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take what a graph takes."""


@pytest.mark.parametrize(("provider", "code"), [("CPUExecutionProvider", gpu.NO_GPU), (CUDA, 0)])
def test_without_a_gpu_it_says_so(
    provider: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    rows = [{"model": "m", "measure": "batch", "images": 1, "images_per_second_bound": 1.0, "repeats": 3}]
    monkeypatch.setattr("sys.argv", ["gpu.py", "--scale", "small"])
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu, "Graph", type("Stand", (OtherProvider,), {"provider": provider}))
    monkeypatch.setattr(gpu, "measure", lambda _: rows)
    assert gpu.main() == code
    assert ("gpu_missing: " in capsys.readouterr().err) is (code == gpu.NO_GPU)
    assert (tmp_path / "gpu.json").exists() is (code == 0)
