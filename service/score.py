"""``overread score``: a whole archive, on Ray Data: one row a file in Parquet, and a run that was stopped goes on."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from models.batch import load_model
from models.card import DEFAULT_MODEL, ModelCard, SegmenterCard
from models.command import command_parser
from models.errors import Refusal
from service.arrivals import OUTSIDE
from service.score_archive import open_source
from service.score_output import PASSED_OVER, Made, Output
from service.score_rows import failed_row, parquet_of, rows_of, schema_of
from service.settings import drop_proxies, read_settings

if TYPE_CHECKING:
    from service.score_ray import Job, Piece

LOCK = "score.lock"
PART_FILES = 256
"""Files of a part: what is lost at most, times the processes, when a run is killed."""


def _environment(address: str | None) -> None:
    """Set what Ray knows by variables alone: nothing is reported to its makers, and a Ray of our own is for this machine only."""
    drop_proxies()
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    if address is None:
        os.environ |= {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # by its name for other systems; here it is what binds to loopback
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }


def _pieces(output: Output, names: list[bytes], size: int | None = None) -> list[Piece]:
    """Cut the missing parts into pieces of ``size`` files; None is the whole part."""
    from service.score_ray import Piece

    whole = output.made.part_files
    pieces = []
    for part in output.missing:
        first = part * whole
        for start in range(first, first + output.size(part), size or whole):
            pieces.append(Piece(part, start, tuple(names[start : min(start + (size or whole), first + output.size(part))])))
    return pieces


def run(output: Output, job: Job, card: ModelCard | SegmenterCard, address: str | None, workers: int | None) -> None:
    """Score what is missing, whole parts first; files of parts that ended their process come again one by one.

    Raises
    ------
    Refusal
        Where the archive, the cluster or the disk is gone; what was written stays.
    """
    from service.score_ray import running, score  # Ray reads its variables when it is imported

    names = output.listing()
    done = output.files - sum(map(output.size, output.missing))
    with (
        tqdm(total=output.files, initial=done, desc=card.name, unit="file", file=sys.stderr) as bar,
        running(address, workers or os.cpu_count() or 1),
    ):
        for piece, content in score(_pieces(output, names), job, workers):
            output.keep(piece.part, content)
            output.missing.remove(piece.part)
            bar.update(len(piece.names))
        if output.missing:
            singly = _pieces(output, names, 1)
            found = {piece.first: rows_of(content)[0] for piece, content in score(singly, job, workers)}
            if not found and bar.n == done:
                raise Refusal("cluster_unavailable", "Each process ended before it had read a file; what was scored is kept.")
            for part in list(output.missing):
                rows = [
                    found.get(piece.first)
                    or failed_row(piece.first, piece.names[0], card, output.made.model_sha256, paths=job.paths)
                    for piece in singly
                    if piece.part == part
                ]
                output.keep(part, parquet_of(rows, schema_of(card)))
                output.missing.remove(part)
                bar.update(len(rows))


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Make the folder of the output if it is not there, and keep other runs out of it; a run that dies lets it go."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise Refusal("config_invalid", f"--out cannot be written ({type(error).__name__}).") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refusal("config_invalid", "Another 'overread score' writes to --out.") from error
        yield
    finally:
        os.close(lock)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "score",
        "Score every image of an archive with a model package, one row a file in Parquet. Bad files have a row with their code "
        "and are passed over. Given again, a run that was stopped goes on. docs/score.md.",
        "overread score archive/ --out scores",
    )
    parser.add_argument("archive", metavar="ARCHIVE", help="a folder, a DICOMDIR, or a DICOMweb address")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the rows; created when missing")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, metavar="PACKAGE", help="folder of a model package")
    parser.add_argument("--address", metavar="HOST:PORT", help="of a Ray cluster; without it, this machine alone")
    parser.add_argument("--workers", type=int, help="processes; one a processor unless given")
    parser.add_argument("--part", type=int, default=PART_FILES, metavar="FILES", help="files of a Parquet part")
    parser.add_argument("--digest-only", action="store_true", help="no file names in the rows, which can hold patients' names")
    return parser


def main(argv: list[str]) -> int:
    """Run ``overread score``; returns 0, or 1 if there are files that should have been scored and could not be."""
    options = _parser().parse_args(argv)
    if options.part < 1 or (options.workers is not None and options.workers < 1):
        raise Refusal("config_invalid", "--part and --workers must be at least 1.")
    predictor = load_model(options.model)
    card, paths = predictor.card, not options.digest_only
    source = open_source(options.archive, read_settings())
    where = hashlib.sha256(source.key.encode("utf-8", "surrogatepass")).hexdigest()
    made = Made(card.name, card.version, predictor.sha256, where, options.part, paths)
    _environment(options.address)
    with _claimed(options.out):
        output = Output(options.out, made, source.names)
        if output.missing:
            from service.score_ray import Job

            run(output, Job.of(options.model, source, paths=paths), card, options.address, options.workers)
        verdicts, errors = output.finish()
    outside = sum(number for code, number in errors.items() if code in OUTSIDE)
    failed = errors.total() - outside
    said = ", ".join(f"{number} {verdict}" for verdict, number in sorted(verdicts.items()))
    print(f"{verdicts.total()} files scored ({said}), {outside} not for this model, {failed} failed; see {options.out}")
    for code, number in errors.most_common():
        print(f"  {code}: {number}, listed in {PASSED_OVER}")
    return 1 if failed else 0
