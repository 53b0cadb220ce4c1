"""A segmenter's graph and card that tests can predict by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.card import SegmenterCard
from tests.conftest import SIDE, tiny_card


def segmenter_graph(*, poison: dict[str, float] | None = None) -> bytes:
    """Build a graph whose foreground logit is 16 times how much darker than mid grey a pixel is, of colour values in [-2, 2].

    The loss score is the tile's variance, the domain distance the size of its mean; ``poison`` replaces outputs by a factor.
    """

    def constant(name: str, value: Any) -> onnx.TensorProto:
        return numpy_helper.from_array(np.asarray(value), name)

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, inputs, [output], **attributes)

    outputs = {"foreground_logits": ["N", 1, "H", "W"], "features": ["N", 2], "loss_score": ["N"], "domain_distance": ["N"]}
    constants = [
        constant("channel", np.array([1], dtype=np.int64)),
        constant("axes", np.array([1, 2, 3], dtype=np.int64)),
        constant("last", np.array([1], dtype=np.int64)),
        constant("gain", np.array(-16.0, dtype=np.float32)),
        *(constant(f"{name}_factor", np.array((poison or {}).get(name, 1.0), dtype=np.float32)) for name in outputs),
    ]
    nodes = [
        node("ReduceMean", ["image", "channel"], "grey", keepdims=1),
        node("Mul", ["grey", "gain"], "foreground_logits_raw"),
        node("ReduceMean", ["image", "axes"], "mean4", keepdims=1),
        node("Sub", ["image", "mean4"], "centred"),
        node("Mul", ["centred", "centred"], "squared"),
        node("ReduceMean", ["squared", "axes"], "loss_score_raw", keepdims=0),
        node("ReduceMean", ["image", "axes"], "mean", keepdims=0),
        node("Abs", ["mean"], "domain_distance_raw"),
        node("Unsqueeze", ["mean", "last"], "mean2"),
        node("Unsqueeze", ["loss_score_raw", "last"], "variance2"),
        node("Concat", ["mean2", "variance2"], "features_raw", axis=1),
        *(node("Mul", [f"{name}_raw", f"{name}_factor"], name) for name in outputs),
    ]
    graph = helper.make_graph(
        nodes,
        "segmenter",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", "C", "H", "W"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def segmenter_card(graph: bytes, name: str = "tiny-segmenter", **output: Any) -> SegmenterCard:
    """Build a complete card for a segmenter's graph; ``output`` replaces fields of its ObjectSpec."""
    card = tiny_card(graph, name).model_dump()
    card["task"] = "segmentation"
    card["input"] |= {
        "channels": 3, "height": SIDE, "width": SIDE, "intensity": "full_range", "low": 0, "high": 100,
        "modalities": (), "body_parts": (), "views": (), "age_years": None, "min_side": 16,
    }  # fmt: skip
    card["output"] = {
        "label": "nucleus", "threshold": 0.5, "separation": "distance_watershed", "smoothing": 1.0, "peak_distance": 5,
        "min_area": 12, "overlap": 16, "max_pixels": 1_000_000, "rule": "given",
    } | output  # fmt: skip
    card["calibration"]["loss_knots"] = ((0.0, 0.1), (2.0, 0.9))
    card["triage"]["refuse_domain_distance"] = 2.5
    return SegmenterCard.model_validate(card)
