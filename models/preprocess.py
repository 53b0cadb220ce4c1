"""Image + InputSpec -> the model's tensor. Training and serving both use it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from models.card import InputSpec
from models.dicom_header import age_years, stated
from models.errors import Refusal
from models.image import Image, Rendering
from models.quiet import silence_readers

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of R, G and B where colour becomes grey (ITU-R BT.601, as JPEG uses)."""


def check_accepted(image: Image, spec: InputSpec) -> list[tuple[str, str]]:
    """Compare an image with what the model takes.

    Returns
    -------
    list of (str, str)
        Reasons for review, (code, message): what should be stated and is not (``modality_not_stated``,
        ``body_part_not_stated``, ``view_not_stated``, ``age_not_stated``), ``phantom`` where the header says that the subject is
        one, and ``colour_image`` for colour where the model takes grey. Pictures have no header, so only the last can arise.

    Raises
    ------
    Refusal
        ``too_small``, ``modality_not_accepted``, ``body_part_not_accepted``, ``view_not_accepted`` or ``age_not_accepted``.
    """
    if min(image.rows, image.columns) < spec.min_side:
        raise Refusal(
            "too_small", f"The image is {image.columns} x {image.rows} pixels; the model takes {spec.min_side} and more."
        )
    reasons: list[tuple[str, str]] = []
    if image.header is not None:
        for keyword, code, words, accepted in (
            ("Modality", "modality", "modality", spec.modalities),
            ("BodyPartExamined", "body_part", "body part", spec.body_parts),
            ("ViewPosition", "view", "view position", spec.views),
        ):
            value = stated(image.header, keyword)
            if accepted and not value:
                reasons.append((f"{code}_not_stated", f"The image does not state its {words}."))
            elif accepted and value not in accepted:
                raise Refusal(f"{code}_not_accepted", f"The {words} is none of those the model takes: {', '.join(accepted)}.")
        if spec.age_years is not None:
            age = age_years(image.header)
            if age is None:
                reasons.append(("age_not_stated", "The image does not state the patient's age."))
            elif not spec.age_years[0] <= age <= spec.age_years[1]:
                youngest, oldest = spec.age_years
                raise Refusal("age_not_accepted", f"The patient's age is outside {youngest:g} to {oldest:g} years.")
        if stated(image.header, "QualityControlSubject") == "YES":
            reasons.append(("phantom", "The header says that this is a phantom, not a patient."))
    if spec.channels == 1 and image.is_colour:
        reasons.append(("colour_image", "The image is coloured, the model takes grey ones."))
    return reasons


def preprocess(image: Image, spec: InputSpec) -> NDArray[np.float32]:
    """Make the model's tensor.

    Parameters
    ----------
    image : Image
    spec : InputSpec

    Returns
    -------
    (1, C, H, W) float32

    Notes
    -----
    A chain of linear steps and clipping (rescale, window) is applied after resizing: it is the same but where pixels inside
    and outside the window mix, and costs a twentieth. Tables and palettes are applied before. ``full_range`` divides by the
    span of possible display values, which is 255 for 8-bit pictures.
    """
    silence_readers()
    how = image.rendering
    if how.after_resizing:
        shown = how.evaluate(resize(image.pixels, spec.height, spec.width, image.extent))
    else:
        shown = resize(how.look_up(image.pixels), spec.height, spec.width, image.extent)
    shown = in_channels(shown, spec.channels)
    planes = standardise(shown, *intensity_range(shown, how, spec), spec)
    return np.ascontiguousarray(np.atleast_3d(planes).transpose(2, 0, 1)[None], dtype=np.float32)


def in_channels(shown: NDArray[Any], channels: int) -> NDArray[Any]:
    """Turn display values (h, w) or (h, w, 3) into (h, w) for one channel, by :data:`LUMA`, or (h, w, 3), grey repeated."""
    if channels == 1 and shown.ndim == 3:
        return np.asarray(shown @ LUMA)
    if channels == 3 and shown.ndim == 2:
        return np.repeat(shown[:, :, None], 3, axis=2)
    return shown


def intensity_range(shown: NDArray[Any], how: Rendering, spec: InputSpec) -> tuple[float, float]:
    """Return the display values that become 0 and 1: percentiles of ``shown``, or the ends of what is possible."""
    if spec.intensity == "percentile":
        low, high = np.percentile(shown, [spec.low, spec.high])
        return low, high
    return how.low, how.high


def standardise(shown: NDArray[Any], low: float, high: float, spec: InputSpec) -> NDArray[Any]:
    """Scale display values to [0, 1], clipped, then by the mean and the standard deviation of the specification."""
    # A constant image has no contrast to stretch: it becomes 0
    scaled = np.clip((shown - low) / max(float(high - low), 1e-6), 0, 1)
    return np.asarray((scaled - spec.mean) / spec.std)


def resize(
    values: NDArray[Any], height: int, width: int, extent: tuple[float, float, float, float] | None = None
) -> NDArray[np.float32]:
    """Squash (h, w) or (h, w, 3) values to (height, width), with a triangle filter as wide as the reduction.

    Parameters
    ----------
    values : (h, w) or (h, w, 3) array
    height, width : int, pixels
    extent : (float, float, float, float) or None
        The part to take: left, top, right, bottom, corner origin; None for all.

    Returns
    -------
    (height, width) or (height, width, 3) float32

    Notes
    -----
    Large reductions are averaged down to twice the target first, in integers, which changes little and is faster.
    """
    if values.ndim == 3:
        return np.stack([resize(values[:, :, i], height, width, extent) for i in range(values.shape[2])], axis=2)
    left, top, right, bottom = extent or (0.0, 0.0, values.shape[1], values.shape[0])
    down, across = values.shape[0] // (_GAP * height), values.shape[1] // (_GAP * width)
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2 and max(down, across) > 1:
        down, across = max(down, 1), max(across, 1)
        values = _block_means(values, down, across)
        left, top, right, bottom = left / across, top / down, right / across, bottom / down
    plane = Pillow.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    box = (left, top, right, bottom)
    return np.asarray(plane.resize((width, height), Pillow.Resampling.BILINEAR, box=box, reducing_gap=_GAP))


_GAP = 2


def _block_means(values: NDArray[Any], down: int, across: int) -> NDArray[np.float32]:
    """Average blocks of ``down`` x ``across`` pixels; the last ones, at the right and lower edge, may be smaller."""
    wide = np.int32 if values.dtype.kind == "i" else np.uint32
    sums = values[::down].astype(wide)
    for first in range(1, down):
        part = values[first::down]
        sums[: len(part)] += part
    blocks = sums[:, ::across].copy()
    for first in range(1, across):
        part = sums[:, first::across]
        blocks[:, : part.shape[1]] += part
    heights = np.diff(np.append(np.arange(0, values.shape[0], down), values.shape[0])).astype(np.float32)
    widths = np.diff(np.append(np.arange(0, values.shape[1], across), values.shape[1])).astype(np.float32)
    return blocks / (heights[:, None] * widths)
