"""What a pathologist asks of a segmentation, in numbers; every definition is in ``docs/quantities.md``."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.spatial import KDTree

from models.errors import Refusal
from models.objects import Segmentation

Floats = NDArray[np.float64]

SPACINGS_MM = 1e-6, 1e3
"""A pixel may be this large: no microscope or camera goes beyond, and what is derived stays a number."""
MAX_CUTS = 50_000_000
"""Vertices to be compared with objects, over all regions of an image: some ten seconds; what people draw needs a tenth."""
OVERHEAD = 200
"""Vertices that take as long as what cutting an object costs anyway."""


def quantities(
    segmentation: Segmentation, spacing_mm: tuple[float, float] | None, region: Floats | None = None
) -> dict[str, Any]:
    """Measure the objects of a segmentation, or those of one region of it: see :class:`Measured`."""
    return Measured(segmentation, spacing_mm).within(region)


class Measured:
    """The objects of a segmentation, measured once, for any number of regions.

    Parameters
    ----------
    segmentation : Segmentation
    spacing_mm : (float, float) or None
        Distance of the image's rows and of its columns; values outside :data:`SPACINGS_MM` count as unknown.
    """

    def __init__(self, segmentation: Segmentation, spacing_mm: tuple[float, float] | None) -> None:
        known = spacing_mm is not None and all(SPACINGS_MM[0] <= value <= SPACINGS_MM[1] for value in spacing_mm)
        self.spacing_um = (1000 * spacing_mm[0], 1000 * spacing_mm[1]) if known and spacing_mm is not None else None
        left, top = segmentation.origin
        rows, columns = segmentation.label_image.shape
        self.segmented = shapely.box(left, top, left + columns, top + rows)
        self.polygons = np.array([shapely.Polygon(item.polygon) for item in segmentation.objects], dtype=object)
        self.area = np.array([item.area for item in segmentation.objects], np.float64)
        self.solidity = self.area / shapely.area(shapely.convex_hull(self.polygons)).astype(np.float64)
        centres, moments = _moments(segmentation.label_image, len(self.area))
        self.centroid = centres + segmentation.origin
        row, column = self.spacing_um or (1.0, 1.0)
        self.eccentricity = _eccentricity(moments * (column**2, row**2, row * column))
        self.nearest_px = _nearest(self.centroid)
        self.nearest_um = _nearest(self.centroid * (column, row))
        self._cuts_left = MAX_CUTS

    def within(self, region: Floats | None) -> dict[str, Any]:
        """Summarise the whole, or a region.

        Parameters
        ----------
        region : ndarray, float64, shape (V, 2), or None
            A valid polygon (x, y) in original pixels, corner origin. What of it lies outside what was segmented does not count.

        Returns
        -------
        dict
            ``count``; ``density_per_mm2`` where the spacing is known, else ``density_per_megapixel``; ``area_fraction``;
            ``area_px``, ``eccentricity`` and ``solidity`` (each mean, sd, q1, median, q3); ``nearest_neighbour_px`` (q1, median,
            q3); where the spacing is known ``area_um2`` and ``nearest_neighbour_um`` too. None where a value is not defined.

        Raises
        ------
        Refusal
            ``bad_request`` if the regions so far have :data:`MAX_CUTS` vertices to be compared with objects, and more.
        """
        ground: shapely.Geometry = self.segmented
        inside: NDArray[np.bool_] = np.ones(len(self.area), np.bool_)
        covered = self.area
        if region is not None:
            ground = shapely.intersection(self.segmented, shapely.Polygon(region))
            shapely.prepare(ground)
            inside = np.asarray(shapely.intersects_xy(ground, *self.centroid.T), np.bool_)
            covered = self._covered(ground)
        count, pixels = int(np.count_nonzero(inside)), float(shapely.area(ground))
        found: dict[str, Any] = {"count": count}
        if self.spacing_um is None:
            found["density_per_megapixel"] = count / pixels * 1e6 if pixels > 0 else None
        else:
            pixel_um2 = self.spacing_um[0] * self.spacing_um[1]
            found["density_per_mm2"] = count / (pixels * pixel_um2) * 1e6 if pixels > 0 else None
        # The sum may exceed the whole by a rounding error
        found["area_fraction"] = min(float(covered.sum()) / pixels, 1.0) if pixels > 0 else None
        found["area_px"] = _distribution(self.area[inside])
        found["eccentricity"] = _distribution(self.eccentricity[inside])
        found["solidity"] = _distribution(self.solidity[inside])
        found["nearest_neighbour_px"] = _quartiles(self.nearest_px[inside])
        if self.spacing_um is not None:
            found["area_um2"] = _distribution(self.area[inside] * pixel_um2)
            found["nearest_neighbour_um"] = _quartiles(self.nearest_um[inside])
        return found

    def _covered(self, ground: shapely.Geometry) -> Floats:
        """Return the area of each object's part inside a prepared region."""
        covered = np.where(shapely.contains_properly(ground, self.polygons), self.area, 0.0)
        cut = (covered == 0) & shapely.intersects(ground, self.polygons)
        self._cuts_left -= int(np.count_nonzero(cut)) * (int(shapely.get_num_coordinates(ground)) + OVERHEAD)
        if self._cuts_left < 0:
            raise Refusal("bad_request", "The regions' outlines cut too many objects; draw them with fewer vertices.")
        covered[cut] = shapely.area(shapely.intersection(ground, self.polygons[cut]))
        return covered


def _moments(labels: NDArray[np.int32], count: int) -> tuple[Floats, Floats]:
    """Return the centroids (N, 2), corner origin, and the second central moments (N, 3): of x, of y, mixed."""
    rows, columns = np.nonzero(labels)
    owner = labels[rows, columns] - 1
    size = np.bincount(owner, minlength=count)

    def mean(values: NDArray[Any]) -> Floats:
        return np.asarray(np.bincount(owner, values, minlength=count) / size)

    x, y = mean(columns), mean(rows)
    dx, dy = columns - x[owner], rows - y[owner]
    # Pixels are squares, not points: 1/12 is the variance inside one
    return np.stack([x, y], axis=1) + 0.5, np.stack([mean(dx * dx) + 1 / 12, mean(dy * dy) + 1 / 12, mean(dx * dy)], axis=1)


def _eccentricity(moments: Floats) -> Floats:
    """Return the eccentricity, shape (N,), of the ellipses with these second moments (N, 3)."""
    xx, yy, xy = moments.T
    half, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    return np.asarray(np.sqrt(np.clip(2 * spread / (half + spread), 0.0, 1.0)))


def _nearest(centroids: Floats) -> Floats:
    """Return each centroid's distance to the nearest other one, NaN where there is none."""
    if len(centroids) < 2:
        return np.full(len(centroids), np.nan)
    distances, _ = KDTree(centroids).query(centroids, k=2)
    return np.asarray(distances[:, 1], np.float64)


def _quartiles(values: Floats) -> dict[str, float | None]:
    """Return the quartiles of the values that are defined, interpolated linearly; None of none."""
    values = values[np.isfinite(values)]
    if not len(values):
        return {"q1": None, "median": None, "q3": None}
    q1, median, q3 = np.quantile(values, [0.25, 0.5, 0.75])
    return {"q1": float(q1), "median": float(median), "q3": float(q3)}


def _distribution(values: Floats) -> dict[str, float | None]:
    """Return mean, standard deviation (of a sample: n - 1) and quartiles; None where too few values define them."""
    mean = float(values.mean()) if len(values) else None
    return {"mean": mean, "sd": float(values.std(ddof=1)) if len(values) > 1 else None, **_quartiles(values)}
