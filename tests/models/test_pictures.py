"""The label image and the overlay, read back."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import PIL.Image
import pytest

from models.errors import Refusal
from models.image import Rendering
from models.pictures import OUTLINE, OVERLAY_SIDE, label_png, overlay_png, shown_picture


def read(png: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(BytesIO(png)))


def test_labels_survive() -> None:
    labels = np.arange(65_536, dtype=np.int32).reshape(256, 256)
    found = PIL.Image.open(BytesIO(label_png(labels)))
    assert found.mode == "I;16"
    np.testing.assert_array_equal(np.asarray(found), labels)
    with pytest.raises(Refusal, match="16 bits") as caught:
        label_png(labels + 1)
    assert caught.value.code == "bad_request"


def test_outlines_are_the_outermost_pixels() -> None:
    picture = np.full((40, 60, 3), 90, np.uint8)
    labels = np.zeros((40, 60), np.int32)
    labels[10:20, 10:20], labels[10:20, 20:30] = 1, 2
    drawn = read(overlay_png(picture, labels))
    green = (drawn == OUTLINE).all(axis=2)
    expected = np.zeros((40, 60), bool)
    for left in (10, 20):
        expected[10:20, left : left + 10] = True
        expected[11:19, left + 1 : left + 9] = False
    np.testing.assert_array_equal(green, expected)
    assert (drawn[~green] == 90).all()
    assert (picture == 90).all()  # what was given is left alone


def test_large_overlays_are_reduced() -> None:
    rows, columns = 1500, 3 * OVERLAY_SIDE
    labels = np.zeros((rows, columns), np.int32)
    labels[600:900, 3000:3600] = 1
    drawn = read(overlay_png(np.full((rows, columns, 3), 200, np.uint8), labels))
    assert drawn.shape == (500, OVERLAY_SIDE, 3)
    green = np.argwhere((drawn == OUTLINE).all(axis=2))
    np.testing.assert_allclose(green.min(axis=0), (200, 1000), atol=1)
    np.testing.assert_allclose(green.max(axis=0), (299, 1199), atol=1)


def test_pictures_for_the_eye() -> None:
    grey = np.array([[0, 1000], [2000, 4000]], np.uint16)
    found = shown_picture(grey, Rendering(0, 4000))
    np.testing.assert_array_equal(found[:, :, 0], [[0, 64], [128, 255]])
    assert (found[:, :, :1] == found).all()
    colour = np.random.default_rng(0).integers(0, 255, (4, 5, 3), np.uint8)
    np.testing.assert_array_equal(shown_picture(colour, Rendering(0, 255)), colour)
    assert shown_picture(np.array([[-5.0, 300.0]], np.float32), Rendering(0, 255))[0, :, 0].tolist() == [0, 255]
