"""Objects, doubts and regions of a segmenter's package, on drawn nuclei whose pixels are known."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from models.errors import Refusal
from models.image import Image
from models.imaging import read_image
from models.segmenter import SegmenterPredictor

Make = Callable[..., Path]


def draw(rows: int, columns: int, discs: list[tuple[float, float, float]], dark: int = 40) -> np.ndarray:
    """Draw dark discs (x, y, radius), corner origin, on a bright ground: uint8 (rows, columns, 3), pink."""
    y, x = np.mgrid[0:rows, 0:columns] + 0.5
    picture = np.empty((rows, columns, 3), np.uint8)
    picture[:] = (240, 200, 220)
    for left, top, radius in discs:
        picture[(x - left) ** 2 + (y - top) ** 2 <= radius**2] = (dark, dark, dark + 60)
    return picture


def image(picture: np.ndarray) -> Image:
    stream = BytesIO()
    PIL.Image.fromarray(picture).save(stream, "PNG")
    return read_image(stream.getvalue())


@pytest.fixture(scope="module")
def predictor(make_segmenter: Make) -> SegmenterPredictor:
    return SegmenterPredictor.load(make_segmenter())


def code(call: Callable[[], object]) -> str:
    with pytest.raises(Refusal) as caught:
        call()
    return caught.value.code


def test_objects_are_the_drawn_discs(predictor: SegmenterPredictor) -> None:
    discs = [(30.5, 25.5, 9.0), (100.0, 60.0, 7.0), (140.5, 12.0, 8.0), (64.0, 64.0, 10.0)]  # the last across four tiles
    segmentation, foreground = predictor.predict(image(draw(130, 170, discs)))
    assert foreground.shape == segmentation.label_image.shape == (130, 170)
    assert foreground.dtype == np.float32
    assert segmentation.label_image.dtype == np.int32
    assert len(segmentation.objects) == 4
    for label, found in enumerate(segmentation.objects, start=1):
        rows, columns = np.nonzero(segmentation.label_image == label)
        centre = np.array([columns.mean() + 0.5, rows.mean() + 0.5])
        left, top, radius = min(discs, key=lambda disc: np.hypot(*(centre - disc[:2])))
        assert np.hypot(*(centre - (left, top))) < 0.3
        y, x = np.mgrid[0:130, 0:170] + 0.5
        assert found.area == np.count_nonzero((x - left) ** 2 + (y - top) ** 2 <= radius**2) == len(rows)
        assert 0.99 < found.score <= 1
        assert abs(found.polygon.mean(axis=0) - (left, top)).max() < 1
