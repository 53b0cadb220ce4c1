"""Agreement of readers: kappa as scikit-learn has it, overlaps as geometry says."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from models.agreement import annotation_likeness, cohen_kappa, same_class
from models.annotation import Annotation, Scribble


def square(x: float, y: float, side: float) -> np.ndarray:
    return np.array([[x, y], [x + side, y], [x + side, y + side], [x, y + side]], float)


def points(*values: tuple[float, float]) -> Annotation:
    return Annotation(np.array(values, float).reshape(-1, 2))


@pytest.mark.parametrize("seed", range(20))
def test_kappa_is_scikit_learns(seed: int) -> None:
    random = np.random.default_rng(seed)
    first = random.choice(["a", "b", "c"], 40, p=[0.6, 0.3, 0.1])
    second = np.where(random.random(40) < 0.7, first, random.choice(["a", "b", "c"], 40))
    assert cohen_kappa(list(first), list(second)) == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)


def test_kappa_of_the_textbook() -> None:
    # Cohen's setting in small: 20 both yes, 15 both no, 5 yes-no, 10 no-yes: observed 0.7, by chance 0.5
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)


def test_kappa_is_not_defined_without_two_classes_and_refuses_two_lengths() -> None:
    assert cohen_kappa(["a", "a"], ["a", "a"]) is None
    assert cohen_kappa([], []) is None
    with pytest.raises(ValueError, match="same images"):
        cohen_kappa(["a"], [])


def test_classes() -> None:
    assert same_class("a", "a").agree
    assert same_class("a", "b") == same_class("b", "a")
    assert not same_class("a", "b").agree


@pytest.mark.parametrize(("shift", "dice"), [(0, 1.0), (2, 0.8), (5, 0.5), (10, 0.0), (20, 0.0)])
def test_dice_of_two_squares(shift: float, dice: float) -> None:
    found = annotation_likeness(Annotation(polygons=(square(0, 0, 10),)), Annotation(polygons=(square(shift, 0, 10),)))
    assert (found.measure, found.value) == ("dice", pytest.approx(dice))
    assert found.agree == (dice >= 0.7)


def test_overlapping_outlines_count_once() -> None:
    twice = Annotation(polygons=(square(0, 0, 10), square(0, 0, 10)))
    assert annotation_likeness(twice, Annotation(polygons=(square(0, 0, 10),))).value == pytest.approx(1)


def test_points_are_paired_one_to_one_within_the_distance() -> None:
    found = annotation_likeness(points((10, 10), (100, 100)), points((10, 21.9), (300, 300), (100, 112.1)))
    assert (found.measure, found.value, found.agree) == ("f1", pytest.approx(2 * 1 / 5), False)
    # two clicks in one nucleus pair with one only
    assert annotation_likeness(points((10, 10), (11, 10)), points((10, 10))).value == pytest.approx(2 / 3)
    # A nearest-first pairing would take the middle one and leave 20 alone
    assert annotation_likeness(points((0, 0), (9, 0)), points((10, 0), (20, 0))).value == pytest.approx(1)


def test_a_point_within_an_outline_is_the_same_object() -> None:
    outlines = Annotation(polygons=(square(0, 0, 100),))
    assert annotation_likeness(points((50, 50)), outlines).value == 1
    assert annotation_likeness(points((150, 50)), outlines).value == 0
    stroke = Annotation(scribbles=(Scribble("foreground", np.array([[150.0, 50], [160, 50]])),))
    assert annotation_likeness(stroke, outlines).value == 0
    assert annotation_likeness(stroke, points((155, 55))).value == 1


def test_only_the_part_that_both_marked_counts() -> None:
    left = Annotation(np.array([[10.0, 10]]), region=square(0, 0, 50))
    both = points((10, 10), (90, 90))
    assert annotation_likeness(left, both).value == 1
    assert annotation_likeness(points((10, 10)), both).value == pytest.approx(2 / 3)
    away = Annotation(np.array([[90.0, 90]]), region=square(60, 60, 39))
    assert annotation_likeness(left, away) == annotation_likeness(away, left)
    assert annotation_likeness(left, away).value is None
    assert not annotation_likeness(left, away).agree


def test_many_points_are_paired_quickly() -> None:
    grid = np.stack(np.meshgrid(np.arange(150.0), np.arange(150.0)), -1).reshape(-1, 2) * 30
    assert annotation_likeness(Annotation(grid), Annotation(grid + 5)).value == 1
