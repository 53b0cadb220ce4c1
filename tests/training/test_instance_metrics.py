"""Checks of the definitions: drawn shapes with answers from geometry, and a naive implementation on sets of pixels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.measure import label

from training.instance_metrics import aji, dice, foreground_iou, object_f1, panoptic_quality

Labels = NDArray[np.int32]
METRICS: dict[str, Callable[[Labels, Labels], float]] = {
    "foreground_iou": foreground_iou,
    "dice": dice,
    "aji": aji,
    "pq": lambda t, p: panoptic_quality(t, p)[0],
    "sq": lambda t, p: panoptic_quality(t, p)[1],
    "rq": lambda t, p: panoptic_quality(t, p)[2],
    "f1": object_f1,
}


def discs(*circles: tuple[float, float, float], side: int = 200) -> Labels:
    """Draw discs (x, y, radius), labelled 1, 2, ...; a later one covers an earlier one."""
    y, x = np.mgrid[0:side, 0:side] + 0.5
    image = np.zeros((side, side), np.int32)
    for number, (cx, cy, radius) in enumerate(circles, 1):
        image[np.hypot(x - cx, y - cy) <= radius] = number
    return image


def boxes(*corners: tuple[int, int, int, int], side: int = 40) -> Labels:
    """Draw boxes (x0, y0, x1, y1), labelled 1, 2, ..."""
    image = np.zeros((side, side), np.int32)
    for number, (x0, y0, x1, y1) in enumerate(corners, 1):
        image[y0:y1, x0:x1] = number
    return image


def lens(distance: float, radius: float) -> float:
    """Area that two discs of one radius share."""
    half = distance / 2
    return 2 * radius**2 * math.acos(half / radius) - half * math.sqrt(4 * radius**2 - distance**2)


def naive(true: Labels, predicted: Labels) -> dict[str, float]:
    """Every figure from its definition, on sets of pixels, for images with objects."""

    def objects(image: Labels) -> list[set[int]]:
        flat = image.ravel().tolist()
        return [{i for i, value in enumerate(flat) if value == name} for name in sorted(set(flat) - {0})]

    ts, ps = objects(true), objects(predicted)
    t_all: set[int] = set().union(*ts)
    p_all: set[int] = set().union(*ps)
    c = u = 0
    used = set()
    for t in ts:
        best, best_iou = None, 0.0
        for k, p in enumerate(ps):
            if len(t & p) / len(t | p) > best_iou:
                best, best_iou = k, len(t & p) / len(t | p)
        if best is None:
            u += len(t)
        else:
            c, u = c + len(t & ps[best]), u + len(t | ps[best])
            used.add(best)
    u += sum(len(p) for k, p in enumerate(ps) if k not in used)
    ious = [iou for t in ts for p in ps if (iou := len(t & p) / len(t | p)) > 0.5]
    tp, fp, fn = len(ious), len(ps) - len(ious), len(ts) - len(ious)
    rq = tp / (tp + fp / 2 + fn / 2)
    sq = sum(ious) / tp if tp else 0.0
    return {
        "foreground_iou": len(t_all & p_all) / len(t_all | p_all),
        "dice": 2 * len(t_all & p_all) / (len(t_all) + len(p_all)),
        "aji": c / u,
        "pq": sq * rq,
        "sq": sq,
        "rq": rq,
        "f1": rq,
    }


@pytest.mark.parametrize("distance", [5.0, 20.0, 60.0])
def test_two_discs_have_the_values_of_geometry(distance: float) -> None:
    radius = 40.0
    true, predicted = discs((80, 100, radius)), discs((80 + distance, 100, radius))
    shared, area = lens(distance, radius), math.pi * radius**2
    iou = shared / (2 * area - shared)
    assert foreground_iou(true, predicted) == pytest.approx(iou, abs=0.01)
    assert dice(true, predicted) == pytest.approx(shared / area, abs=0.01)
    assert aji(true, predicted) == pytest.approx(iou, abs=0.01)
    found = float(iou > 0.5)
    assert panoptic_quality(true, predicted) == pytest.approx((iou * found, iou * found, found), abs=0.01)
    assert object_f1(true, predicted) == found


def test_a_disc_inside_a_larger_one() -> None:
    true, predicted = discs((100, 100, 60)), discs((100, 100, 30))
    assert foreground_iou(true, predicted) == pytest.approx(0.25, abs=0.005)
    assert dice(true, predicted) == pytest.approx(0.4, abs=0.005)
    assert panoptic_quality(true, predicted) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("metric", METRICS)
def test_bounds(metric: str) -> None:
    true = discs((50, 50, 20), (120, 60, 30))
    elsewhere = discs((50, 150, 20), (120, 160, 30))
    empty = np.zeros_like(true)
    value = METRICS[metric]
    assert value(true, true) == 1.0
    assert value(true, true * 37) == 1.0, "the names of the labels do not matter"
    assert value(true, elsewhere) == 0.0
    assert value(empty, empty) == 1.0
    assert value(true, empty) == 0.0
    assert value(empty, true) == 0.0
    assert value(np.ones_like(true), np.ones_like(true)) == 1.0, "an image without background"


@pytest.mark.parametrize("metric", sorted(set(METRICS) - {"aji"}))
def test_symmetric_but_for_aji(metric: str) -> None:
    true, predicted = discs((50, 50, 20), (80, 50, 20)), discs((52, 50, 20), (75, 55, 24), (150, 150, 9))
    assert METRICS[metric](true, predicted) == pytest.approx(METRICS[metric](predicted, true))
    assert METRICS[metric](true, predicted) != 1.0


def test_merged_and_split_objects() -> None:
    two, one = boxes((0, 0, 10, 10), (10, 0, 20, 10)), boxes((0, 0, 20, 10))
    for true, predicted in ((two, one), (one, two)):
        assert foreground_iou(true, predicted) == dice(true, predicted) == 1.0, "the foreground does not see it"
        assert panoptic_quality(true, predicted)[0] == 0.0, "an IoU of exactly 0.5 is no match"
        assert object_f1(true, predicted) == 0.0
    # Merged: both true boxes (100) are matched with the one of 200, so C = 200 and U = 400.
    assert aji(two, one) == 0.5
    # Split: the box of 200 takes one half, C = 100, U = 200, and the other half adds 100.
    assert aji(one, two) == pytest.approx(100 / 300)


def test_missed_and_invented_objects_cost_their_area() -> None:
    true = boxes((0, 0, 10, 10), (20, 0, 30, 10))
    predicted = boxes((0, 0, 10, 10), (0, 20, 10, 25))
    assert aji(true, predicted) == pytest.approx(100 / (100 + 100 + 50))
    assert panoptic_quality(true, predicted) == pytest.approx((0.5, 1.0, 0.5))


def test_aji_adds_a_prediction_that_overlaps_but_is_never_the_best() -> None:
    true = boxes((0, 0, 10, 10))
    predicted = boxes((0, 0, 10, 8), (0, 8, 10, 12))
    # C = 80, U = 100; the second box overlaps the true one and is not its best: its 40 pixels are added.
    assert aji(true, predicted) == pytest.approx(80 / 140)


def test_a_higher_threshold_finds_less() -> None:
    true, predicted = boxes((0, 0, 10, 10)), boxes((0, 0, 10, 7))
    assert object_f1(true, predicted, 0.5) == object_f1(true, predicted, 0.69) == 1.0
    assert object_f1(true, predicted, 0.7) == 0.0
    for threshold in (0.49, 1.0, math.nan):
        with pytest.raises(ValueError, match="threshold"):
            object_f1(true, predicted, threshold)


def noise(random: np.random.Generator, shape: tuple[int, int]) -> Labels:
    """Blobs of random size, with gaps in the numbering."""
    coarse = random.random((shape[0] // 3 + 1, shape[1] // 3 + 1)) > 0.45
    blobs: Labels = label(np.kron(coarse, np.ones((3, 3)))[: shape[0], : shape[1]], connectivity=1).astype(np.int32)
    return blobs * int(random.integers(1, 5))


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_naive_definition(seed: int) -> None:
    random = np.random.default_rng(seed)
    true = noise(random, (31, 26))
    # Half of the images agree in part, so that matches occur; the other half hardly do.
    predicted = np.where(random.random(true.shape) > 0.1, np.roll(true, 1, 1), 0) if seed % 2 else noise(random, (31, 26))
    expected = naive(true, predicted)
    assert {name: metric(true, predicted) for name, metric in METRICS.items()} == pytest.approx(expected)
    if seed % 2:
        assert expected["rq"] > 0
        assert naive(np.roll(true, 2, 0), predicted) != pytest.approx(expected), "the comparison can tell images apart"


def test_a_large_image_is_quick() -> None:
    y, x = np.mgrid[0:1000, 0:1000]
    inside = np.hypot(x % 31 - 15, y % 31 - 15) < 12
    true = np.where(inside, y // 31 * 33 + x // 31 + 1, 0).astype(np.int32)
    assert len(np.unique(true)) > 1000
    predicted = np.roll(true, 3, 1)
    start = time.process_time()
    assert 0.5 < aji(true, predicted) < 1
    assert time.process_time() - start < 1


@pytest.mark.parametrize("wrong", [np.zeros((3, 4), np.int32), np.zeros((4, 4)), np.full((4, 4), -1), np.zeros(4, np.int32)])
@pytest.mark.parametrize("metric", METRICS)
def test_what_is_no_label_image_of_that_size_is_refused(metric: str, wrong: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="label"):
        METRICS[metric](np.zeros((4, 4), np.int32), wrong)
