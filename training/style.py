"""The style and adversarial steps of style-agnostic training; the content step is the ordinary one, on randomised styles."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer

from models.networks.classifier import Classifier
from models.networks.style import (
    StyleHead,
    adversarial_parameters,
    featurizer_maps,
    randomize_content,
    uniform_cross_entropy,
)

ADVERSARIAL_CLIP = 0.1
"""Largest gradient norm of the adversarial step, over all it moves."""


def adversarial_optimizer(classifier: Classifier, style_stage: int, learning_rate: float) -> Optimizer:
    """Return the optimiser of the adversarial step.

    Plain SGD with momentum, whatever trains the rest: one that scales each parameter's step by its own gradient would undo
    the loss's small weight and the clipping.
    """
    return SGD(adversarial_parameters(classifier, style_stage), lr=learning_rate, momentum=0.9)


def style_steps(
    classifier: Classifier,
    style_head: StyleHead,
    style_stage: int,
    images: Tensor,
    labels: Tensor,
    optimizers: tuple[Optimizer, Optimizer],
    weight: float,
    generator: Generator,
) -> tuple[Tensor, Tensor]:
    """Take the style step and the adversarial step; the content step follows them, with a forward pass of its own.

    The style step teaches the style head to classify by style, and moves it alone. The adversarial step asks of the
    featurizer's style that this head cannot tell anything from it, and moves gamma and beta of the featurizer's
    normalisations alone. The featurizer runs once for both, because the first does not change it; the style head runs again.

    Parameters
    ----------
    images : Tensor, shape (N, C, H, W), N >= 2
    labels : Tensor, int64, shape (N,)
    optimizers : (Optimizer, Optimizer)
        Of the style head, and of :func:`adversarial_optimizer`.
    weight : float
        Of the adversarial loss.
    generator : Generator
        On the CPU.

    Returns
    -------
    style, adversarial : Tensor, scalars, detached
        The losses before the steps; the second without its weight.

    References
    ----------
    Nam et al., "Reducing Domain Gap by Reducing Style Bias", CVPR 2021, arXiv:1910.11645, section 3.3.
    """
    of_style_head, of_featurizer = optimizers
    styles = randomize_content(featurizer_maps(classifier, images, style_stage)[-1], generator)
    style = functional.cross_entropy(style_head(styles.detach()).float(), labels)
    of_style_head.zero_grad()
    torch.autograd.backward(style)
    of_style_head.step()
    adversarial = uniform_cross_entropy(style_head(styles))
    moved = adversarial_parameters(classifier, style_stage)
    of_featurizer.zero_grad()
    torch.autograd.backward(weight * adversarial, inputs=moved)
    nn.utils.clip_grad_norm_(moved, ADVERSARIAL_CLIP)
    of_featurizer.step()
    of_featurizer.zero_grad()  # the content step adds to the same parameters' gradients
    return style.detach(), adversarial.detach()
