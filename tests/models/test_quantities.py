"""Quantities of drawn shapes whose answers follow from their equations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.errors import Refusal
from models.objects import Segmentation
from models.quantities import Measured, quantities
from models.separation import describe, outlines

ROOT = Path(__file__).resolve().parents[2]


def segmentation(labels: np.ndarray, origin: tuple[int, int] = (0, 0)) -> Segmentation:
    labels = labels.astype(np.int32)
    found = describe(labels, outlines(labels)[1], np.ones(labels.shape, np.float32), origin)
    doubts = dict.fromkeys(
        ("predicted_loss", "loss_score", "loss_percentile", "domain_distance", "domain_percentile", "entropy"), 0.0
    )
    return Segmentation(found, labels, (), features=np.zeros(1, np.float32), origin=origin, **doubts)


def squares(*corners: tuple[int, int], side: int = 10, shape: tuple[int, int] = (100, 200)) -> np.ndarray:
    """Label squares by their upper left corners (x, y)."""
    labels = np.zeros(shape, np.int32)
    for label, (x, y) in enumerate(corners, start=1):
        labels[y : y + side, x : x + side] = label
    return labels


def ellipse(a: float, b: float, angle: float, shape: tuple[int, int] = (200, 200)) -> np.ndarray:
    """Label one ellipse in the middle, its long half axis ``a`` turned by ``angle`` (radians)."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]] + 0.5
    x, y = x - shape[1] / 2, y - shape[0] / 2
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return ((along / a) ** 2 + (across / b) ** 2 <= 1).astype(np.int32)


def test_squares_have_exact_answers() -> None:
    found = quantities(segmentation(squares((0, 0), (30, 0), (30, 40))), None)
    assert found["count"] == 3
    assert found["density_per_megapixel"] == pytest.approx(3 / 20_000 * 1e6)
    assert found["area_fraction"] == pytest.approx(300 / 20_000)
    assert found["area_px"] == {"mean": 100, "sd": 0, "q1": 100, "median": 100, "q3": 100}
    assert found["eccentricity"]["mean"] == pytest.approx(0, abs=1e-6)
    assert found["solidity"]["mean"] == pytest.approx(1)
    assert found["nearest_neighbour_px"] == {"q1": 30, "median": 30, "q3": 35}  # 30, 30 and 40
    assert not [key for key in found if "mm" in key or "um" in key]


def test_spread_and_quartiles_of_areas() -> None:
    labels = np.zeros((50, 50), np.int32)
    for index, side in enumerate((1, 2, 3, 4)):
        labels[10 * index : 10 * index + side, :side] = index + 1
    areas = np.array([1, 4, 9, 16])
    assert quantities(segmentation(labels), None)["area_px"] == {
        "mean": 7.5, "sd": pytest.approx(np.std(areas, ddof=1)), "q1": 3.25, "median": 6.5, "q3": 10.75,
    }  # fmt: skip


@pytest.mark.parametrize("angle", [0.0, 0.4, np.pi / 2, 2.2])
def test_eccentricity_of_ellipses(angle: float) -> None:
    found = quantities(segmentation(ellipse(60, 30, angle)), None)
    assert found["eccentricity"]["median"] == pytest.approx(np.sqrt(1 - 0.25), abs=2e-3)
    assert found["area_px"]["median"] == pytest.approx(np.pi * 60 * 30, rel=5e-3)
    assert found["solidity"]["median"] > 0.97
    rounder = quantities(segmentation(ellipse(60, 45, angle)), None)  # the control
    assert rounder["eccentricity"]["median"] < found["eccentricity"]["median"] - 0.1


def test_eccentricity_of_a_rectangle_counts_pixels_as_squares() -> None:
    labels = np.zeros((40, 40), np.int32)
    labels[5:6, 3:7] = 1  # 4 x 1 pixels: points in a row would have 1 exactly
    assert quantities(segmentation(labels), None)["eccentricity"]["mean"] == pytest.approx(np.sqrt(1 - 1 / 16))


def test_a_disc_of_anisotropic_pixels() -> None:
    """What is a disc in the tissue is an ellipse on the grid: only the spacing tells."""
    y, x = np.mgrid[0:200, 0:200] + 0.5
    labels = (((x - 100) * 0.5) ** 2 + ((y - 100) * 1.0) ** 2 <= 40**2).astype(np.int32)  # columns 0.5 um, rows 1 um
    found = quantities(segmentation(labels), (0.001, 0.0005))
    assert found["eccentricity"]["mean"] < 0.05
    assert found["area_um2"]["mean"] == pytest.approx(np.pi * 40**2, rel=5e-3)
    assert quantities(segmentation(labels), None)["eccentricity"]["mean"] == pytest.approx(np.sqrt(0.75), abs=5e-3)
    assert quantities(segmentation(labels), (0.0005, 0.001))["eccentricity"]["mean"] > 0.9  # rows and columns exchanged


def test_solidity_of_a_cross() -> None:
    labels = np.zeros((60, 60), np.int32)
    labels[10:40, 20:30] = labels[20:30, 10:40] = 1  # five squares of 10; the hull adds four triangles of half a square
    assert quantities(segmentation(labels), None)["solidity"]["mean"] == pytest.approx(5 / 7)


def test_units_follow_the_spacing() -> None:
    found = quantities(segmentation(squares((0, 0), (30, 0), (0, 40))), (0.0005, 0.00025))
    assert found["density_per_mm2"] == pytest.approx(3 / (100 * 0.0005 * 200 * 0.00025))
    assert "density_per_megapixel" not in found
    assert found["area_um2"]["median"] == pytest.approx(100 * 0.5 * 0.25)
    assert found["nearest_neighbour_um"]["q1"] == pytest.approx(7.5)  # 30 columns of 0.25 um, before 40 rows of 0.5 um
    assert found["nearest_neighbour_um"]["q3"] == pytest.approx((7.5 + 20) / 2)
    assert found["nearest_neighbour_px"]["q3"] == 35
    for unknown in (None, (0.0, 0.001), (0.001, -1.0), (np.nan, 0.001), (np.inf, 0.001)):
        assert "density_per_megapixel" in quantities(segmentation(squares((0, 0))), unknown)


@pytest.mark.parametrize("value", [1e-308, 1e-200, 1e-7, 0.0, -1.0, 1e4, 1e160, 1e308, np.inf, np.nan])
def test_a_spacing_that_no_image_has_is_unknown(value: float) -> None:
    found = segmentation(squares((0, 0), (30, 40)))
    for spacing in ((value, 1e-3), (1e-3, value), (value, value)):
        assert quantities(found, spacing) == quantities(found, None)
    for extreme in (1e-6, 1e3):  # the limits belong to what is known
        assert np.isfinite(quantities(found, (extreme, extreme))["density_per_mm2"])


def comb(teeth: int, width: float, height: float) -> np.ndarray:
    """Return a polygon whose teeth, as wide as the gaps between them, hang from the upper edge."""
    left = np.arange(teeth)[:, None] * (width / teeth)
    x = left + np.array([0.0, 0.0, 0.5, 0.5]) * (width / teeth)
    y = np.broadcast_to([1.0, height, height, 1.0], x.shape)
    return np.concatenate([np.stack([x.ravel(), y.ravel()], axis=1), [[width, 1.0], [width, 0.0], [0.0, 0.0]]])


def test_regions_that_cut_everything_many_times_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comb of 400 vertices through each of 2,500 objects costs more than a thousand outlines as people draw them."""
    monkeypatch.setattr("models.quantities.MAX_CUTS", 500_000)
    found = segmentation(np.kron(np.arange(1, 2501).reshape(50, 50), np.pad(np.ones((4, 4), np.int32), 1)))
    outline = np.array([[0.0, 0.0], [250.0, 1.0], [251.0, 250.0]])
    assert Measured(found, None).within(outline)["count"] > 800
    with pytest.raises(Refusal, match="fewer vertices"):
        Measured(found, None).within(comb(100, 300, 300))
    measured = Measured(found, None)
    with pytest.raises(Refusal, match="fewer vertices"):  # many small ones are as much work
        list(map(measured.within, [outline] * 100))


def test_an_object_belongs_to_the_region_of_its_centroid() -> None:
    whole = segmentation(squares((0, 0), (30, 0), (46, 0)))  # centroids at x = 5, 35 and 51
    region = np.array([[0, 0], [50, 0], [50, 20], [0, 20]], np.float64)
    found = quantities(whole, None, region)
    assert found["count"] == 2
    assert found["density_per_megapixel"] == pytest.approx(2 / 1000 * 1e6)
    assert found["area_fraction"] == pytest.approx((100 + 100 + 40) / 1000)  # four columns of the third lie inside
    assert found["nearest_neighbour_px"] == {"q1": pytest.approx(19.5), "median": 23, "q3": pytest.approx(26.5)}  # 30 and 16
    assert quantities(whole, None, region + np.array([1, 0]))["count"] == 3  # the third centroid is on the boundary


def test_area_fraction_of_a_slanted_region_is_exact() -> None:
    whole = segmentation(squares((0, 0), side=100, shape=(100, 200)))
    triangle = np.array([[0, 0], [200, 0], [0, 100]], np.float64)
    # Of the triangle of 10,000, the square covers all but the small one right of x = 100
    assert quantities(whole, None, triangle)["area_fraction"] == pytest.approx(1 - 2500 / 10_000)


def test_a_region_in_a_segmented_part() -> None:
    part = segmentation(squares((0, 0), (30, 0), shape=(50, 50)), origin=(1000, 2000))
    found = quantities(part, None, np.array([[990, 1990], [1020, 1990], [1020, 2050], [990, 2050]], np.float64))
    assert found["count"] == 1
    assert found["area_fraction"] == pytest.approx(100 / (20 * 50))  # what is left of and above the part is unknown
    beside = quantities(part, None, np.array([[0, 0], [10, 0], [10, 10]], np.float64))
    assert beside["count"] == 0
    assert beside["density_per_megapixel"] is beside["area_fraction"] is None


def test_nothing_found_is_null_and_not_zero() -> None:
    found = quantities(segmentation(np.zeros((20, 20))), (0.001, 0.001))
    assert found["count"] == found["density_per_mm2"] == found["area_fraction"] == 0
    assert set(found["area_um2"].values()) == set(found["nearest_neighbour_um"].values()) == {None}
    alone = quantities(segmentation(squares((0, 0))), None)
    assert alone["area_px"]["sd"] is None
    assert set(alone["nearest_neighbour_px"].values()) == {None}


def test_measured_once_for_many_regions() -> None:
    whole = segmentation(squares((0, 0), (30, 0), (46, 0)))
    measured = Measured(whole, None)
    region = np.array([[0, 0], [50, 0], [50, 20], [0, 20]], np.float64)
    assert measured.within(region) == quantities(whole, None, region)
    assert measured.within(None) == quantities(whole, None)


def test_every_quantity_is_defined_in_the_docs() -> None:
    page = (ROOT / "docs" / "quantities.md").read_text()
    keys = {*quantities(segmentation(squares((0, 0))), None), *quantities(segmentation(squares((0, 0))), (0.001, 0.001))}
    defined = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert defined == keys
