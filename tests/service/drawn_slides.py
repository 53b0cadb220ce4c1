"""A drawn slide with dark squares at known corners, and what may be found of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.models.slides import JPEG, Pixels, slide_bytes

REGION = (50, 30, 240, 180)
SQUARES = ((100, 70, 130, 95), (64, 128, 128, 192), (200, 40, 201 + 24, 41 + 24))
"""left, top, right, bottom in the slide: one within a tile, one a tile as it is, one over four tiles."""


def squares(outside: bool = False) -> Pixels:
    """A light slide of 400 x 300 pixels with dark squares; one more lies outside the region."""
    pixels = np.full((300, 400, 3), 235, np.uint8)
    for left, top, right, bottom in (*SQUARES, *([(320, 220, 350, 250)] if outside else [])):
        pixels[top:bottom, left:right] = 30
    return pixels


SLIDE = slide_bytes(squares(outside=True))
JPEG_SLIDE = slide_bytes(squares(outside=True), JPEG)


def ask(caller: Any, data: bytes = SLIDE, region: Any = REGION, query: str = "", **headers: str) -> Any:
    part = "" if region is None else "&region=" + ",".join(map(str, region))
    return caller.predict(data, "application/dicom", f"?model=nuclei{part}{query}", **headers)


def corners(polygon: Any) -> set[tuple[float, float]]:
    return {(float(x), float(y)) for x, y in polygon}


def expected(square: tuple[int, int, int, int]) -> set[tuple[float, float]]:
    left, top, right, bottom = square
    return {(left, top), (right, top), (right, bottom), (left, bottom)}
