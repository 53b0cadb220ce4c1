"""Images that come together go through the graph together, and each caller gets its own rows."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.card import GRAPH_OUTPUTS, SEGMENTER_OUTPUTS, ZOO, read_package
from models.microbatch import MicroBatches
from models.predictor import Graph

LONG = 120.0
"""A wait that no test gets to the end of."""


class Double:
    """Stands for a graph: doubles, says how many rows came, and may fail."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.fail = False

    def __call__(self, tensor: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        self.batches.append(len(tensor))
        if self.fail:
            raise MemoryError("planted")
        return [2 * tensor, tensor.sum(axis=(1, 2, 3))]


def image(value: float, count: int = 1, side: int = 2) -> NDArray[np.float32]:
    return np.full((count, 1, side, side), value, np.float32)


def together(batches: MicroBatches | Graph, tensors: list[NDArray[np.float32]]) -> list[list[NDArray[np.float32]]]:
    with ThreadPoolExecutor(len(tensors)) as pool:
        return list(pool.map(batches.values, tensors))


def test_each_gets_its_own_rows_of_one_run() -> None:
    graph = Double()
    found = together(MicroBatches(graph, 8, LONG), [image(value) for value in range(8)])
    assert graph.batches == [8]
    for value, (doubled, total) in enumerate(found):
        assert doubled.shape == (1, 1, 2, 2)
        assert doubled.max() == doubled.min() == 2 * value
        assert total.tolist() == [4 * value]


def test_it_never_takes_more_than_it_may_and_loses_none() -> None:
    graph = Double()
    found = together(MicroBatches(graph, 3, 0.05), [image(value, 1 + value % 2) for value in range(40)])
    assert max(graph.batches) <= 3
    assert sum(graph.batches) == 60
    assert max(graph.batches) > 1
    assert [values[1].tolist() for values in found] == [[4.0 * value] * (1 + value % 2) for value in range(40)]


def test_who_is_alone_waits_no_longer_than_the_window() -> None:
    graph = Double()
    assert MicroBatches(graph, 8, 0.01).values(image(1))[1].tolist() == [4]
    assert graph.batches == [1]


def test_what_fills_a_batch_alone_waits_for_nobody() -> None:
    graph = Double()
    assert len(MicroBatches(graph, 4, LONG).values(image(1, 5))[0]) == 5
    assert graph.batches == [5]


def test_images_of_another_size_are_not_mixed() -> None:
    graph = Double()
    batches = MicroBatches(graph, 2, LONG)
    with ThreadPoolExecutor(4) as pool:
        one = pool.submit(batches.values, image(1, side=2))
        while batches._open is None:
            threading.Event().wait(0.001)
        other = pool.submit(batches.values, image(1, side=4))
        assert one.result(60)[0].shape == (1, 1, 2, 2)  # it no longer waits: another batch began
        assert not other.done()
        pool.submit(batches.values, image(1, side=4)).result(60)
        assert other.result(60)[0].shape == (1, 1, 4, 4)
    assert graph.batches == [1, 2]


def test_a_failure_is_everybodys_of_that_batch_and_nobodys_after() -> None:
    graph = Double()
    batches, errors = MicroBatches(graph, 4, LONG), []

    def one(value: int) -> None:
        try:
            batches.values(image(value))
        except (MemoryError, RuntimeError) as error:
            errors.append(type(error))

    graph.fail = True
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(4)))
    assert sorted(errors, key=str) == sorted([MemoryError, *[RuntimeError] * 3], key=str)
    graph.fail = False
    assert together(batches, [image(1)] * 4)[3][1].tolist() == [4]


def compare(found: list[Any], expected: list[Any]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "outputs"), [("cxr-pneumonia", GRAPH_OUTPUTS), ("nuclei", SEGMENTER_OUTPUTS)])
def test_a_graph_gives_the_same_together_and_bound(name: str, outputs: tuple[str, ...]) -> None:
    card, content, _ = read_package(ZOO / name)
    shape = (1, card.input.channels, card.input.height, card.input.width)
    rng = np.random.default_rng(0)
    tensors = [rng.normal(row / 4, 1, shape).astype(np.float32) for row in range(4)]
    plain, bound = Graph(content, outputs=outputs, binding=False), Graph(content, outputs=outputs, binding=True)
    bound.gather(4, LONG)  # only a batch of four ends the wait
    expected = [plain.values(tensor) for tensor in tensors]
    found = together(bound, tensors)
    compare(found, expected)
    with pytest.raises(AssertionError):  # the control: rows of another image
        compare(found[1:] + found[:1], expected)
