"""A ResNet-18 with random weights as an ONNX graph with our outputs, so that speed compares with others' figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STAGES = (64, 128, 256, 512)


class _Builder:
    """Collects nodes and weights; every method returns the name of what it computes."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), f"c{len(self.constants)}"))
        return str(self.constants[-1].name)

    def node(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def convolve(self, source: str, fan_in: int, fan_out: int, side: int, stride: int = 1, gain: float = 1.0) -> str:
        """Convolution with its folded batch normalisation: He-scaled weights and a bias."""
        scale = gain * np.sqrt(2 / (fan_in * side * side))
        weight = (self.random.standard_normal((fan_out, fan_in, side, side)) * scale).astype(np.float32)
        bias = np.zeros(fan_out, np.float32)
        shape = {"kernel_shape": [side, side], "strides": [stride, stride], "pads": [side // 2] * 4}
        return self.node("Conv", source, self.constant(weight), self.constant(bias), **shape)


def resnet18(channels: int = 1, side: int = 224, classes: int = 2, seed: int = 0) -> bytes:
    """Build the graph.

    Parameters
    ----------
    channels : {1, 3}
    side : int, pixels
    classes : int
    seed : int
        Of the weights.

    Returns
    -------
    bytes
        ``model.onnx`` with the input and outputs of :data:`models.card.GRAPH_OUTPUTS`: logits, 512 features, a loss
        score, a domain distance (both small functions of the features) and a heatmap, N dynamic.

    References
    ----------
    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1, column "18-layer".
    """
    build = _Builder(seed)
    x = build.node("Relu", build.convolve("image", channels, STAGES[0], 7, 2))
    x = build.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    width = STAGES[0]
    for stage in STAGES:
        for stride in (1 if stage == STAGES[0] else 2, 1):
            skip = x if stride == 1 else build.convolve(x, width, stage, 1, stride)
            y = build.node("Relu", build.convolve(x, width, stage, 3, stride))
            # A small gain, as nothing normalises the sums: activations must not grow through the eight blocks
            x = build.node("Relu", build.node("Add", build.convolve(y, stage, stage, 3, gain=0.3), skip))
            width = stage
    pooled = build.node("GlobalAveragePool", x)
    build.node("Flatten", pooled, name="features", axis=1)
    weight = (build.random.standard_normal((classes, width)) / np.sqrt(width)).astype(np.float32)
    build.node("Gemm", "features", build.constant(weight), name="logits", transB=1)
    build.node("Conv", x, build.constant(weight[:, :, None, None]), name="heatmap")
    axis = build.constant(np.array([1], np.int64))
    build.node("ReduceMean", "features", axis, name="loss_score", keepdims=0)
    build.node("ReduceL2", "features", axis, name="domain_distance", keepdims=0)
    small = side // 32
    shapes = {
        "logits": ["N", classes],
        "features": ["N", width],
        "loss_score": ["N"],
        "domain_distance": ["N"],
        "heatmap": ["N", classes, small, small],
    }
    graph = helper.make_graph(
        build.nodes,
        "resnet18",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", channels, side, side])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        build.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
