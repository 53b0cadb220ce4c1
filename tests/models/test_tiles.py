"""Tiles against the whole image, through a convolutional network that onnxruntime runs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.tiles import STRIDE, Tiling, ramp, starts

REACH = 4
"""Pixels to each side that the network sees: four 3 x 3 convolutions."""


@pytest.fixture(scope="module")
def network() -> ort.InferenceSession:
    """Four random 3 x 3 convolutions with rectifiers between them, padded with zeros: the border of what it is given shows."""
    rng = np.random.default_rng(3)
    widths = [3, 6, 6, 6, 1]
    nodes, constants, name = [], [], "image"
    for layer, (inputs, outputs) in enumerate(pairwise(widths)):
        weight = rng.normal(0, (9 * inputs) ** -0.5, (outputs, inputs, 3, 3)).astype(np.float32)
        constants += [
            numpy_helper.from_array(weight, f"weight{layer}"),
            numpy_helper.from_array(rng.normal(0, 1, outputs).astype(np.float32), f"bias{layer}"),
        ]
        result = f"map{layer}"
        nodes.append(helper.make_node("Conv", [name, f"weight{layer}", f"bias{layer}"], [result], pads=[1, 1, 1, 1]))
        name = f"relu{layer}"
        nodes.append(helper.make_node("Relu" if layer < 3 else "Identity", [result], [name]))
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1, "H", "W"])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(network: ort.InferenceSession, images: np.ndarray) -> np.ndarray:
    """Run the network on (N, H, W, 3); return (N, H, W)."""
    return network.run(None, {"image": np.ascontiguousarray(images.transpose(0, 3, 1, 2))})[0][:, 0]


def whole(network: ort.InferenceSession, image: np.ndarray) -> np.ndarray:
    """Run the network on the whole image, continued by reflection as far as it sees."""
    wide = np.pad(image, ((REACH, REACH), (REACH, REACH), (0, 0)), mode="reflect")
    return run(network, wide[None])[0, REACH:-REACH, REACH:-REACH]


def tiled(network: ort.InferenceSession, image: np.ndarray, tiling: Tiling) -> np.ndarray:
    return tiling.blend(run(network, tiling.cut(image, tiling.corners())))


def picture(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (rows, columns, 3)).astype(np.float32)


@pytest.mark.parametrize(("rows", "columns"), [(150, 211), (64, 64), (65, 40), (20, 300), (12, 9)])
def test_tiled_equals_untiled_up_to_the_edge(network: ort.InferenceSession, rows: int, columns: int) -> None:
    image = picture(rows, columns)
    tiling = Tiling(rows, columns, 64, 48, overlap=4 * REACH)
    result = tiled(network, image, tiling)
    assert result.shape == (rows, columns)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, whole(network, image), atol=1e-5)


def test_without_overlap_the_seams_show(network: ort.InferenceSession) -> None:
    """The control of the test above: what it compares can differ, and does at the tiles' borders only."""
    image = picture(150, 211)
    tiling = Tiling(150, 211, 64, 48, overlap=0)
    difference = np.abs(tiled(network, image, tiling) - whole(network, image))
    assert difference.max() > 0.1
    assert difference[20:40, 15:30].max() < 1e-5  # the middle of the first tile


def test_too_small_an_overlap_differs(network: ort.InferenceSession) -> None:
    image = picture(150, 211)
    difference = np.abs(tiled(network, image, Tiling(150, 211, 64, 48, overlap=REACH)) - whole(network, image))
    assert difference.max() > 0.01


def test_tiles_that_disagree_are_blended_without_a_step() -> None:
    """Each tile says its own number: the steps of the blend stay below those of a hard border."""
    tiling = Tiling(64, 200, 64, 64, overlap=32)
    corners = tiling.corners()
    said = np.arange(len(corners), dtype=np.float32)
    blended = tiling.blend(np.broadcast_to(said[:, None, None], (len(corners), 64, 64)))
    assert len(corners) > 3
    assert np.abs(np.diff(blended, axis=1)).max() < 0.15
    hard = Tiling(64, 200, 64, 64, overlap=0)
    said = np.arange(len(hard.corners()), dtype=np.float32)
    assert np.abs(np.diff(hard.blend(np.broadcast_to(said[:, None, None], (len(said), 64, 64))), axis=1)).max() > 0.4


@pytest.mark.parametrize("overlap", [0, 1, 2, 3, 7, 16, 32])
@pytest.mark.parametrize("length", [1, 5, 63, 64, 65, 96, 127, 500])
def test_weights_add_up_to_one(length: int, overlap: int) -> None:
    tiling = Tiling(length, 33, 64, 64, overlap)
    blended = tiling.blend(np.ones((len(tiling.corners()), 64, 64), np.float32))
    np.testing.assert_allclose(blended, 1.0, atol=1e-6)
    assert blended.shape == (length, 33)


@pytest.mark.parametrize("overlap", [0, 8, 30, 32])
@pytest.mark.parametrize("length", [64, 65, 200, 517])
def test_neighbours_overlap_enough_and_reach_both_edges(length: int, overlap: int) -> None:
    begins = starts(length, 64, overlap)
    assert -STRIDE < begins[0] + overlap // 4 <= 0
    assert 0 <= begins[-1] + 64 - (length + overlap // 4) < STRIDE or len(begins) == 1
    steps = np.diff(begins)
    assert (steps <= 64 - overlap).all()
    assert (begins % STRIDE == 0).all()
    assert np.ptp(steps) <= STRIDE if len(steps) else True
    # One tile fewer would not do
    assert len(begins) == 1 or begins[0] + (len(begins) - 2) * ((64 - overlap) // STRIDE * STRIDE) + 64 < length + overlap // 4


def test_two_ramps_add_up_to_one() -> None:
    weights = ramp(64, 24)
    np.testing.assert_allclose(weights[-24:] + weights[:24], 1.0, atol=1e-6)
    assert (weights[:6] == 0).all()
    assert weights[6] > 0
    assert (weights[24:40] == 1).all()


def test_cut_reflects_at_the_edges() -> None:
    values = np.arange(20 * 30).reshape(20, 30)
    tiling = Tiling(20, 30, 32, 32, overlap=16)
    corners = tiling.corners()
    expected = np.pad(values, 40, mode="reflect")
    for tile, (top, left) in zip(tiling.cut(values, corners), corners, strict=True):
        np.testing.assert_array_equal(tile, expected[40 + top : 72 + top, 40 + left : 72 + left])
    np.testing.assert_array_equal(tiling.cut(values, corners[-1:])[0], tiling.cut(values, corners)[-1])


def test_boxes_are_inside_and_cover_the_image() -> None:
    tiling = Tiling(150, 90, 64, 48, overlap=16)
    seen = np.zeros((150, 90), int)
    for x, y, width, height in tiling.boxes():
        assert min(x, y) >= 0
        assert x + width <= 90
        assert y + height <= 150
        seen[y : y + height, x : x + width] += 1
    assert seen.min() > 0
