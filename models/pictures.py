"""Pictures of a segmentation: the label image, and outlines drawn over the image."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from skimage.segmentation import find_boundaries

from models.errors import Refusal
from models.image import Rendering

OVERLAY_SIDE = 2048
"""Longer side of an overlay, pixels."""
OUTLINE = (0, 255, 0)
"""Colour of outlines: green, which no usual stain has."""


def label_png(label_image: NDArray[np.int32]) -> bytes:
    """Return the label image (rows, columns) as a 16-bit grey PNG: 0 background, 1..N objects.

    Raises
    ------
    Refusal
        ``bad_request`` if there are more than 65,535 objects.
    """
    if label_image.max(initial=0) > np.iinfo(np.uint16).max:
        raise Refusal("bad_request", "There are more objects than 16 bits can number; ask for a region.")
    return _png(label_image.astype(np.uint16))


def shown_picture(values: NDArray[Any], how: Rendering) -> NDArray[np.uint8]:
    """Turn display values (rows, columns) or (rows, columns, 3) into 8-bit colour (rows, columns, 3) for the eye."""
    picture = values
    if values.dtype != np.uint8 or (how.low, how.high) != (0, 255):
        scaled = (values.astype(np.float32) - how.low) / max(how.high - how.low, 1e-6)
        picture = np.round(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return np.asarray(picture if picture.ndim == 3 else np.repeat(picture[:, :, None], 3, axis=2), np.uint8)


def overlay_png(picture: NDArray[np.uint8], label_image: NDArray[np.int32]) -> bytes:
    """Draw the outlines of the objects over the image.

    Parameters
    ----------
    picture : ndarray, uint8, shape (rows, columns, 3)
        As :func:`shown_picture` returns it.
    label_image : ndarray, int32, shape (rows, columns)

    Returns
    -------
    bytes
        A colour PNG of the image's size, :data:`OVERLAY_SIDE` a side at most. Outlines are the objects' outermost pixels.
    """
    rows, columns = label_image.shape
    shrink = min(1.0, OVERLAY_SIDE / max(rows, columns))
    drawn, labels = picture, label_image
    if shrink < 1:
        size = max(1, round(columns * shrink)), max(1, round(rows * shrink))
        drawn = np.asarray(Pillow.fromarray(picture).resize(size, Pillow.Resampling.BOX))
        # Labels are numbers, not colours: the nearest is taken, and boundaries are found at the size that is shown
        labels = np.asarray(Pillow.fromarray(label_image).resize(size, Pillow.Resampling.NEAREST))
    drawn = drawn.copy()
    drawn[find_boundaries(labels, mode="inner")] = OUTLINE  # type: ignore[no-untyped-call]
    return _png(drawn)


def _png(pixels: NDArray[Any]) -> bytes:
    stream = BytesIO()
    Pillow.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()
