"""Simulated annotations: points in their nuclei, and the errors that were asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.annotation import Annotation
from tests.training.marked_nuclei import SIDE, nuclei, pixels, real
from training.weak_labels import simulate_points


def test_simulated_points_lie_in_their_nuclei() -> None:
    label_image = nuclei() * 3
    annotation = simulate_points(label_image, 0)
    assert sorted(label_image[pixels(annotation)]) == list(np.unique(label_image)[1:])
    assert annotation.region is None
    centres = annotation.points[annotation.points.min(axis=1) > 24]
    assert np.abs(centres % 24 - 12).max() <= 0.5, "a disc's point is its centre"


def test_jitter_missing_and_doubled() -> None:
    label_image = nuclei()
    count = len(np.unique(label_image)) - 1
    plain = simulate_points(label_image, 5)
    moved = simulate_points(label_image, 5, jitter=5.0)
    distance = np.hypot(*(moved.points - plain.points).T)
    assert 3 < distance.max() <= 5
    assert 1.5 < distance.mean() < 3.5
    assert len(simulate_points(label_image, 5, missing=0.2).points) == count - round(0.2 * count)
    twice = simulate_points(label_image, 5, doubled=0.4)
    found, times = np.unique(label_image[pixels(twice)], return_counts=True)
    assert len(found) == count
    assert (times == 2).sum() == round(0.4 * count)
    second = twice.points[count:]
    assert np.abs(second[:, None] - plain.points).max(axis=2).min(axis=1).max() > 2, "a second point is not at the centre"
    others = [simulate_points(label_image, seed, doubled=1.0).points[count:] for seed in range(2)]
    by_nucleus = [points[np.argsort(label_image[pixels(Annotation(points))])] for points in others]
    assert (by_nucleus[0] != by_nucleus[1]).any(axis=1).mean() > 0.9, "nor at any other fixed place"
    assert len(simulate_points(label_image, 5, missing=1.0).points) == 0
    far = simulate_points(label_image, 5, jitter=60.0).points
    assert far.min() >= 0
    assert far.max() < SIDE
    assert np.unique(far).size > 10


def test_the_seed_alone_decides() -> None:
    label_image, options = nuclei(), {"jitter": 2.0, "missing": 0.2, "doubled": 0.2}
    one, same, other = (simulate_points(label_image, seed, **options).points for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("options", [{"jitter": -1.0}, {"missing": 1.1}, {"doubled": float("nan")}])
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        simulate_points(nuclei(), 0, **options)


def test_an_image_without_nuclei() -> None:
    empty = np.zeros((30, 40), np.int32)
    assert len(simulate_points(empty, 0, jitter=3.0, doubled=1.0).points) == 0


@pytest.mark.parametrize("kind", ["instance_xml", "instance_masks"])
def test_real_nuclei(data_root: Path, kind: str) -> None:
    _, label_image = real(data_root, kind)
    assert sorted(label_image[pixels(simulate_points(label_image, 0))]) == list(np.unique(label_image)[1:])
