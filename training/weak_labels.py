"""Labels of pixels from what an expert marked: 1 nucleus, 0 background, IGNORE where nothing is known.

All label arrays are int8 of shape (rows, columns). What was drawn (outlines, strokes) is taken as it is; an outline or a stroke
on a nucleus stands for its nucleus like a point does. Outside the annotated region everything is IGNORE. No nucleus marked at
all means that there is none: then the region is background. Where an annotation says that only some nuclei are marked
(:attr:`models.annotation.Annotation.complete`), nothing is background for being far from marks, or halfway between two of them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_closing, distance_transform_edt, label
from skimage.draw import line, polygon
from sklearn.cluster import KMeans

from models.annotation import Annotation

Bools = NDArray[np.bool_]
Coordinates = NDArray[np.float64]
WeakLabels = NDArray[np.int8]
IGNORE = -1

VORONOI_RADIUS = 2  # pixels around a point that are surely nucleus
NEAR_RADIUS = 5  # pixels around a point that are mostly nucleus: what the background's cluster avoids
COLOUR_SCALE = 10.0
FARTHEST = 20.0
SMALLEST_PIECE = 30  # pixels
FITTED_PIXELS = 50_000


def point_labels(annotation: Annotation, rows: int, columns: int, radius: float) -> WeakLabels:
    """Return a disc of nucleus around each point, and what was drawn; the rest is ignored.

    Parameters
    ----------
    annotation : Annotation
    rows, columns : int, pixels
    radius : float, pixels
        Between pixel centres; 0 is the point's pixel alone.
    """
    labels = _blank(annotation, marked_nuclei(annotation, rows, columns))
    labels[_near_points(annotation, rows, columns, radius)] = 1
    return _finished(labels, annotation)


def voronoi_labels(annotation: Annotation, rows: int, columns: int) -> WeakLabels:
    """Return background on the lines halfway between neighbours, nucleus at the points; the rest is ignored.

    A pixel is on a line if the one below or to the right is nearest to another nucleus: lines are one pixel wide. With two, one
    on each side, they count twice against the points, and nuclei come out too small (docs/LOG.md). Where a line meets a point's
    disc, the disc wins. One nucleus has no neighbour, so there is no line. Nor is there any where only some nuclei are marked: an
    unmarked one may lie halfway between two marks as well as anywhere else, however near they are to each other.

    Parameters
    ----------
    annotation : Annotation
    rows, columns : int, pixels

    References
    ----------
    Yoo, Yoo and Paeng, "PseudoEdgeNet: Nuclei Segmentation only with Point Annotations", MICCAI 2019, arXiv:1906.02924; Qu et
    al., "Weakly Supervised Deep Nuclei Segmentation using Points Annotation in Histopathology Images", MIDL 2019: the radius.
    """
    sites = marked_nuclei(annotation, rows, columns)
    labels = _blank(annotation, sites)
    if sites.any() and annotation.complete:
        row, column = distance_transform_edt(sites == 0, return_distances=False, return_indices=True)
        nearest = sites[row, column]
        labels[:-1][nearest[:-1] != nearest[1:]] = 0
        labels[:, :-1][nearest[:, :-1] != nearest[:, 1:]] = 0
    labels[_near_points(annotation, rows, columns, VORONOI_RADIUS)] = 1
    return _finished(labels, annotation)


def cluster_labels(image: NDArray[np.uint8], annotation: Annotation, seed: int) -> WeakLabels:
    """Return nucleus and background by colour and nearness to the points; what is neither is ignored.

    The pixels fall into three clusters by RGB / 10 and the distance to the nearest point, at most 20 pixels. Nucleus is the
    cluster that holds most points, without pieces under 30 pixels and with gaps of up to four pixels closed. Background is, of
    the other two, the one that overlaps discs of radius 5 around the points least. The third is ignored. The clusters are
    fitted to at most 50,000 pixels of the region, drawn at random; the paper uses all. With fewer than three different pixels
    nothing can be clustered: all but what was drawn is ignored. Without a nucleus in the region, what is 20 pixels or more from
    any nucleus is background.

    Where only some nuclei are marked, being far from every mark says nothing: the clusters are by colour alone, which is that of
    unmarked nuclei too, and nucleus is what is within 20 pixels of a mark. Without a nucleus in the region all is ignored then.

    Parameters
    ----------
    image : ndarray, uint8, shape (rows, columns, 3)
    annotation : Annotation
    seed : int

    References
    ----------
    Qu et al., "Weakly Supervised Deep Nuclei Segmentation using Points Annotation in Histopathology Images", MIDL 2019;
    radii, sizes and the closing as in the authors' program.
    """
    rows, columns = image.shape[:2]
    labels = np.full((rows, columns), IGNORE, np.int8)
    sites = marked_nuclei(annotation, rows, columns) > 0
    inside = known_region(annotation, rows, columns)
    distance = distance_transform_edt(~sites) if sites.any() else np.full((rows, columns), np.inf)
    if not (sites & inside).any():
        if annotation.complete:
            labels[distance >= FARTHEST] = 0
        return _finished(labels, annotation)
    nearness = [np.minimum(distance, FARTHEST)] if annotation.complete else []
    features = np.dstack([image / COLOUR_SCALE, *nearness])[inside]
    fitted = features[np.random.default_rng(seed).permutation(len(features))[:FITTED_PIXELS]]
    if len(np.unique(fitted, axis=0)) < 3:
        return _finished(labels, annotation)
    clusters = np.full((rows, columns), -1)
    clusters[inside] = KMeans(3, n_init=3, random_state=seed).fit(fitted).predict(features)
    nucleus = int(np.argmax(np.bincount(clusters[sites & inside], minlength=3)))
    overlaps = np.bincount(clusters[(distance <= NEAR_RADIUS) & inside], minlength=3)
    background = min(set(range(3)) - {nucleus}, key=lambda cluster: int(overlaps[cluster]))
    labels[clusters == background] = 0
    labels[_refined(clusters == nucleus) & (annotation.complete | (distance <= FARTHEST))] = 1
    return _finished(labels, annotation)


def _blank(annotation: Annotation, sites: NDArray[np.int32]) -> WeakLabels:
    """Return labels that know nothing, or background where no mark of a complete annotation says that there is no nucleus."""
    return np.full(sites.shape, 0 if annotation.complete and not sites.any() else IGNORE, np.int8)


def _refined(nuclei: Bools) -> Bools:
    """Remove small pieces and close gaps of up to four pixels."""
    pieces, _ = label(nuclei, structure=np.ones((3, 3)))
    large = np.bincount(pieces.ravel()) >= SMALLEST_PIECE
    large[0] = False
    # Beyond the edge counts as background in a closing, which would eat into nuclei there; so the picture is widened first.
    closed: Bools = binary_closing(np.pad(large[pieces], 2, mode="edge"), iterations=2)[2:-2, 2:-2]
    return closed


def known_region(annotation: Annotation, rows: int, columns: int) -> Bools:
    """Return the pixels whose centre lies in the annotated region."""
    inside = np.full((rows, columns), annotation.region is None)
    if annotation.region is not None:
        inside[_filled(annotation.region, rows, columns)] = True
    return inside


def _filled(outline: Coordinates, rows: int, columns: int) -> tuple[Any, Any]:
    """Return rows and columns of the pixels whose centre lies in an outline."""
    # scikit-image's pixel (0, 0) has its centre at 0, 0; ours at 0.5, 0.5.
    x, y = outline.T - 0.5
    inside: tuple[Any, Any] = polygon(y, x, (rows, columns))  # type: ignore[no-untyped-call]
    return inside


def _pixels(positions: Coordinates, rows: int, columns: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return rows and columns of the pixels that hold the positions; the far edges belong to the last pixel."""
    x, y = np.floor(positions).astype(np.intp).T
    return np.minimum(y, rows - 1), np.minimum(x, columns - 1)


def _stroke(positions: Coordinates, rows: int, columns: int) -> tuple[Any, Any]:
    """Return rows and columns of a line of pixels through the positions."""
    ends = np.stack(_pixels(positions, rows, columns), axis=1)
    y, x = np.hstack([line(*first, *second) for first, second in pairwise(ends)])  # type: ignore[no-untyped-call]
    return y, x


def marked_nuclei(annotation: Annotation, rows: int, columns: int) -> NDArray[np.int32]:
    """Return a label image of what stands for a nucleus: pixels of points, strokes and outlines, numbered from 1.

    An outline covers the points in it, so that one nucleus is not taken for two.
    """
    sites = np.zeros((rows, columns), np.int32)
    sites[_pixels(annotation.points, rows, columns)] = np.arange(1, len(annotation.points) + 1)
    drawn: list[Any] = [_stroke(s.line, rows, columns) for s in annotation.scribbles if s.label == "foreground"]
    drawn += [_filled(outline, rows, columns) for outline in annotation.polygons]
    for number, pixels in enumerate(drawn, len(annotation.points) + 1):
        sites[pixels] = number
    return sites


def _near_points(annotation: Annotation, rows: int, columns: int, radius: float) -> Bools:
    at_point = np.zeros((rows, columns), bool)
    at_point[_pixels(annotation.points, rows, columns)] = True
    return at_point if not at_point.any() else distance_transform_edt(~at_point) <= radius


def _finished(labels: WeakLabels, annotation: Annotation) -> WeakLabels:
    """Enter what was drawn, which is known, and ignore what was not looked at. Changes ``labels``."""
    rows, columns = labels.shape
    for outline in annotation.polygons:
        labels[_filled(outline, rows, columns)] = 1
    for scribble in annotation.scribbles:
        labels[_stroke(scribble.line, rows, columns)] = scribble.label == "foreground"
    labels[~known_region(annotation, rows, columns)] = IGNORE
    return labels
