"""The image itself beside an answer, as it is to be shown: what a browser cannot make of a DICOM file."""

from __future__ import annotations

import base64

import numpy as np
from PIL import Image as Pillow

from models.image import Image
from models.imaging import read_image
from models.rendered import Picture, render
from service.schemas import ShownPicture

PICTURE_SIDE = 2048
"""Longer side of what is answered at most, pixels."""


def shown_picture(image: Image, body: bytes) -> ShownPicture:
    """Render an image for the eye.

    Parameters
    ----------
    image : Image
        As it was decoded for its model.
    body : bytes
        What it was decoded from: it is decoded again where the model took it at a reduced resolution.

    Returns
    -------
    ShownPicture
        Grey in 8 or 16 bits, or colour; the means of blocks of pixels where the image is larger than :data:`PICTURE_SIDE`.
    """
    whole = image if image.pixels.shape[:2] == (image.rows, image.columns) else read_image(body)
    picture = render(whole)
    shrink = PICTURE_SIDE / max(image.rows, image.columns)
    if shrink < 1:
        picture = _resized(picture, max(1, round(image.columns * shrink)), max(1, round(image.rows * shrink)))
    return ShownPicture(
        media_type="image/png",
        data=base64.b64encode(picture.png()).decode(),
        rows=image.rows,
        columns=image.columns,
        window=picture.window,
        pixel_spacing_mm=image.spacing_mm,
    )


def _resized(picture: Picture, width: int, height: int) -> Picture:
    pixels = picture.pixels
    if pixels.dtype == np.uint8:
        small = np.asarray(Pillow.fromarray(pixels).resize((width, height), Pillow.Resampling.BOX))
    else:  # Pillow resizes 16 bits only as numbers with a fraction
        grey = Pillow.fromarray(pixels.astype(np.float32)).resize((width, height), Pillow.Resampling.BOX)
        small = np.rint(np.asarray(grey)).astype(pixels.dtype)
    return Picture(small, picture.window)
