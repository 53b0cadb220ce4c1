"""Simulated annotations: points in their nuclei, strokes that stay where they belong, errors and parts as asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from models.annotation import Annotation
from tests.training.marked_nuclei import SIDE, Labels, nuclei, pixels, real, stained
from training.simulated_annotations import simulate_points, simulate_scribbles
from training.weak_labels import IGNORE, cluster_labels, point_labels, voronoi_labels


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


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
def test_a_share_is_a_region_with_all_that_reaches_into_it(share: float) -> None:
    label_image = nuclei()
    count = len(np.unique(label_image)) - 1
    places = set()
    for seed in range(8):
        annotation = simulate_points(label_image, seed, share=share)
        assert annotation.region is not None
        (left, top), (right, bottom) = annotation.region.min(axis=0).astype(int), annotation.region.max(axis=0).astype(int)
        assert 0 <= left < right <= SIDE
        assert 0 <= top < bottom <= SIDE
        places.add((left, top))
        reaching = np.setdiff1d(label_image[top:bottom, left:right], [0])
        assert sorted(label_image[pixels(annotation)]) == list(reaching)
        # Growing by one pixel may meet a whole row and column of the grid.
        assert share * count - 1 < len(reaching) <= share * count + 10
        # All that the labels claim holds: no nucleus without a point is called background by them.
        labels = cluster_labels(stained(label_image), annotation, 0)
        assert ((label_image > 0) & (labels == 0)).sum() <= 0.05 * (labels == 0).sum()
    assert len(places) > 3
    # Control: the same points without their region are taken to say something of what lies outside.
    outside = np.ones_like(label_image, bool)
    outside[top:bottom, left:right] = False
    assert (labels[outside] == IGNORE).all()
    assert (cluster_labels(stained(label_image), Annotation(annotation.points), 0)[outside] == 0).any()


def test_some_points_say_that_they_are_not_all() -> None:
    label_image = nuclei()
    count = len(np.unique(label_image)) - 1
    some, careless = (simulate_points(label_image, 3, missing=0.9, complete=complete) for complete in (False, True))
    assert len(some.points) == count - round(0.9 * count)
    assert np.array_equal(some.points, careless.points)
    assert (some.complete, some.region) == (False, None)
    unmarked = (label_image > 0) & ~np.isin(label_image, label_image[pixels(some)])
    assert not (voronoi_labels(some, *label_image.shape) == 0).any()
    assert unmarked[voronoi_labels(careless, *label_image.shape) == 0].any()  # control
    labels = cluster_labels(stained(label_image), some, 0)
    assert not unmarked[labels == 0].any()
    assert set(np.unique(labels)) == {IGNORE, 0, 1}


def test_the_seed_alone_decides() -> None:
    label_image, options = nuclei(), {"jitter": 2.0, "missing": 0.2, "doubled": 0.2, "share": 0.8}
    one, same, other = (simulate_points(label_image, seed, **options).points for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    strokes = [np.concatenate([s.line for s in simulate_scribbles(label_image, seed).scribbles]) for seed in (1, 1, 2)]
    assert np.array_equal(strokes[0], strokes[1])
    assert not np.array_equal(strokes[0], strokes[2])


@pytest.mark.parametrize(
    "options", [{"jitter": -1.0}, {"missing": 1.1}, {"doubled": float("nan")}, {"share": 0.0}, {"share": 2.0}]
)
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        simulate_points(nuclei(), 0, **options)


def test_an_image_without_nuclei() -> None:
    empty = np.zeros((30, 40), np.int32)
    assert len(simulate_points(empty, 0, jitter=3.0, doubled=1.0, share=0.5).points) == 0
    assert [scribble.label for scribble in simulate_scribbles(empty, 0).scribbles] == ["background"]
    assert {scribble.label for scribble in simulate_scribbles(empty + 1, 0).scribbles} == {"foreground"}


def check_scribbles(label_image: Labels, seed: int) -> None:
    annotation = simulate_scribbles(label_image, seed)
    count = len(np.unique(label_image)) - 1
    names = [scribble.label for scribble in annotation.scribbles]
    assert names.count("foreground") == count
    assert names.count("background") == max(1, count // 4)
    labels = point_labels(annotation, *label_image.shape, 0.0)
    assert (label_image > 0)[labels == 1].all()
    assert distance_transform_edt(label_image == 0)[labels == 0].min() > 3
    assert len(np.unique(label_image[labels == 1])) == count, "each nucleus has its stroke"
    assert (labels == 1).sum() > 1.5 * count


@pytest.mark.parametrize("seed", range(5))
def test_scribbles_stay_where_they_belong(seed: int) -> None:
    check_scribbles(nuclei(), seed)
    single = np.zeros((9, 9), np.int32)
    single[4, 4] = 1
    stroke = simulate_scribbles(single, seed).scribbles[0].line
    assert stroke.shape[0] >= 2
    assert (np.floor(stroke) == 4).all()


@pytest.mark.parametrize("kind", ["instance_xml", "instance_masks"])
def test_real_nuclei(data_root: Path, kind: str) -> None:
    _, label_image = real(data_root, kind)
    assert sorted(label_image[pixels(simulate_points(label_image, 0))]) == list(np.unique(label_image)[1:])
    check_scribbles(label_image, 0)
