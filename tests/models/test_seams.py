"""The shipped segmenter's tiles against its network on the whole image: where tiles meet, nothing shows."""

from __future__ import annotations

import io

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image as Pillow

from models.card import ZOO, read_package
from models.example import tissue_phantom
from models.tiles import Tiling

SIDE = 448
"""Pixels: two of the network's tiles, without overlap."""
BORDER = 64
"""Pixels: what is left out around the image, where the whole image has a border and the tiles have its reflection."""


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def resized(model: onnx.ModelProto, factor: int) -> onnx.ModelProto:
    """Return the network for images that are larger by a factor: the sizes that its maps are resized to are constants of it."""
    large = onnx.ModelProto()
    large.CopyFrom(model)
    made = {node.output[0]: node for node in large.graph.node}
    names = {made[node.input[3]].input[1] for node in large.graph.node if node.op_type == "Resize"}
    for constant in large.graph.initializer:
        if constant.name in names:
            constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant) * factor, constant.name))
    for tensor in [*large.graph.input, *large.graph.output]:
        for size in tensor.type.tensor_type.shape.dim[2:]:
            size.dim_value *= factor
    del large.graph.value_info[:]
    return large


@pytest.fixture(scope="module")
def networks() -> tuple[ort.InferenceSession, ort.InferenceSession]:
    """Return the shipped network, and the same for an image of two tiles a side."""
    _, content, _ = read_package(ZOO / "nuclei")
    model = onnx.load_model_from_string(content)
    return session(model), session(resized(model, 2))


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.float32]:
    """Return drawn tissue as the network takes it, (SIDE, SIDE, 3)."""
    spec = read_package(ZOO / "nuclei")[0].input
    drawn = np.asarray(Pillow.open(io.BytesIO(tissue_phantom())).convert("RGB"), np.float32)[:SIDE, :SIDE]
    return (drawn / 255 - spec.mean) / np.float32(spec.std)


def foreground(network: ort.InferenceSession, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits (N, H, W) of tiles (N, H, W, 3)."""
    return np.concatenate(
        [
            network.run(["foreground_logits"], {"image": np.ascontiguousarray(tile.transpose(2, 0, 1)[None])})[0][:, 0]
            for tile in tiles
        ]
    )


def iou(one: NDArray[np.float32], other: NDArray[np.float32], threshold: float) -> float:
    """Return the IoU of two maps' foreground, in the band of 24 pixels to each side of where tiles of half the image meet."""
    cut = np.log(threshold / (1 - threshold))
    band = np.zeros((SIDE, SIDE), bool)
    band[SIDE // 2 - 24 : SIDE // 2 + 24] = band[:, SIDE // 2 - 24 : SIDE // 2 + 24] = True
    band[:BORDER] = band[-BORDER:] = band[:, :BORDER] = band[:, -BORDER:] = False
    first, second = (one >= cut)[band], (other >= cut)[band]
    return float((first & second).sum() / (first | second).sum())


def test_the_shipped_network_says_the_same_tiled_and_untiled(
    networks: tuple[ort.InferenceSession, ort.InferenceSession], pixels: NDArray[np.float32]
) -> None:
    small, large = networks
    whole = foreground(large, pixels[None])[0]
    assert 0.05 < (whole >= 0).mean() < 0.95
    card = read_package(ZOO / "nuclei")[0]
    tile = card.input.height
    assert tile * 2 == SIDE

    def tiled(overlap: int, moved: int = 0) -> NDArray[np.float32]:
        tiling = Tiling(SIDE - moved, SIDE - moved, tile, tile, overlap)
        blended = tiling.blend(foreground(small, tiling.cut(pixels[moved:, moved:], tiling.corners())))
        return np.pad(blended, ((moved, 0), (moved, 0)))

    assert iou(tiled(card.output.overlap), whole, card.output.threshold) > 0.99
    assert iou(tiled(0), whole, card.output.threshold) < 0.9, "the control: without overlap the seams show"
    assert iou(tiled(card.output.overlap, moved=8), whole, card.output.threshold) < 0.98, "the control: off the network's strides"
