"""``overread predict``: predictions for files and folders, without a server."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias

from tqdm import tqdm

from models.card import DEFAULT_MODEL, GRAPH_OUTPUTS, SEGMENTER_OUTPUTS, InputSpec, ModelCard, SegmenterCard, read_package
from models.command import command_parser
from models.durable import write_whole
from models.errors import Refusal
from models.image import Box, Image, read_box
from models.imaging import read_image
from models.predictor import Graph, Predictor
from models.preprocess import check_accepted
from models.triage import Judgement, called_objects, judge, positives
from models.uncertainty import predicted_loss_unseen

if TYPE_CHECKING:
    from models.segmenter import SegmenterPredictor
    from models.signature import PublicKey

AnyPredictor: TypeAlias = "Predictor | SegmenterPredictor"

SUFFIXES = {".dcm", ".dicom", ".png", ".jpg", ".jpeg", ""}
"""File endings that a folder is searched for; DICOM files often have none. A file named outright is always read."""


QUANTITIES = ("count", "density_per_mm2", "density_per_megapixel", "area_fraction")
"""What a table says of a segmenter's objects; of the densities only one is known."""
UNSEEN = "predicted_loss_unseen"
DOUBTS = ("predicted_loss", "loss_percentile", "domain_distance", "domain_percentile", "entropy")

MAX_FILE_BYTES = 512 * 1024 * 1024
"""Larger files are refused unread: no single image that is taken needs as much."""

NAME_BYTES = 190
"""Of a file's name that the name of its objects begins with: the whole may have 255."""


def open_package(folder: Path, trusted: Sequence[PublicKey] = ()) -> tuple[ModelCard | SegmenterCard, Graph, str]:
    """Return the card, the graph and the identity of the model package in ``folder``, of whatever kind it is.

    Parameters
    ----------
    folder : Path
    trusted : sequence of PublicKey
        One of which must have signed it, if there are any.

    Raises
    ------
    Refusal
        ``package_invalid`` if anything in it is not exactly as released; ``package_untrusted``.
    """
    card, graph, sha256 = read_package(folder)
    if trusted:  # before the graph is looked at
        from models.signature import verify  # most sites need no cryptography

        verify(folder, card, trusted)
    return card, Graph(graph, outputs=GRAPH_OUTPUTS if isinstance(card, ModelCard) else SEGMENTER_OUTPUTS), sha256


def load_model(folder: Path, trusted: Sequence[PublicKey] = ()) -> AnyPredictor:
    """Load the model package in ``folder``; refused as :func:`open_package` says."""
    card, graph, sha256 = open_package(folder, trusted)
    if isinstance(card, ModelCard):
        return Predictor(card, graph, sha256)
    # Here, because what separates objects takes a quarter of a second to import, and a classifier needs none of it
    from models.segmenter import SegmenterPredictor

    return SegmenterPredictor(card, graph, sha256)


def is_image_name(name: str) -> bool:
    """Tell whether a file inside a folder is taken for an image by its name; DICOM files are often named by their UID."""
    suffix = Path(name).suffix.lower()
    return not name.startswith(".") and (suffix in SUFFIXES or suffix[1:].isdecimal())


def find_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the files named, and those inside the folders named, in order of path.

    Raises
    ------
    Refusal
        ``data_invalid`` if a path does not exist, ``folder_unavailable`` if it cannot be listed.
    """
    for number, path in enumerate(paths, start=1):
        try:
            folder, there = path.is_dir(), path.exists()
            inside = sorted(item for item in path.rglob("*") if is_image_name(item.name) and item.is_file()) if folder else []
        except OSError as error:  # of a dead mount, which is there and cannot be listed
            raise gone("Nothing was read of it yet.") from error
        if not there:
            # Not by its name, which may be a patient's, and standard error is often a log
            raise Refusal("data_invalid", f"There is no such file or folder: the path given as number {number}.")
        yield from inside if folder else [path]


def gone(kept: str) -> Refusal:
    """Return what is raised where a folder of images is not there any more; ``kept`` says what becomes of the work so far."""
    return Refusal("folder_unavailable", f"The folder of the images went away while it was read. {kept}")


def check_there(folder: Path, kept: str) -> None:
    """Tell a file that cannot be read from a folder that went away: what a lost mount leaves is missing, dead or empty.

    Parameters
    ----------
    folder : Path
        Where the files that are read lie.
    kept : str
        What becomes of the work done so far, in a sentence.

    Raises
    ------
    Refusal
        ``folder_unavailable``.
    """
    try:
        with os.scandir(folder) as entries:
            there = next(entries, None) is not None
    except OSError as error:
        raise gone(kept) from error
    if not there:
        raise gone(kept)


def file_bytes(path: Path) -> bytes:
    """Return the bytes of a file; a Refusal, ``too_large`` or ``not_decodable``, if it has too many or cannot be read."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise Refusal("too_large", f"The file may have {MAX_FILE_BYTES} bytes at most.")
        return path.read_bytes()
    except OSError as error:
        raise Refusal("not_decodable", f"The file cannot be read ({type(error).__name__}).") from error


def read_file(path: Path, spec: InputSpec, *, whole: bool = False, region: Box | None = None) -> tuple[Image, list[str]]:
    """Read an image that a model takes.

    Parameters
    ----------
    path : Path
    spec : InputSpec
        Of the model.
    whole : bool
        Whether all pixels are wanted; otherwise it may be decoded at a reduced resolution, since it becomes ``spec``'s size.
    region : (int, int, int, int) or None
        Of a whole slide, the part to decode.

    Returns
    -------
    image : Image
    notes : list of str
        Codes of what is a reason for review: see :func:`models.preprocess.check_accepted`.

    Raises
    ------
    Refusal
        ``too_large`` or ``not_decodable``, or as reading and accepting an image refuses.
    """
    return read_bytes(file_bytes(path), spec, whole=whole, region=region)


def read_bytes(data: bytes, spec: InputSpec, *, whole: bool = False, region: Box | None = None) -> tuple[Image, list[str]]:
    """Read the bytes of a file, as :func:`read_file` says."""
    image = read_image(data, target=None if whole else (spec.height, spec.width), region=region)
    return image, [code for code, _ in check_accepted(image, spec)]


def predict_file(path: Path, predictor: AnyPredictor, objects: Path | None = None, region: Box | None = None) -> dict[str, Any]:
    """Return one row for a file: the prediction, or the code of why there is none.

    A segmenter's row also holds the nested ``quantities``, ``tiles`` and ``objects``; where ``objects`` is a folder, a GeoJSON
    file is written there, named after the file, the image's digest and the region, which is predicted alone where it is given.
    """
    row: dict[str, Any] = {"file": str(path)}
    try:
        image, notes = read_file(path, predictor.card.input, whole=not isinstance(predictor, Predictor), region=region)
        if isinstance(predictor, Predictor):
            return row | classified(image, predictor, notes)
        collection, found = segmented(image, predictor, notes, region)
    except Refusal as refusal:
        return row | {"error": refusal.code, "detail": refusal.detail}
    if objects is not None:
        name = os.fsdecode(os.fsencode(path.name)[:NAME_BYTES])
        part = "-" + "-".join(map(str, region)) if region else ""
        write_whole(objects / f"{name}-{image.sha256[:12]}{part}.geojson", json.dumps(collection, allow_nan=False).encode())
    return row | found


def _identity(image: Image, predictor: AnyPredictor) -> dict[str, Any]:
    return {"image_sha256": image.sha256, "model": predictor.card.name, "model_sha256": predictor.sha256}


def _doubts(prediction: Any, judgement: Judgement) -> dict[str, Any]:
    return {name: getattr(prediction, name) for name in DOUBTS} | {
        "verdict": judgement.verdict,
        "reasons": " ".join(judgement.reasons),
    }


def classified(image: Image, predictor: Predictor, notes: list[str]) -> dict[str, Any]:
    """Return the row of an image without its file: identity, probabilities, what is called positive, doubts and verdict."""
    (prediction,) = predictor.predict([image])
    judgement = judge(prediction, predictor.card.triage, notes)
    row = _identity(image, predictor)
    for label, positive in positives(prediction, predictor.card, judgement.verdict).items():
        row |= {f"probability_{label}": prediction.probabilities[label], f"positive_{label}": positive}
    row[UNSEEN] = predicted_loss_unseen(prediction.entropy, predictor.card.calibration)
    return row | _doubts(prediction, judgement)


def segmented(
    image: Image, predictor: SegmenterPredictor, notes: list[str], region: Box | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the objects as GeoJSON, and the row without its file, with nested quantities, tiles and objects."""
    from models.geojson import feature_collection
    from models.quantities import quantities

    found, _ = predictor.predict(image, region)
    judgement = judge(found, predictor.card.triage, notes)
    called = replace(found, objects=called_objects(found.objects, judgement.verdict))
    measured = None if judgement.verdict == "refuse" else quantities(found, image.spacing_mm)
    row = _identity(image, predictor) | {name: (measured or {}).get(name) for name in QUANTITIES}
    row |= _doubts(found, judgement) | {"quantities": measured, "tiles": [vars(tile) for tile in found.tiles]}
    row["objects"] = [vars(item) | {"polygon": item.polygon.tolist()} for item in called.objects]
    return feature_collection(called, predictor.card.output.label), row


def _columns(predictor: AnyPredictor) -> list[str]:
    if isinstance(predictor, Predictor):
        said = [f"{kind}_{item.label}" for item in predictor.card.output.findings for kind in ("probability", "positive")]
        said.append(UNSEEN)
    else:
        said = list(QUANTITIES)
    return ["file", "image_sha256", "model", "model_sha256", *said, *DOUBTS, "verdict", "reasons", "error", "detail"]


def _write(rows: Iterable[dict[str, Any]], out: TextIO, columns: list[str] | None) -> tuple[int, int]:
    """Write rows as they come, CSV with ``columns`` or one JSON document a line; return how many, and how many failed."""
    # What is nested has no place in a table
    writer = csv.DictWriter(out, columns, extrasaction="ignore") if columns else None
    if writer:
        writer.writeheader()
    done = failed = 0
    for row in rows:
        if writer:
            writer.writerow(row)
        else:
            out.write(json.dumps(row, allow_nan=False) + "\n")
        out.flush()
        done += 1
        failed += "error" in row
    return done, failed


def main(argv: list[str]) -> int:
    """Run ``overread predict``; returns 0, or 1 if a file could not be predicted."""
    parser = command_parser(
        "predict",
        "Predict for files and folders. Bad files are reported in the output and passed over.",
        "overread predict scans/ --out results.csv",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE|FOLDER")
    parser.add_argument("--out", required=True, type=Path, help="results.csv or results.jsonl")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="folder of a model package")
    parser.add_argument("--objects", type=Path, metavar="FOLDER", help="of a segmenter: also write a GeoJSON file an image there")
    parser.add_argument("--region", metavar="X,Y,WIDTH,HEIGHT", help="of a segmenter: this part only; a whole slide needs one")
    parser.add_argument("--threads", type=int, default=2, help="images predicted side by side")
    options = parser.parse_args(argv)
    if options.out.suffix not in {".csv", ".jsonl"}:
        raise Refusal("config_invalid", "--out must end in .csv or .jsonl.")
    if options.threads < 1:
        raise Refusal("config_invalid", "--threads must be at least 1.")
    predictor = load_model(options.model)
    if options.objects is not None and isinstance(predictor, Predictor):
        raise Refusal("config_invalid", "--objects needs a model that finds objects.")
    region = None if options.region is None else read_box(options.region)
    if region is not None and isinstance(predictor, Predictor):
        raise Refusal("config_invalid", "--region needs a model that finds objects.")
    files = list(find_files(options.paths))
    columns = _columns(predictor) if options.out.suffix == ".csv" else None
    try:
        if options.objects is not None:
            options.objects.mkdir(parents=True, exist_ok=True)
        # A file's name may hold bytes that are no text: they are written as they are
        out = options.out.open("w", newline="", encoding="utf-8", errors="surrogateescape")
        with ThreadPoolExecutor(options.threads) as pool, out:
            rows = pool.map(lambda path: predict_file(path, predictor, options.objects, region), files)
            done, failed = _write(tqdm(rows, total=len(files), unit="image", file=sys.stderr), out, columns)
    except OSError as error:  # files that cannot be read have a row instead
        raise Refusal("config_invalid", f"--out or --objects cannot be written ({type(error).__name__}).") from error
    print(f"{done} files: {done - failed} predicted, {failed} refused; see {options.out}")
    return 1 if failed else 0
