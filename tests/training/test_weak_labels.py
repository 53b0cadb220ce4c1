"""Weak labels on drawn nuclei with known answers, and on real ones: what they claim must be true of the masks."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from models.annotation import Annotation, Scribble, read_annotation, write_annotation
from training.weak_labels import (
    IGNORE,
    WeakLabels,
    cluster_labels,
    point_labels,
    simulate_points,
    simulate_scribbles,
    voronoi_labels,
)

Labels = NDArray[np.int32]
SIDE = 120
EVERY: dict[str, Callable[[NDArray[np.uint8], Annotation], WeakLabels]] = {
    "point": lambda image, annotation: point_labels(annotation, *image.shape[:2], 2.0),
    "voronoi": lambda image, annotation: voronoi_labels(annotation, *image.shape[:2]),
    "cluster": lambda image, annotation: cluster_labels(image, annotation, 0),
}


def at(*points: tuple[float, float], region: NDArray[np.float64] | None = None) -> Annotation:
    return Annotation(np.array(points, float).reshape(-1, 2), region=region)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> NDArray[np.float64]:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


def nuclei(side: int = SIDE) -> Labels:
    """Draw a grid of discs of radius 7, 24 pixels apart, and one nucleus shaped like a C, whose centroid lies outside it."""
    y, x = np.mgrid[0:side, 0:side]
    inside = np.hypot(x % 24 - 11.5, y % 24 - 11.5) < 7
    image = np.where(inside, y // 24 * (side // 24) + x // 24 + 1, 0).astype(np.int32)
    image[0:24, 0:24] = 0
    ring = np.hypot(x - 11.5, y - 11.5)
    image[(ring < 10) & (ring > 6) & ~((x > 11) & (abs(y - 11.5) < 4))] = 1
    return image


def stained(label_image: Labels) -> NDArray[np.uint8]:
    """Draw the nuclei violet on pink, with noise."""
    colours = np.where((label_image > 0)[..., None], (110, 70, 150), (230, 180, 210))
    return np.clip(colours + np.random.default_rng(0).normal(0, 12, colours.shape), 0, 255).astype(np.uint8)


def pixels(annotation: Annotation) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    x, y = np.floor(annotation.points).astype(np.intp).T
    return y, x


@pytest.mark.parametrize(("radius", "count"), [(0.0, 1), (1.0, 5), (2.0, 13)])
def test_points_are_discs_and_all_else_is_ignored(radius: float, count: int) -> None:
    labels = point_labels(at((10.5, 20.5)), 40, 50, radius)
    y, x = np.mgrid[0:40, 0:50]
    assert labels.dtype == np.int8
    assert np.array_equal(labels == 1, np.hypot(x - 10, y - 20) <= radius)
    assert (labels == 1).sum() == count
    assert set(np.unique(labels)) == {1, IGNORE}


def test_the_line_between_two_points_is_halfway() -> None:
    labels = voronoi_labels(at((10.5, 20.5), (29.5, 20.5)), 40, 50)
    # Pixels 10 and 29: those up to 19 are nearer to the first, those from 20 to the second.
    y, x = np.nonzero(labels == 0)
    assert set(x) == {19, 20}
    assert len(y) == 80
    assert (labels == 1).sum() == 26
    assert (labels[20, 10], labels[20, 12], labels[20, 13]) == (1, 1, IGNORE)


def test_no_pixel_of_a_line_is_far_from_equally_near() -> None:
    random = np.random.default_rng(3)
    points = random.uniform(0, SIDE, (30, 2))
    labels = voronoi_labels(Annotation(points), SIDE, SIDE)
    y, x = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    nearest, second = np.sort(np.hypot(x - points[:, 0, None, None], y - points[:, 1, None, None]), axis=0)[:2]
    # Points lie up to 0.71 pixels from their pixel's centre, and a line takes the pixel on each side of it.
    assert (second - nearest)[labels == 0].max() < 2 * 0.71 + 2
    assert (second - nearest)[labels == IGNORE].max() > 20


def test_one_point_has_no_line_and_none_means_background() -> None:
    one = voronoi_labels(at((10, 10)), 30, 30)
    assert set(np.unique(one)) == {1, IGNORE}
    assert np.array_equal(one, voronoi_labels(at((10, 10), (10, 10)), 30, 30)), "the same pixel twice is one nucleus"
    image = stained(nuclei())
    for labels in EVERY.values():
        assert (labels(image, at()) == 0).all()
        partly = labels(image, at(region=rectangle(10, 20, 50, 60)))
        assert (partly == 0).sum() == 40 * 40
        assert (partly == IGNORE).sum() == SIDE * SIDE - 40 * 40


@pytest.mark.parametrize("name", EVERY)
def test_outside_the_region_nothing_is_known(name: str) -> None:
    label_image = nuclei()
    image, everywhere = stained(label_image), simulate_points(label_image, 0)
    partly = Annotation(everywhere.points, region=rectangle(0, 30, 60, 90))
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    outside = ~((x < 60) & (y >= 30) & (y < 90))
    assert (EVERY[name](image, partly)[outside] == IGNORE).all()
    assert (EVERY[name](image, partly)[~outside] != IGNORE).any()
    assert (EVERY[name](image, everywhere)[outside] != IGNORE).any()


@pytest.mark.parametrize("name", EVERY)
def test_what_was_drawn_is_known(name: str) -> None:
    label_image = nuclei()
    background = Scribble("background", np.array([[22.5, 0.5], [22.5, 50.5]]))
    foreground = Scribble("foreground", np.array([[35.5, 32.5], [35.5, 38.5]]))
    outline = rectangle(54, 30, 66, 42)
    plain = simulate_points(label_image, 0)
    drawn = Annotation(plain.points, (background, foreground), (outline,))
    image = stained(label_image)
    labels = EVERY[name](image, drawn)
    assert (labels[0:51, 22] == 0).all()
    assert (labels[32:39, 35] == 1).all()
    assert (labels[30:42, 54:66] == 1).all()
    without = EVERY[name](image, plain)
    assert not ((without[0:51, 22] == 0).all() and (without[30:42, 54:66] == 1).all())


def test_an_outline_and_the_point_in_it_are_one_nucleus() -> None:
    outline = rectangle(10, 10, 20, 20)
    labels = voronoi_labels(Annotation(np.array([[15.0, 15.0]]), polygons=(outline,)), 40, 60)
    assert set(np.unique(labels)) == {1, IGNORE}
    beside = voronoi_labels(Annotation(np.array([[40.5, 15.0]]), polygons=(outline,)), 40, 60)
    # From the outline's last pixel, 19, to the point's, 40: halfway is 29.5, not what the outline's centre would give.
    assert set(np.nonzero(beside[15] == 0)[0]) == {29, 30}


def test_clusters_find_drawn_nuclei() -> None:
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    bars = (abs(x % 24 - 11.5) < 3) & (abs(y % 24 - 11.5) < 9)
    label_image = np.where(bars, y // 24 * 5 + x // 24 + 1, 0).astype(np.int32)
    annotation = simulate_points(label_image, 0)
    labels = cluster_labels(stained(label_image), annotation, 0)
    assert bars[labels == 1].mean() > 0.95
    assert (labels == 1)[bars].mean() > 0.9
    assert (~bars)[labels == 0].mean() > 0.95
    assert (labels == 0).any()
    # Control: without colour there is nothing but nearness, and bars are not round.
    near = cluster_labels(stained(np.zeros_like(label_image)), annotation, 0)
    assert bars[near == 1].mean() < 0.8


def test_clusters_with_nothing_to_tell_apart_know_nothing() -> None:
    grey = np.full((40, 40, 3), 200, np.uint8)
    only_one_pixel = at((20.5, 20.5), region=rectangle(20, 20, 21, 21))
    assert (cluster_labels(grey, only_one_pixel, 0) == IGNORE).all()
    # No nucleus within the region, but one that may reach in: what is near it is not known.
    labels = cluster_labels(grey, at((12.5, 20.5), region=rectangle(14, 0, 40, 40)), 0)
    assert labels[20, 14] == labels[20, 31] == IGNORE
    assert labels[20, 32] == labels[20, 39] == 0


def test_clusters_do_not_look_outside_the_region() -> None:
    label_image = nuclei()
    image = stained(label_image)
    annotation = Annotation(simulate_points(label_image, 0).points, region=rectangle(0, 0, 60, SIDE))
    labels = cluster_labels(image, annotation, 0)
    other = image.copy()
    other[:, 60:] = np.random.default_rng(1).integers(0, 256, other[:, 60:].shape)
    assert np.array_equal(labels, cluster_labels(other, annotation, 0))
    other[:, :60] = np.random.default_rng(1).integers(0, 256, other[:, :60].shape)
    assert not np.array_equal(labels, cluster_labels(other, annotation, 0))


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
    assert (label_image == 0)[labels == 0].all()
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


def real(data_root: Path, kind: str) -> tuple[NDArray[np.uint8], Labels]:
    """Return the first image with that kind of instance masks, and its label image."""
    with (data_root / "nuclei" / "manifest.csv").open(newline="") as stream:
        row = next(row for row in csv.DictReader(stream) if row["label_kind"] == kind)
    image = np.asarray(PIL.Image.open(data_root / "nuclei" / row["image"]).convert("RGB"))
    return image, np.asarray(PIL.Image.open(data_root / "nuclei" / row["label_map"])).astype(np.int32)


@pytest.mark.parametrize("kind", ["instance_xml", "instance_masks"])
def test_real_nuclei(data_root: Path, tmp_path: Path, kind: str) -> None:
    image, label_image = real(data_root, kind)
    inside = label_image > 0
    annotation = simulate_points(label_image, 0)
    assert sorted(label_image[pixels(annotation)]) == list(np.unique(label_image)[1:])
    write_annotation(tmp_path / "points.csv", annotation)
    assert np.array_equal(read_annotation(tmp_path / "points.csv", *inside.shape).points, annotation.points)
    check_scribbles(label_image, 0)

    voronoi = voronoi_labels(annotation, *inside.shape)
    assert inside[voronoi == 1].mean() > 0.9
    clusters = cluster_labels(image, annotation, 0)
    # By chance, a label is wrong as often as the other class occurs. These are wrong about half as often, or less.
    assert inside[voronoi == 0].mean() < 0.6 * inside.mean()
    assert (~inside)[clusters == 1].mean() < 0.5 * (~inside).mean()
    assert inside[clusters == 0].mean() < 0.5 * inside.mean()
    assert (clusters == 1)[inside].mean() > 0.4
    # Control: the same labels, turned by half, are no better than chance.
    turned = clusters[::-1, ::-1]
    assert not (~inside)[turned == 1].mean() < 0.5 * (~inside).mean()
    assert not inside[turned == 0].mean() < 0.5 * inside.mean()
