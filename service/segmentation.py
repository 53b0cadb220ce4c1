"""A segmentation on its way to the store and back, and what is answered beside it.

What separates, measures and draws objects is imported where it is used: a service of classifiers starts without it.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.errors import Refusal
from models.image import Box, Image
from models.objects import DetectedObject, Segmentation, TileDoubt
from service.schemas import Extras, ObjectAnswer, Picture, Quantities, RegionAnswer, SegmentationRecord, Tile
from service.wanted import Wanted

if TYPE_CHECKING:
    from models.geojson import Region

DOUBTFUL_REGIONS, DOUBTFUL_SIDE = 5, 200
"""How many regions are proposed for annotation at most, and their side in pixels."""
_QUICK = 1  # zlib's level: a fifth larger than the default, in a ninth of its time
_DOUBTS = ("predicted_loss", "loss_score", "loss_percentile", "domain_distance", "domain_percentile", "entropy")


def record_of(segmentation: Segmentation, image: Image, region: Box | None) -> SegmentationRecord:
    """Return what is stored of a segmentation beside its doubts."""
    from models.quantities import quantities
    from models.segmenter import doubtful_regions

    return SegmentationRecord(
        region=region,
        objects=[ObjectAnswer(polygon=item.polygon.tolist(), area=item.area, score=item.score) for item in segmentation.objects],
        quantities=Quantities.model_validate(quantities(segmentation, image.spacing_mm)),
        tiles=[Tile.model_validate(vars(tile)) for tile in segmentation.tiles],
        doubtful_regions=[
            Tile.model_validate(vars(tile)) for tile in doubtful_regions(segmentation, DOUBTFUL_REGIONS, DOUBTFUL_SIDE)
        ],
    )


def pack(record: SegmentationRecord) -> bytes:
    """Return the bytes that are stored."""
    return zlib.compress(record.model_dump_json().encode(), _QUICK)


def unpack(packed: bytes) -> SegmentationRecord:
    """Read the bytes that :func:`pack` gave."""
    return SegmentationRecord.model_validate_json(zlib.decompress(packed))


def restore(row: Mapping[str, Any], *, labelled: bool = True) -> Segmentation:
    """Return the segmentation of a row of ``results``, as it was made; its label image is empty where it need not be drawn."""
    record = unpack(row["segmentation"])
    x, y, width, height = record.region or (0, 0, row["columns"], row["rows"])
    objects = tuple(DetectedObject(np.array(item.polygon), item.area, item.score) for item in record.objects)
    polygons = [item.polygon for item in objects] if labelled else []
    return Segmentation(
        objects=objects,
        label_image=_drawn(polygons, (x, y), (height, width)),
        tiles=tuple(TileDoubt(**dict(tile)) for tile in record.tiles),
        features=np.frombuffer(row["features"], dtype="<f4"),
        origin=(x, y),
        **{name: row[name] for name in _DOUBTS},
    )


def _drawn(polygons: list[NDArray[np.float64]], origin: tuple[int, int], shape: tuple[int, int]) -> NDArray[np.int32]:
    """Draw outlines that follow the sides of pixels: 1..N inside of each, 0 elsewhere.

    Along a row an outline is entered at one of its upright sides and left at the next, so the running sum of the sides' labels,
    with the sides' directions as signs, is what lies there. All outlines are drawn at once.
    """
    steps = np.zeros((shape[0], shape[1] + 1), np.int32)
    if polygons:
        sizes = np.array([len(polygon) for polygon in polygons])
        corners = np.round(np.concatenate(polygons) - origin).astype(np.int64)
        following = np.arange(1, len(corners) + 1)
        following[np.cumsum(sizes) - 1] -= sizes  # after its last corner an outline goes on with its first
        down = corners[following, 1] - corners[:, 1]  # 0 where a side lies across
        lengths = np.abs(down)
        tops = np.minimum(corners[:, 1], corners[following, 1])
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        labels = np.sign(down) * np.repeat(np.arange(1, len(polygons) + 1), sizes)
        np.add.at(steps, (np.repeat(tops, lengths) + within, np.repeat(corners[:, 0], lengths)), np.repeat(labels, lengths))
    return np.abs(np.cumsum(steps, axis=1, dtype=np.int32)[:, :-1])


def read_regions(document: bytes | None, image: Image, region: Box | None) -> list[Region] | None:
    """Read the polygons that came with an image.

    Raises
    ------
    Refusal
        ``bad_request`` as :func:`models.geojson.regions` says, and for a polygon that leaves the region that is predicted.
    """
    if document is None:
        return None
    from models.geojson import regions

    found = regions(document, image.rows, image.columns)
    x, y, width, height = region or (0, 0, image.columns, image.rows)
    for number, item in enumerate(found, 1):
        # Outside, nothing was looked for: that there is nothing would be made up
        if (item.polygon < (x, y)).any() or (item.polygon > (x + width, y + height)).any():
            raise Refusal("bad_request", f"Region {number} leaves the part of the image that is predicted.")
    return found


def beside(row: Mapping[str, Any], image: Image, wanted: Wanted, regions: list[Region] | None) -> Extras:
    """Make what was asked for beside a result, from what is stored of it: the network need not run again.

    Raises
    ------
    Refusal
        ``bad_request`` if a label image cannot number all objects, or the regions ask for too much work.
    """
    if not wanted.label_image and not wanted.overlay and regions is None:
        return Extras()
    segmentation = restore(row)
    return Extras(
        label_image=_label_image(segmentation) if wanted.label_image else None,
        overlay=_overlay(image, segmentation) if wanted.overlay else None,
        regions=None if regions is None else _measure(segmentation, image, regions),
    )


def _label_image(segmentation: Segmentation) -> Picture:
    from models.pictures import label_png

    return _picture(label_png(segmentation.label_image))


def _overlay(image: Image, segmentation: Segmentation) -> Picture:
    from models.pictures import overlay_png, shown_picture
    from models.segmenter import display_values

    (x, y), (height, width) = segmentation.origin, segmentation.label_image.shape
    shown = shown_picture(display_values(image, (x, y, width, height)), image.rendering)
    return _picture(overlay_png(shown, segmentation.label_image))


def _picture(png: bytes) -> Picture:
    return Picture(media_type="image/png", data=base64.b64encode(png).decode())


def _measure(segmentation: Segmentation, image: Image, regions: list[Region]) -> list[RegionAnswer]:
    from models.quantities import Measured

    measured = Measured(segmentation, image.spacing_mm)
    return [RegionAnswer(name=item.name, quantities=Quantities.model_validate(measured.within(item.polygon))) for item in regions]
