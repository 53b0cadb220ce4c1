"""A clock for what is promised in seconds: a machine that stands still for a while is no fault of the server that is measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TICK, MOST = 0.02, 0.25
"""Seconds between two looks at the clock, and between two that say that the machine, or this process, goes on."""


@contextmanager
def still_clock() -> Iterator[Callable[[], float]]:
    """Give a function that returns seconds, in which this process ran: a server that is slow while it runs is seen to be slow."""
    lock, over = threading.Lock(), threading.Event()
    last, stood = time.perf_counter(), 0.0

    def seconds() -> float:
        nonlocal last, stood
        with lock:
            now = time.perf_counter()
            stood += max(0.0, now - last - MOST)
            last = now
            return now - stood

    def tick() -> None:
        while not over.wait(TICK):
            seconds()

    ticking = threading.Thread(target=tick, daemon=True)
    ticking.start()
    try:
        yield seconds
    finally:
        over.set()
        ticking.join()
