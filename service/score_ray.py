"""Parts of an archive scored side by side on Ray Data, on this machine or on a cluster: the only ``ray``."""

from __future__ import annotations

import logging
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray
import ray.data
from ray.exceptions import RayError

import models
from models.batch import AnyPredictor, load_model
from models.errors import Refusal
from service.score_archive import Source
from service.score_rows import parquet_of, row_of, schema_of

STARTS = 3
"""Attempts to start Ray on this machine, which gives up after half a minute on one that is busy."""
REACH_SECONDS = 10
STORE_BYTES = 256 * 1024**2
"""Memory that blocks may take on this machine: names go in and rows come out, and images never pass through it."""
FILES = ("card.json", "model.onnx")


@dataclass(frozen=True)
class Piece:
    """What a process scores at once.

    Attributes
    ----------
    part : int
        Of the output.
    first : int
        Position of the first file in the listing.
    names : tuple of bytes
    """

    part: int
    first: int
    names: tuple[bytes, ...]


@dataclass(frozen=True)
class Job:
    """What every process needs; it goes to other machines, and nothing in it lies on this one but what ``source`` names.

    Attributes
    ----------
    package : dict of str to bytes
        The files of the model package.
    source : Source
    paths : bool
        Whether rows may hold names.
    overread : str
        Version of the software, which has to be the same everywhere.
    """

    package: dict[str, bytes]
    source: Source
    paths: bool
    overread: str = models.__version__

    @classmethod
    def of(cls, folder: Path, source: Source, *, paths: bool) -> Job:
        """Read the package of a job, which was opened before."""
        return cls({name: (folder / name).read_bytes() for name in FILES}, source, paths)

    def predictor(self) -> AnyPredictor:
        """Load the model.

        Raises
        ------
        Refusal
            ``cluster_unavailable`` where another version of this software runs; ``package_invalid``.
        """
        if self.overread != models.__version__:
            raise Refusal("cluster_unavailable", f"A node runs overread {models.__version__}, and this is {self.overread}.")
        with TemporaryDirectory(prefix="overread-") as folder:
            for name, content in self.package.items():
                Path(folder, name).write_bytes(content)
            return load_model(Path(folder))


class Worker:
    """Scores pieces, one after the other, in a process of its own."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._predictor: AnyPredictor | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score the one piece of a batch; the answer holds its rows as Parquet, or the code of why there are none."""
        part, first = int(batch["part"][0]), int(batch["first"][0])
        content, code, detail = b"", "", ""
        try:
            if self._predictor is None:  # here, so that what is wrong with it has a code
                self._predictor = self._job.predictor()
            rows = [
                row_of(position, name, self._job.source, self._predictor, paths=self._job.paths)
                for position, name in enumerate(bytes(batch["names"][0]).split(b"\0"), start=first)
            ]
            content = parquet_of(rows, schema_of(self._predictor.card))
        except Refusal as refusal:
            code, detail = refusal.code, refusal.detail
        texts = {"code": np.array([code], dtype=object), "detail": np.array([detail], dtype=object)}
        return {"part": [part], "first": [first], "content": np.array([content], dtype=object), **texts}


@contextmanager
def running(address: str | None, workers: int) -> Iterator[None]:
    """Use a cluster, or start Ray on this machine, for loopback alone, and stop it at the end.

    Parameters
    ----------
    address : str or None
        Of a cluster; None is this machine.
    workers : int
        Processors to use here; a cluster says itself how many it has.

    Raises
    ------
    Refusal
        ``cluster_unavailable``
    """
    for name in ("ray", "ray.data"):  # the latter sets its own level when it is imported
        logging.getLogger(name).setLevel(logging.CRITICAL)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL, "configure_logging": False}
    with TemporaryDirectory(prefix="overread-") as folder:
        if address is None:
            options |= {"num_cpus": workers, "num_gpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
            options |= {"_temp_dir": folder}  # its logs end with it
        try:
            if address is not None:
                _reach(address)
            _start(address or "local", options, STARTS if address is None else 1)
            yield
        except RayError as error:
            raise Refusal("cluster_unavailable", f"Ray failed ({type(error).__name__}); what was scored is kept.") from error
        finally:
            ray.shutdown()


def _reach(address: str) -> None:
    """Refuse an address at which nothing listens at once: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), REACH_SECONDS).close()
    except (OSError, ValueError) as error:
        raise Refusal("cluster_unavailable", "Nothing answers at that address, which is HOST:PORT of the head node.") from error


def _start(address: str, options: dict[str, Any], attempts: int) -> None:
    for left in reversed(range(attempts)):
        try:
            ray.init(address, **options)
        # A cluster that is not there, is of another version or does not start in time raises one of half a dozen types
        except Exception as error:
            ray.shutdown()
            if not left:
                raise Refusal("cluster_unavailable", f"Ray did not start or answer ({type(error).__name__}).") from error
        else:
            return


def score(pieces: Sequence[Piece], job: Job, workers: int | None) -> Iterator[tuple[Piece, bytes]]:
    """Score pieces, and give each as it is done, in any order.

    A piece that ends the process that works on it, twice, is left out.

    Parameters
    ----------
    pieces : sequence of Piece
    job : Job
    workers : int or None
        Processes; None is one a processor of the cluster.

    Yields
    ------
    piece : Piece
    content : bytes
        Its rows, as Parquet.

    Raises
    ------
    Refusal
        What a process says of all files, such as that the archive went away.
    """
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    processors = max(int(resources.get("CPU", 1)), 1)
    processes = min(workers or processors, processors, len(pieces))
    by_start = {piece.first: piece for piece in pieces}
    items = [{"part": each.part, "first": each.first, "names": b"\0".join(each.names)} for each in pieces]
    _configure()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the restarts of a process have no other parameter yet
        data = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            Worker,
            fn_constructor_args=(job,),
            batch_size=1,
            batch_format="numpy",
            # One piece at a time: what waits behind a piece that ends its process would be taken to have ended it too
            compute=ray.data.ActorPoolStrategy(size=processes, max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            max_restarts=-1,
            max_task_retries=1,
        )
    for batch in data.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        for first, content, code, detail in zip(batch["first"], batch["content"], batch["code"], batch["detail"], strict=True):
            if code:
                raise Refusal(str(code), str(detail))
            yield by_start[int(first)], bytes(content)


def _configure() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Ray's own defaults
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.max_errored_blocks = -1  # a block is a piece: the others go on
