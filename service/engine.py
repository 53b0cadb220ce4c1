"""Admission and threads: a bounded queue, a deadline, a pool that runs one image a thread, and a thread that commits.

One-thread onnxruntime sessions on a pool scale with the cores, since onnxruntime releases the interpreter's lock. A commit
waits for the disk, so it has a thread of its own: the core that computed an image goes on with the next one meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from models.errors import Refusal
from service.telemetry import Telemetry

T = TypeVar("T")
R = TypeVar("R")

SPARE_SECONDS = 0.05
"""Between two looks whether there is nothing to do."""


class Engine:
    """Runs blocking work for the event loop.

    Parameters
    ----------
    threads : int
        Images worked on side by side.
    queue : int
        Images that may wait.
    deadline_seconds : float
        Longest wait; work that waited longer is not begun.
    """

    def __init__(self, threads: int, queue: int, deadline_seconds: float, telemetry: Telemetry) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="overread")
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="overread-commit")
        self._capacity = threads + queue
        self._threads = threads
        self._deadline = deadline_seconds
        self._admitted = 0
        self._lock = threading.Lock()
        self._telemetry = telemetry

    def _count(self, step: int) -> None:
        with self._lock:
            self._admitted += step
            self._telemetry.queue_depth.set(max(0, self._admitted - self._threads))

    @property
    def idle(self) -> bool:
        """Whether there is a thread that nothing waits for."""
        return self._admitted < self._threads

    def check_room(self) -> None:
        """Look whether there is a place, before time is spent on receiving what would find none.

        Raises
        ------
        Refusal
            ``overloaded``.
        """
        if self._admitted >= self._capacity:
            raise Refusal("overloaded")

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread and return its result.

        Raises
        ------
        Refusal
            ``overloaded`` at once when the queue is full; ``deadline_exceeded`` when the wait was too long.
        """
        return await self._begun(self._admit(work, self._release))

    async def run_and_commit(self, work: Callable[[], T], commit: Callable[[T], R]) -> R:
        """Run ``work`` in a thread, then ``commit`` on its result in the thread that commits; return what that returns.

        Raises
        ------
        Refusal
            As :meth:`run`.
        """

        def then_commit() -> Future[R]:
            return self._committer.submit(commit, work())

        def worked(future: Future[Future[R]]) -> None:
            if future.cancelled() or future.exception() is not None:
                self._release(future)
            else:
                future.result().add_done_callback(self._release)

        committing = await self._begun(self._admit(then_commit, worked))
        return await asyncio.wrap_future(committing)

    def run_spare(self, work: Callable[[], T], stop: threading.Event, until: float) -> T | None:
        """Run ``work`` in a thread once there is nothing else to do, and return its result.

        It is called from another thread than the event loop's, and takes no place of those that are admitted. None if ``stop``
        is set before, or ``until`` is over (seconds of :func:`time.monotonic`).
        """
        while time.monotonic() < until and not stop.is_set():
            if not self._admitted:
                return self._pool.submit(work).result()
            stop.wait(SPARE_SECONDS)
        return None

    async def _begun(self, future: Future[T]) -> T:
        """Wait for work that was admitted, but at the deadline give up what has not begun, rather than when a thread is free."""
        waiting = asyncio.wrap_future(future)
        try:
            await asyncio.wait([waiting], timeout=self._deadline)
        except asyncio.CancelledError:
            waiting.cancel()
            raise
        if not waiting.done() and future.cancel():
            raise Refusal("deadline_exceeded")
        return await waiting

    def _admit(self, work: Callable[[], T], ended: Callable[[Future[T]], None]) -> Future[T]:
        self.check_room()
        self._count(+1)
        admitted = time.monotonic()

        def in_thread() -> T:
            if time.monotonic() - admitted > self._deadline:
                raise Refusal("deadline_exceeded")
            return work()

        future = self._pool.submit(in_thread)
        # The slot is given back when the work ends, not when the caller stops waiting: a client that vanishes must neither
        # keep it nor free it while a thread still works.
        future.add_done_callback(ended)
        return future

    def _release(self, _: Future[Any]) -> None:
        self._count(-1)

    def close(self) -> None:
        """Finish what was admitted, then stop."""
        self._pool.shutdown(wait=True)  # first: what it finishes goes on to the other
        self._committer.shutdown(wait=True)
