"""Objects from foreground maps: touching ones apart, holes, small ones, and outlines that are exact to the pixel."""

from __future__ import annotations

import time

import numpy as np
import pytest
import shapely
from scipy import ndimage
from skimage.feature import peak_local_max

from models.card import ObjectSpec
from models.separation import FAR, _peaks, detect, distance_to_background, outlines, separate

SPEC = ObjectSpec(
    label="nucleus", threshold=0.5, separation="distance_watershed", smoothing=1.0, peak_distance=5, min_area=12, overlap=16,
    max_pixels=1_000_000, rule="given",
)  # fmt: skip


def discs(*found: tuple[float, float, float], shape: tuple[int, int] = (80, 120)) -> np.ndarray:
    """Draw discs (x, y, radius) as probabilities, float32: 0.9 inside, 0.1 outside."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]] + 0.5
    inside = np.zeros(shape, bool)
    for left, top, radius in found:
        inside |= (x - left) ** 2 + (y - top) ** 2 <= radius**2
    return np.where(inside, 0.9, 0.1).astype(np.float32)


def noise(seed: int, shape: tuple[int, int] = (90, 110), blur: float = 1.5) -> np.ndarray:
    """Draw smooth noise around 0.5: ragged parts with holes, corners that touch, parts at the edge."""
    values = ndimage.gaussian_filter(np.random.default_rng(seed).normal(0, 1, shape), blur)
    return (0.5 + 0.2 * values / values.std()).clip(0, 1).astype(np.float32)


def rasterised(polygon: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the pixels whose centres lie inside a polygon, by shapely."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]] + 0.5
    return shapely.contains_xy(shapely.Polygon(polygon), x, y)


def check(labels: np.ndarray) -> None:
    """Assert that every object is one valid and simple polygon that holds its pixels and no other."""
    owners, polygons = outlines(labels)
    assert list(owners) == list(range(1, labels.max() + 1))
    for owner, polygon in zip(owners, polygons, strict=True):
        shape = shapely.Polygon(polygon)
        assert shape.is_valid
        assert shapely.LinearRing(polygon).is_simple
        assert not np.array_equal(polygon[0], polygon[-1])
        assert shape.area == np.count_nonzero(labels == owner)
        np.testing.assert_array_equal(rasterised(polygon, labels.shape), labels == owner)
        turns = np.diff(np.vstack([polygon, polygon[:2]]), axis=0)
        assert ((turns[:-1] != 0).sum(axis=1) == 1).all()  # along the pixels' sides
        assert ((turns[:-1] * turns[1:]).sum(axis=1) == 0).all()  # every vertex is a corner


@pytest.mark.parametrize("shape", [(90, 110), (1, 40), (40, 1), (3, 400)])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98, 0.9999])
def test_distances_are_exact(shape: tuple[int, int], share: float) -> None:
    mask = np.random.default_rng(1).random(shape) < share
    mask[0, 0] = False
    np.testing.assert_allclose(distance_to_background(mask), ndimage.distance_transform_edt(mask), rtol=1e-6)


@pytest.mark.parametrize("side", [FAR // 2, FAR - 1, FAR, FAR + 1, 3 * FAR])
@pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0)])
def test_distances_far_from_any_background_are_exact(side: int, corner: tuple[int, int]) -> None:
    mask = np.ones((side, side + 7), bool)
    mask[corner] = False
    np.testing.assert_allclose(distance_to_background(mask), ndimage.distance_transform_edt(mask), rtol=1e-6)
    assert len(np.unique(distance_to_background(np.ones((side, 5), bool)))) == 1


def test_touching_discs_are_separated() -> None:
    labels = separate(discs((30, 40, 12), (50, 40, 12), (90, 40, 14)), SPEC)
    assert labels.dtype == np.int32
    assert labels.max() == 3
    assert len({labels[40, 30], labels[40, 50], labels[40, 90]}) == 3
    check(labels)
    one, _ = ndimage.label(discs((30, 40, 12), (50, 40, 12), (90, 40, 14)) > 0.5)
    assert one.max() == 2  # the control: without separation the two that touch are one
    left, right = np.count_nonzero(labels == labels[40, 30]), np.count_nonzero(labels == labels[40, 50])
    assert abs(left - right) < 0.1 * left


def test_a_single_ragged_disc_stays_one() -> None:
    foreground = discs((60, 40, 20))
    rng = np.random.default_rng(0)
    edge = np.abs(np.hypot(*(np.mgrid[0:80, 0:120] + 0.5 - np.array([40, 60])[:, None, None])) - 20) < 1.5
    foreground[edge] = rng.choice([0.1, 0.9], np.count_nonzero(edge))
    assert separate(foreground, SPEC).max() == 1
    assert separate(foreground, SPEC.model_copy(update={"smoothing": 0.0, "peak_distance": 1})).max() > 1  # the control


def test_the_threshold_belongs_to_the_object() -> None:
    foreground = np.full((20, 20), 0.25, np.float32)
    foreground[5:10, 5:10] = 0.5
    assert np.count_nonzero(separate(foreground, SPEC)) == 25
    assert np.count_nonzero(separate(foreground, SPEC.model_copy(update={"threshold": 0.51}))) == 0


def test_small_objects_are_dropped() -> None:
    foreground = np.zeros((40, 40), np.float32)
    foreground[2:5, 2:6] = 1  # 12 pixels
    foreground[20, 20:31] = 1  # 11 pixels
    labels = separate(foreground, SPEC)
    assert labels.max() == 1
    assert np.count_nonzero(labels) == 12


def test_parts_nearer_than_the_peak_distance_are_not_lost() -> None:
    foreground = np.zeros((40, 40), np.float32)
    foreground[5:20, 5:20] = 1
    foreground[5:20, 21:25] = 1  # a strip whose distance peaks lie in the shadow of the square's
    labels = separate(foreground, SPEC.model_copy(update={"peak_distance": 15}))
    assert labels.max() == 2
    assert np.count_nonzero(labels) == 15 * 15 + 15 * 4
    check(labels)


def test_a_pale_spot_is_filled_and_does_not_split() -> None:
    foreground = discs((60, 40, 15))
    foreground[38:41, 58:61] = 0.2
    labels = separate(foreground, SPEC)
    assert labels.max() == 1
    np.testing.assert_array_equal(labels == 1, discs((60, 40, 15)) > 0.5)


def test_what_an_object_encloses_belongs_to_it() -> None:
    ring = np.where(discs((60, 40, 30)) > 0.5, 1 - discs((60, 40, 24)), 0.1).astype(np.float32)
    island = np.maximum(ring, discs((60, 40, 6)))
    # One peak floods the whole ring: the distance is constant along it up to steps of the grid
    wide = SPEC.model_copy(update={"peak_distance": 80})
    labels = separate(island, wide)
    assert labels.max() == 1
    np.testing.assert_array_equal(labels == 1, discs((60, 40, 30)) > 0.5)
    check(labels)


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_pocket_closed_by_a_corner_is_filled(turns: int, mirrored: bool) -> None:
    """Two pixels that meet at a corner only would make the outline touch itself."""
    foreground = np.zeros((12, 12), np.float32)
    foreground[2:10, 2:10] = 1
    foreground[4:9, 4:9] = 0  # a pocket of 25 pixels, more than min_area,
    foreground[9, 9] = foreground[8, 9] = foreground[9, 8] = 0  # that opens at the corner (9, 9) of (8, 8) only
    foreground[8, 9] = foreground[9, 8] = 1
    whole = foreground.copy()
    whole[4:9, 4:9] = 1
    turn = np.rot90(foreground.T if mirrored else foreground, turns)
    owners, polygons = outlines(turn.astype(np.int32))
    assert list(owners) == [1, 1]
    assert [shapely.Polygon(polygon).area for polygon in polygons] == [63, 25]  # the outer one, then the pocket's
    labels = separate(turn, SPEC.model_copy(update={"peak_distance": 12}))
    np.testing.assert_array_equal(labels, np.rot90(whole.T if mirrored else whole, turns))
    check(labels)


@pytest.mark.parametrize("blur", [0.7, 1.5, 3.0])
@pytest.mark.parametrize("seed", range(6))
def test_outlines_of_noise_are_exact(seed: int, blur: float) -> None:
    foreground = noise(seed, blur=blur)
    labels, found = detect(foreground, SPEC.model_copy(update={"min_area": 3, "peak_distance": 3}), (100, 200))
    assert labels.max() > 5
    check(labels)
    assert len(found) == labels.max()
    for label, item in enumerate(found, start=1):
        assert item.area == np.count_nonzero(labels == label)
        assert item.score == pytest.approx(float(foreground[labels == label].mean()), abs=1e-6)
        np.testing.assert_array_equal(rasterised(item.polygon - (100, 200), labels.shape), labels == label)


def test_holes_are_told_from_outer_boundaries() -> None:
    labels = np.zeros((10, 20), np.int32)
    labels[1:6, 1:6] = 1
    labels[3, 3] = 0
    labels[2:5, 10:13] = 2
    owners, polygons = outlines(labels)
    assert list(owners) == [1, 1, 2]
    assert [shapely.Polygon(polygon).area for polygon in polygons] == [25, 1, 9]
    np.testing.assert_array_equal(polygons[2][np.lexsort(polygons[2].T)], [[10, 2], [13, 2], [10, 5], [13, 5]])


@pytest.mark.parametrize("apart", [1, 2, 5, 8])
@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_peaks_are_those_of_scikit_image(levels: int, apart: int) -> None:
    """The fewer levels, the more plateaus, where it matters which of the equally high comes first."""
    rng = np.random.default_rng(levels)
    for shape in ((1, 1), (1, 40), (3, 5), (60, 45)):
        heights = (rng.integers(0, levels, shape) / 7).astype(np.float32)
        expected = peak_local_max(heights, min_distance=apart, exclude_border=False)
        assert np.array_equal(_peaks(heights, apart), expected)
    assert len(_peaks(np.ones((9, 9), np.float32), apart)) == 0


def test_a_picture_of_stripes_takes_no_longer_than_its_pixels() -> None:
    """Every pixel of a ridge is as high as its neighbours: a search that compares all peaks takes 28 s here."""
    row, column = np.mgrid[:1000, :1000]
    stripes = np.where((row % 8 < 4) | (column < 4), 0.9, 0.1).astype(np.float32)
    started = time.process_time()
    assert detect(stripes, SPEC, (0, 0))[0].max() > 0
    assert time.process_time() - started < 10


def test_nothing_is_found_in_nothing_and_one_in_everything() -> None:
    assert separate(np.zeros((30, 40), np.float32), SPEC).max() == 0
    assert detect(np.zeros((30, 40), np.float32), SPEC, (0, 0))[1] == ()
    full = separate(np.ones((30, 40), np.float32), SPEC)
    assert (full == 1).all()
    check(full)


def test_the_same_map_gives_the_same_objects() -> None:
    foreground = noise(9)
    first, second = separate(foreground, SPEC), separate(foreground.copy(), SPEC)
    np.testing.assert_array_equal(first, second)
    firsts = [int(np.flatnonzero(first == label)[0]) for label in range(1, first.max() + 1)]
    assert firsts == sorted(firsts)  # numbered in reading order
