"""Weak labels on drawn nuclei with known answers, and on real ones: what they claim must be true of the masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.annotation import Annotation, Scribble, read_annotation
from tests.annotations import write_annotation
from tests.training.marked_nuclei import SIDE, at, nuclei, pixels, real, rectangle, stained
from training.simulated_annotations import simulate_points
from training.weak_labels import (
    IGNORE,
    WeakLabels,
    _refined,
    cluster_labels,
    point_labels,
    voronoi_labels,
)

EVERY: dict[str, Callable[[NDArray[np.uint8], Annotation], WeakLabels]] = {
    "point": lambda image, annotation: point_labels(annotation, *image.shape[:2], 2.0),
    "voronoi": lambda image, annotation: voronoi_labels(annotation, *image.shape[:2]),
    "cluster": lambda image, annotation: cluster_labels(image, annotation, 0),
}


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
    assert set(x) == {19}
    assert len(y) == 40
    assert (labels == 1).sum() == 26
    assert (labels[20, 10], labels[20, 12], labels[20, 13]) == (1, 1, IGNORE)


def test_no_pixel_of_a_line_is_far_from_equally_near() -> None:
    random = np.random.default_rng(3)
    points = random.uniform(0, SIDE, (30, 2))
    labels = voronoi_labels(Annotation(points), SIDE, SIDE)
    y, x = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    nearest, second = np.sort(np.hypot(x - points[:, 0, None, None], y - points[:, 1, None, None]), axis=0)[:2]
    # Points lie up to 0.71 pixels from their pixel's centre, and a line takes the pixel before it.
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
    assert set(np.nonzero(beside[15] == 0)[0]) == {29}


def test_a_stroke_on_a_nucleus_stands_for_it_like_a_point() -> None:
    line = np.array([[10.5, 5.5], [10.5, 30.5]])
    stroke = Annotation(np.array([[31.5, 20.5]]), (Scribble("foreground", line),))
    labels = voronoi_labels(stroke, 40, 60)
    assert set(np.nonzero(labels[20] == 0)[0]) == {20}
    assert np.nonzero(labels[2] == 0)[0].min() > 20, "the line bends round the stroke's end"
    on_background = Annotation(stroke.points, (Scribble("background", line),))
    assert not (voronoi_labels(on_background, 40, 60)[:, 15:] == 0).any()


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


def test_specks_are_dropped_and_cracks_closed() -> None:
    y, x = np.mgrid[0:80, 0:80]
    whole = (x % 40 < 18) & (y % 40 < 18)
    crack = (x % 40 >= 7) & (x % 40 < 11)
    specks = (x % 40 > 25) & (x % 40 < 31) & (y % 40 < 5)
    refined = _refined(whole & ~crack | specks)
    # A crack's open ends keep a notch of two pixels; at the image's edge it has none.
    notched = crack & (((y >= 40) & (y % 40 < 2)) | (y % 40 >= 16))
    assert np.array_equal(refined & ~notched, whole & ~notched)
    # Controls: a wider crack and a larger speck stay.
    wider = (x % 40 >= 7) & (x % 40 < 12)
    assert np.array_equal(_refined(whole & ~wider), whole & ~wider)
    larger = (x % 40 > 25) & (x % 40 < 31) & (y % 40 < 6)
    assert np.array_equal(_refined(whole | larger), whole | larger)


def test_clusters_with_nothing_to_tell_apart_know_nothing() -> None:
    grey = np.full((40, 40, 3), 200, np.uint8)
    only_one_pixel = at((20.5, 20.5), region=rectangle(20, 20, 21, 21))
    assert (cluster_labels(grey, only_one_pixel, 0) == IGNORE).all()
    # No nucleus within the region, but one that may reach in: what is near it is not known.
    labels = cluster_labels(grey, at((12.5, 20.5), region=rectangle(14, 0, 40, 40)), 0)
    assert labels[20, 14] == labels[20, 31] == IGNORE
    assert labels[20, 32] == labels[20, 39] == 0


def test_where_only_some_are_marked_an_unmarked_nucleus_is_no_background() -> None:
    label_image = np.zeros((60, 120), np.int32)
    y, x = np.mgrid[0:60, 0:120]
    for number, centre in enumerate((20, 40, 60, 100), start=1):
        label_image[np.hypot(x - centre, y - 30) <= 6] = number
    unmarked = np.isin(label_image, (2, 4))  # one halfway between the marked ones, one far from them
    some, all_of_them = (replace(at((20.5, 30.5), (60.5, 30.5)), complete=complete) for complete in (False, True))
    lines = voronoi_labels(all_of_them, 60, 120) == 0
    assert unmarked[lines].any()  # control: the line between two marks runs through the nucleus between them
    assert not (voronoi_labels(some, 60, 120) == 0).any()
    # Pale nuclei, so that nearness would outweigh colour
    colours = np.where((label_image > 0)[..., None], (190, 150, 190), (230, 180, 210))
    image = np.clip(colours + np.random.default_rng(0).normal(0, 3, colours.shape), 0, 255).astype(np.uint8)
    assert (cluster_labels(image, all_of_them, 0) == 0)[unmarked].mean() > 0.4  # control
    labels = cluster_labels(image, some, 0)
    assert not (labels == 0)[label_image > 0].any()
    assert (labels == 1)[np.isin(label_image, (1, 3))].all()
    assert (labels[label_image == 4] == IGNORE).all(), "the expert was never there"
    assert (labels[label_image == 0] == 0).mean() > 0.2
    # With a region, only what lies in it
    part = cluster_labels(image, replace(some, region=rectangle(0, 0, 50, 60)), 0)
    assert (part[:, 50:] == IGNORE).all()
    assert not (part == 0)[label_image > 0].any()


@pytest.mark.parametrize("name", EVERY)
def test_no_mark_where_only_some_are_marked_says_nothing(name: str) -> None:
    image = stained(nuclei())
    assert (EVERY[name](image, replace(at(), complete=False)) == IGNORE).all()
    assert (EVERY[name](image, at()) == 0).all()  # control


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


@pytest.mark.parametrize("kind", ["instance_xml", "instance_masks"])
def test_real_nuclei(data_root: Path, tmp_path: Path, kind: str) -> None:
    image, label_image = real(data_root, kind)
    inside = label_image > 0
    annotation = simulate_points(label_image, 0)
    assert sorted(label_image[pixels(annotation)]) == list(np.unique(label_image)[1:])
    write_annotation(tmp_path / "points.csv", annotation)
    assert np.array_equal(read_annotation(tmp_path / "points.csv", *inside.shape).points, annotation.points)

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
