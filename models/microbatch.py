"""Images of calls that come at nearly the same time go through a graph together, which a GPU needs to be busy.

A processor core gains next to nothing by it (docs/performance.md), and each image waits for the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Values = Sequence[NDArray[np.float32]]


class _Batch:
    """Tensors that go together: the call that began it runs it, the others wait for that."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.images = 0
        self.closed = False
        self.done = threading.Event()
        self._tensors: list[NDArray[np.float32]] = []
        self._values: Values = ()
        self._error: BaseException | None = None

    def add(self, tensor: NDArray[np.float32]) -> slice:
        """Take a tensor; return which rows of the outputs will be its own."""
        mine = slice(self.images, self.images + len(tensor))
        self._tensors.append(tensor)
        self.images = mine.stop
        return mine

    def run(self, run: Callable[[NDArray[np.float32]], Values]) -> None:
        """Run the graph; what it raises is everybody's."""
        try:
            self._values = run(self._tensors[0] if len(self._tensors) == 1 else np.concatenate(self._tensors))
        except BaseException as error:  # whoever waits must hear of it, whatever it is
            self._error = error
            raise
        finally:
            self.done.set()

    def rows(self, mine: slice) -> list[NDArray[np.float32]]:
        """Return the outputs' rows of one call, once it is done."""
        if self._error is not None:
            raise RuntimeError("the graph failed on a batch with this image") from self._error
        return [values[mine] for values in self._values]


class MicroBatches:
    """Gathers the tensors of calls from several threads.

    Parameters
    ----------
    run : callable
        Runs the graph: float32, shape (N, C, H, W) -> its outputs, each with N rows.
    most : int
        Images in one run at most; a call that brings as many is run by itself.
    seconds : float
        For which the first image of a batch waits for others at most.
    """

    def __init__(self, run: Callable[[NDArray[np.float32]], Values], most: int, seconds: float) -> None:
        self._run, self._most, self._seconds = run, most, seconds
        self._turn = threading.Condition()
        self._open: _Batch | None = None

    def values(self, tensor: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Return the graph's outputs for ``tensor``, as if it had been run alone but for rounding.

        Raises
        ------
        RuntimeError
            If the graph failed in another call's hands; in one's own, what it raised.
        """
        if len(tensor) >= self._most:
            return list(self._run(tensor))
        with self._turn:
            batch = self._open
            leads = batch is None or batch.shape != tensor.shape[1:] or batch.images + len(tensor) > self._most
            if batch is None or leads:
                self._close()
                batch = self._open = _Batch(tensor.shape[1:])
            mine = batch.add(tensor)
            if batch.images == self._most:
                self._close()
            if leads:
                self._turn.wait_for(lambda: batch.closed, self._seconds)
                if self._open is batch:
                    self._close()
        if leads:
            batch.run(self._run)
        else:
            batch.done.wait()
        return batch.rows(mine)

    def _close(self) -> None:
        """Let nobody else into the open batch, and tell who began it."""
        if self._open is not None:
            self._open.closed = True
            self._open = None
            self._turn.notify_all()
