"""Weights to begin a training with: a file of this project's, the published EfficientNet-Lite0's, or any with the same names."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.errors import Refusal
from models.networks.classifier import Classifier
from models.networks.efficientnet import efficientnet_lite0, from_published, is_published
from training.config import RunConfig


@dataclass(frozen=True)
class Start:
    """Weights read from a file: their names and values, and the file's SHA-256, which the run keeps."""

    state: dict[str, Tensor]
    sha256: str


def read_start(file: Path) -> Start:
    """Read a file of tensors as ``torch.save`` writes it; nothing in it is run.

    It holds a state dict, alone or under "classifier" (``model.pt`` of a run) or "state_dict".

    Raises
    ------
    Refusal
        ``config_invalid`` if it cannot be read, or holds anything but tensors.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except Exception as error:  # torch.load has no exception of its own: file, zip, unpickling and key errors
        raise Refusal("config_invalid", f"--weights: the file cannot be read as weights ({type(error).__name__}).") from error
    for key in ("classifier", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise Refusal("config_invalid", "--weights: the file holds no state dict.")
    return Start(dict(state), digest)


def make_classifier(config: RunConfig, start: Start | None) -> Classifier:
    """Return the classifier of a config, with random weights or those of ``start``; refuses as :func:`take_over`."""
    channels, classes = config.input.channels, len(config.classes)
    if config.backbone == "efficientnet_lite0":
        network = efficientnet_lite0(channels, classes, config.dropout)
    else:
        network = Classifier(channels, classes, config.widths, config.blocks, config.dropout)
    if start is not None:
        take_over(network, start, channels)
    return network


def take_over(network: Classifier, start: Start, channels: int) -> None:
    """Give a classifier for images of ``channels`` the weights of ``start``.

    The head is taken over where it has the same number of classes, and is left as it is otherwise.

    Raises
    ------
    Refusal
        ``config_invalid`` if another weight is missing or of another shape, or there is one too many; it names the first.
    """
    try:
        state = from_published(start.state, channels) if is_published(start.state) else dict(start.state)
    except KeyError as error:
        raise Refusal("config_invalid", f"--weights: {error.args[0]} is missing.") from error
    own = network.state_dict()
    for name in ("head.weight", "head.bias"):
        if name not in state or state[name].shape != own[name].shape:
            state[name] = own[name]
    for name in [*own, *state]:
        if name not in state or name not in own or state[name].shape != own[name].shape:
            what = "is missing" if name not in state else "has no place" if name not in own else "has another shape"
            raise Refusal("config_invalid", f"--weights: {name} {what}. --backbone and the input's channels must be theirs.")
    network.load_state_dict(state)
