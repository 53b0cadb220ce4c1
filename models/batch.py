"""``overread predict``: predictions for files and folders, without a server."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from models.errors import Refusal
from models.imaging import read_image
from models.predictor import Predictor
from models.preprocess import check_accepted
from models.triage import judge, positives

ZOO = Path(__file__).parent / "zoo"
SUFFIXES = {".dcm", ".dicom", ".png", ".jpg", ".jpeg", ""}
"""File endings that a folder is searched for; DICOM files often have none. A file named outright is always read."""


MAX_FILE_BYTES = 512 * 1024 * 1024
"""Larger files are refused unread: no single image that is taken needs as much."""


def find_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the files named, and those inside the folders named, in order of path.

    Raises
    ------
    Refusal
        ``data_invalid`` if a path does not exist.
    """
    for path in paths:
        if path.is_dir():
            yield from sorted(
                item
                for item in path.rglob("*")
                if item.is_file() and item.suffix.lower() in SUFFIXES and not item.name.startswith(".")
            )
        elif path.exists():
            yield path
        else:
            raise Refusal("data_invalid", f"There is no file or folder {path}.")


def predict_file(path: Path, predictor: Predictor) -> dict[str, Any]:
    """Return one flat row for a file: the prediction, or the code of why there is none."""
    row: dict[str, Any] = {"file": str(path)}
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise Refusal("too_large", f"The file may have {MAX_FILE_BYTES} bytes at most.")
        spec = predictor.card.input
        image = read_image(path.read_bytes(), target=(spec.height, spec.width))
        notes = [code for code, _ in check_accepted(image, spec)]
        prediction = predictor.predict([image])[0]
    except Refusal as refusal:
        return row | {"error": refusal.code, "detail": refusal.detail}
    except OSError as error:
        return row | {"error": "not_decodable", "detail": f"The file cannot be read ({type(error).__name__})."}
    judgement = judge(prediction, predictor.card.triage, notes)
    called = positives(prediction, predictor.card, judgement.verdict)
    row |= {"image_sha256": image.sha256, "model": predictor.card.name, "model_sha256": predictor.sha256}
    for label, positive in called.items():
        row |= {f"probability_{label}": prediction.probabilities[label], f"positive_{label}": positive}
    return row | {
        "predicted_loss": prediction.predicted_loss,
        "loss_percentile": prediction.loss_percentile,
        "domain_distance": prediction.domain_distance,
        "domain_percentile": prediction.domain_percentile,
        "entropy": prediction.entropy,
        "verdict": judgement.verdict,
        "reasons": " ".join(judgement.reasons),
    }


def _columns(predictor: Predictor) -> list[str]:
    findings = [f"{kind}_{item.label}" for item in predictor.card.output.findings for kind in ("probability", "positive")]
    doubts = ["predicted_loss", "loss_percentile", "domain_distance", "domain_percentile", "entropy"]
    return ["file", "image_sha256", "model", "model_sha256", *findings, *doubts, "verdict", "reasons", "error", "detail"]


def _write(rows: Iterable[dict[str, Any]], out: TextIO, columns: list[str] | None) -> tuple[int, int]:
    """Write rows as they come, CSV with ``columns`` or one JSON document a line; return how many, and how many failed."""
    writer = csv.DictWriter(out, columns) if columns else None
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
    parser = argparse.ArgumentParser(
        prog="overread predict",
        description="Predict for files and folders. Bad files are reported in the output and passed over.",
        epilog="example: overread predict scans/ --out results.csv",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE|FOLDER")
    parser.add_argument("--out", required=True, type=Path, help="results.csv or results.jsonl")
    parser.add_argument("--model", type=Path, default=ZOO / "cxr-pneumonia", help="folder of a model package")
    parser.add_argument("--threads", type=int, default=2, help="images predicted side by side")
    options = parser.parse_args(argv)
    if options.out.suffix not in {".csv", ".jsonl"}:
        raise Refusal("config_invalid", "--out must end in .csv or .jsonl.")
    if options.threads < 1:
        raise Refusal("config_invalid", "--threads must be at least 1.")
    predictor = Predictor.load(options.model)
    files = list(find_files(options.paths))
    columns = _columns(predictor) if options.out.suffix == ".csv" else None
    with ThreadPoolExecutor(options.threads) as pool, options.out.open("w", newline="", encoding="utf-8") as out:
        rows = pool.map(lambda path: predict_file(path, predictor), files)
        done, failed = _write(tqdm(rows, total=len(files), unit="image", file=sys.stderr), out, columns)
    print(f"{done} files: {done - failed} predicted, {failed} refused; see {options.out}")
    return 1 if failed else 0
