"""Same image, same answer, and only numbers in it (rows 12 and 13 of docs/reliability.md)."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import segmenter
from models.card import DEFAULT_MODEL, ZOO
from models.example import tissue_phantom
from models.imaging import read_image
from models.predictor import Predictor
from models.segmenter import SegmenterPredictor

IMAGES = 200
NUMBERS = ("predicted_loss", "loss_percentile", "domain_distance", "domain_percentile", "entropy")


def differences(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[int]:
    """Return which answers are not equal, to the last bit."""
    return [number for number, (one, other) in enumerate(zip(first, second, strict=True)) if one != other]


def test_threads_and_restarts_change_nothing(start_server: Callable[..., Any], package: Path, draw: Any, predict: Any) -> None:
    bodies = [draw(seed) for seed in range(IMAGES)]

    def answers(server: Any) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(6) as pool:
            return [response.json() for response in pool.map(lambda body: predict(server, body), bodies)]

    one = start_server(package, OVERREAD_THREADS="1")
    first = answers(one)
    assert one.stop() == 0
    again = start_server(package, state=one.state, OVERREAD_THREADS="2")
    assert differences(answers(again), first) == []  # from the store of a process that has ended
    assert again.stop() == 0
    fresh = start_server(package, OVERREAD_THREADS="2")
    assert differences(answers(fresh), first) == []  # computed anew, two at a time
    assert len({answer["result_id"] for answer in first}) == IMAGES
    changed = [json.loads(json.dumps(answer)) for answer in first]
    changed[7]["findings"][0]["probability"] += 1e-9
    assert differences(changed, first) == [7]  # the control


@pytest.mark.parametrize("shipped", [False, True])
def test_batches_change_little(package: Path, draw: Any, shipped: bool) -> None:
    predictor = Predictor.load(DEFAULT_MODEL if shipped else package)
    images = [read_image(draw(seed, 300 if shipped else 96)) for seed in range(24 if shipped else IMAGES)]

    def rows(batch: int) -> np.ndarray[Any, Any]:
        found = []
        for start in range(0, len(images), batch):
            found += predictor.predict(images[start : start + batch])
        return np.array([[*item.probabilities.values(), *(getattr(item, name) for name in NUMBERS)] for item in found])

    single = rows(1)
    for batch in (3, 8):
        np.testing.assert_allclose(rows(batch)[:, :2], single[:, :2], atol=1e-5, rtol=0)
        np.testing.assert_allclose(rows(batch), single, atol=1e-3, rtol=1e-5)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(single[:, :2] + 2e-5, single[:, :2], atol=1e-5, rtol=0)


def test_tiles_in_batches_of_another_size_give_the_same_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, tissue = SegmenterPredictor.load(ZOO / "nuclei"), read_image(tissue_phantom())

    def found(batch: int) -> tuple[int, np.ndarray[Any, Any]]:
        monkeypatch.setattr(segmenter, "BATCH", batch)
        segmentation, _ = predictor.predict(tissue, (0, 0, 400, 400))
        assert len(segmentation.tiles) > 3
        return len(segmentation.objects), segmentation.label_image > 0

    def overlap(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
        return float((one & other).sum() / (one | other).sum())

    count, covered = found(1)
    assert count > 5
    for batch in (3, 8):
        again, same = found(batch)
        assert again == count
        assert overlap(same, covered) >= 0.999
    assert overlap(np.roll(covered, 1, axis=0), covered) < 0.999  # the control


def test_a_model_that_yields_no_number_is_a_coded_error(
    start_server: Callable[..., Any],
    make_package: Callable[..., Path],
    package: Path,
    draw: Any,
    predict: Any,
    ask: Any,
    metrics: Any,
) -> None:
    poisons = {"nan": float("nan"), "inf": float("inf"), "minus-inf": float("-inf")}
    server = start_server(package, *(make_package(name, poison=value) for name, value in poisons.items()))
    for number, name in enumerate(poisons, 1):
        for query in ({"model": name}, {"model": name, "heatmap": "true"}):
            response = predict(server, draw(1), params=query)
            assert (response.status_code, response.json()["code"]) == (500, "model_output_invalid")
            assert response.headers["content-type"] == "application/problem+json"
            assert not any(token in response.text for token in ("NaN", "Infinity", "null"))
        assert (
            metrics(server)['overread_requests_total{code="model_output_invalid",route="/v1/predict",status="500"}'] == 2 * number
        )
    assert ask(server.state, "SELECT count(*) FROM results") == [(0,)]
    assert ask(server.state, "SELECT count(*) FROM verdicts") == [(0,)]
    # The control: a sound model beside them answers, and is stored.
    sound = predict(server, draw(1))
    assert sound.status_code == 200
    json.loads(sound.text, parse_constant=lambda token: pytest.fail(token))
    assert ask(server.state, "SELECT count(*) FROM results") == [(1,)]
