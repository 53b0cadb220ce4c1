"""Renderings: tables, linear chains, inversion, colour."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset

from models.image import Rendering, has_colour


def windowed(center: float, width: float) -> Dataset:
    chain = Dataset()
    chain.PhotometricInterpretation, chain.BitsStored, chain.PixelRepresentation = "MONOCHROME2", 12, 0
    chain.RescaleSlope, chain.RescaleIntercept = 2, -1000
    chain.WindowCenter, chain.WindowWidth = center, width
    return chain


def test_a_picture_is_shown_as_stored() -> None:
    rendering = Rendering(0, 255)
    assert rendering.after_resizing
    assert rendering.look_up(np.array([[0, 7], [200, 255]], np.uint8)).tolist() == [[0, 7], [200, 255]]


def test_a_table_is_looked_up_from_its_offset() -> None:
    rendering = Rendering(0, 30, offset=-2, table=np.array([0, 10, 20, 30], np.float32))
    assert not rendering.after_resizing
    assert rendering.look_up(np.array([[-2, 1, 0]], np.int16)).tolist() == [[0, 30, 20]]


def test_a_palette_adds_an_axis() -> None:
    table = np.array([[0, 0, 0], [255, 0, 0]], np.float32)
    shown = Rendering(0, 255, table=table).look_up(np.array([[1, 0]], np.uint8))
    assert shown.tolist() == [[[255, 0, 0], [0, 0, 0]]]


def test_long_images_are_looked_up_in_strips() -> None:
    stored = np.arange(1000, dtype=np.uint16).reshape(1000, 1)
    assert np.array_equal(Rendering(0, 1, table=np.arange(1000, dtype=np.float32)).look_up(stored), stored)


def test_a_linear_chain_rescales_clips_and_inverts() -> None:
    """By hand: 600 -> 2 x 600 - 1000 = 200, the middle of a window from -300 to 700 -> the middle of the output."""
    rendering = Rendering(-1000, 7190, chain=windowed(200.5, 1001))
    shown = rendering.evaluate(np.array([[0.0, 600.0, 4000.0]], np.float32))
    assert shown.tolist() == pytest.approx(np.array([[-1000, 3095, 7190]]), abs=0.01)
    inverted = Rendering(-1000, 7190, chain=windowed(200.5, 1001), invert=True).evaluate(np.array([[0.0, 4000.0]], np.float32))
    assert inverted.tolist() == pytest.approx(np.array([[7190, -1000]]), abs=0.01)


def test_colour_is_counted_beyond_noise() -> None:
    grey = np.full((100, 100, 3), 1000, np.uint16)
    grey[..., 0] += 100
    assert has_colour(grey, 255)
    assert not has_colour(grey, 65535)
    few = np.zeros((100, 100, 3), np.uint8)
    few[0, :10, 0] = 255
    assert not has_colour(few, 255)
    few[0, 10, 0] = 255
    assert has_colour(few, 255)
