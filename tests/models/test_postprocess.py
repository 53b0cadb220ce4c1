"""Heatmap pictures: size, scale, and which class they speak for."""

from io import BytesIO

import numpy as np
import PIL.Image
import pytest

from models.postprocess import HEATMAP_SIDE, heatmap_png
from tests.conftest import tiny_card, tiny_graph

CARD = tiny_card(tiny_graph())


def picture(heatmap: np.ndarray, rows: int = 64, columns: int = 64) -> tuple[np.ndarray, float]:
    png, peak = heatmap_png(heatmap.astype(np.float32), CARD, "pneumonia", rows, columns)
    return np.asarray(PIL.Image.open(BytesIO(png))), peak


def test_evidence_for_the_finding_is_bright_and_evidence_against_is_black() -> None:
    heatmap = np.zeros((2, 8, 8))
    heatmap[1, 1, 6] = 3.0  # for pneumonia: row 1, column 6
    heatmap[0, 6, 1] = 3.0  # against it
    grey, peak = picture(heatmap)
    assert peak == 3.0
    assert grey[12, 52] > 200
    assert grey[52, 12] == 0


@pytest.mark.parametrize(
    ("rows", "columns", "shape"), [(100, 50, (100, 50)), (2048, 1024, (HEATMAP_SIDE, 256)), (1, 5000, (1, 512))]
)
def test_the_picture_has_the_aspect_ratio_of_the_image(rows: int, columns: int, shape: tuple[int, int]) -> None:
    assert picture(np.ones((2, 8, 8)), rows, columns)[0].shape == shape


def test_no_evidence_is_black() -> None:
    grey, peak = picture(np.zeros((2, 8, 8)))
    assert peak == 0
    assert not grey.any()
