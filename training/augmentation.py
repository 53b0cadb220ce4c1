"""Random changes that an image may undergo without becoming another finding."""

from __future__ import annotations

import math

import torch
from skimage.color import hed_from_rgb, rgb_from_hed
from torch import Generator, Tensor
from torch.nn import functional

from models.card import InputSpec

ROTATION = math.radians(10)
SCALE = 0.12
SHIFT = 0.08
GAMMA = 0.4
CONTRAST = 0.3
BRIGHTNESS = 0.12
SHARPNESS = 0.9
NOISE = 0.05
STAIN = 0.2
_RADIUS = 3


def augment(images: Tensor, spec: InputSpec, flip: bool, generator: Generator) -> Tensor:
    """Change every radiograph at random: place, grey values, sharpness, noise.

    Parameters
    ----------
    images : Tensor, float32, shape (N, C, H, W)
        Preprocessed by ``spec``.
    spec : InputSpec
        Its mean and std lead back to grey values in [0, 1], where the changes are made.
    flip : bool
        Mirror one half of them. For a finding that may lie on either side it doubles a small set; the heart then also lies
        on the right, which does not matter to a finding that is not told by its side.
    generator : Generator

    Returns
    -------
    Tensor
        As ``images``.

    Notes
    -----
    Rotation up to 10 degrees; height and width scaled apart by up to 12%, because squashing to a square left hospitals with
    different proportions; shift up to 8%. Gamma within e^+-0.4, contrast +-30%, brightness +-0.12. Sharpness from blurred to
    sharpened, because sharper images are more often pneumonia in one hospital and less often in another. Never inverted: an
    inverted image must stay unfamiliar.
    """
    grey = images * spec.std + spec.mean
    grey = _move(grey, flip, generator)
    grey = _grey_values(grey.clamp(0, 1), generator)
    grey = _sharpness(grey, generator)
    level = _uniform(len(grey), 0, NOISE, generator)
    grey = grey + level * torch.randn(grey.shape, generator=generator)
    return (grey.clamp(0, 1) - spec.mean) / spec.std


def _uniform(count: int, low: float, high: float, generator: Generator) -> Tensor:
    return torch.empty(count, 1, 1, 1).uniform_(low, high, generator=generator)


def _move(grey: Tensor, flip: bool, generator: Generator) -> Tensor:
    count = len(grey)
    angle = _uniform(count, -ROTATION, ROTATION, generator).flatten()
    wide = torch.exp(_uniform(count, -SCALE, SCALE, generator)).flatten()
    high = torch.exp(_uniform(count, -SCALE, SCALE, generator)).flatten()
    if flip:
        wide = wide * torch.sign(_uniform(count, -1, 1, generator).flatten())
    shift = torch.empty(count, 2, 1).uniform_(-2 * SHIFT, 2 * SHIFT, generator=generator)  # the image spans -1..1
    rows = torch.stack([angle.cos() * wide, -angle.sin() * high, angle.sin() * wide, angle.cos() * high], dim=1)
    matrix = torch.cat([rows.view(count, 2, 2), shift], dim=2)
    places = functional.affine_grid(matrix, list(grey.shape), align_corners=False)
    return functional.grid_sample(grey, places, mode="bilinear", padding_mode="border", align_corners=False)


def _grey_values(grey: Tensor, generator: Generator) -> Tensor:
    count = len(grey)
    grey = grey ** torch.exp(_uniform(count, -GAMMA, GAMMA, generator))
    mean = grey.mean(dim=(1, 2, 3), keepdim=True)
    contrast = _uniform(count, 1 - CONTRAST, 1 + CONTRAST, generator)
    return (grey - mean) * contrast + mean + _uniform(count, -BRIGHTNESS, BRIGHTNESS, generator)


def _sharpness(grey: Tensor, generator: Generator) -> Tensor:
    count, channels, height, width = grey.shape
    sigma = _uniform(count, 0.5, 1.5, generator).view(count, 1)
    offsets = torch.arange(-_RADIUS, _RADIUS + 1, dtype=torch.float32)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = (weights / weights.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    planes = functional.pad(grey, (_RADIUS,) * 4, mode="replicate").view(1, count * channels, height + 2 * _RADIUS, -1)
    planes = functional.conv2d(planes, weights[:, None, :, None], groups=count * channels)
    planes = functional.conv2d(planes, weights[:, None, None, :], groups=count * channels)
    blurred = planes.view(count, channels, height, width)
    return grey + _uniform(count, -SHARPNESS, SHARPNESS, generator) * (grey - blurred)


def stain_jitter(images: Tensor, spec: InputSpec, generator: Generator) -> Tensor:
    """Change the strength of the stains: haematoxylin, eosin and DAB, each by a factor and an offset of its own.

    Parameters
    ----------
    images : Tensor, float32, shape (N, 3, H, W)
        RGB, preprocessed by ``spec``.
    spec : InputSpec
        Its mean and std lead back to colours in [0, 1], where light is absorbed.
    generator : Generator

    Returns
    -------
    Tensor
        As ``images``.

    References
    ----------
    Tellez et al., "Whole-Slide Mitosis Detection in H&E Breast Histology Using PHH3 as a Reference to Train Distilled
    Stain-Invariant Convolutional Networks", IEEE Transactions on Medical Imaging 2018, arXiv:1808.05896, appendix: stains are the
    negative natural logarithm of the colours times the inverse of the stains' colours; each gets a factor within 1 +- sigma
    and an offset within +- sigma. Sigma is 0.2: "HED-strong" of Tellez et al., "Quantifying the effects of data augmentation and
    stain color normalization in convolutional neural networks for computational pathology", Medical Image Analysis 2019,
    arXiv:1902.06543, section 3.3 ("HED-light" is 0.05).

    Notes
    -----
    The same number is another strength in another unit. What scikit-image's ``rgb2hed`` gives is this over 13.8 (-log 1e-6):
    an offset of 0.2 there turns images black or white. Before 0.18 it took the logarithm of the colours plus 2, where 0.05
    already changes colours more than 0.2 does here.
    """
    to_stain, to_colour = (torch.tensor(matrix, dtype=torch.float32) for matrix in (hed_from_rgb, rgb_from_hed))
    density = -torch.log((images * spec.std + spec.mean).clamp(1e-3, 1))
    stains = torch.einsum("nchw,cs->nshw", density, to_stain)
    factor = torch.empty(len(images), 3, 1, 1).uniform_(1 - STAIN, 1 + STAIN, generator=generator)
    offset = torch.empty(len(images), 3, 1, 1).uniform_(-STAIN, STAIN, generator=generator)
    colours = torch.exp(-torch.einsum("nshw,sc->nchw", stains * factor + offset, to_colour))
    return (colours.clamp(0, 1) - spec.mean) / spec.std
