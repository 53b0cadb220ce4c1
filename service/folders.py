"""``overread folder``: a folder of DICOM files in, a folder of result objects out, as mercure and its like run a module."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from models.command import command_parser
from models.durable import write_whole
from models.errors import Refusal
from models.image import Box, read_box
from service.analysis import Site
from service.arrivals import OUTSIDE
from service.dicom_results import dicom_bytes
from service.outgoing import analyse
from service.settings import read_settings

REPORT_NAME = "result.json"


def _read(file: Path, most: int) -> bytes | None:
    """Return a DICOM file; None of any other, as routers put their own task files beside them.

    Raises
    ------
    Refusal
        ``too_large`` beyond ``most`` bytes, ``not_decodable`` if it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            head = stream.read(132)
            if head[128:] != b"DICM":
                return None
            if file.stat().st_size > most:
                raise Refusal("too_large")
            return head + stream.read()
    except OSError as error:
        raise Refusal("not_decodable", f"The file cannot be read ({type(error).__name__}).") from error


def run(site: Site, source: Path, target: Path, region: Box | None = None) -> dict[str, Any]:
    """Analyse every DICOM file below a folder, and write the objects into another.

    Parameters
    ----------
    site : Site
    source, target : Path
        Existing folders. Files of ``target`` are named by number, since a UID or the source's name is an identity.
    region : (int, int, int, int) or None
        The part of each image to analyse.

    Returns
    -------
    dict
        What is written as ``result.json``: each committed result's id, verdict and reasons, and for the others how many there are
        of each error code, those that are outside of the model apart from those that failed.
    """
    skipped: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    answered: list[dict[str, Any]] = []
    written = 0
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        try:
            data = _read(file, site.settings.max_body_bytes)
            if data is None:
                continue
            reply, objects = analyse(site, data, lambda _modality, _uid: None, region)
        except Refusal as refusal:
            (skipped if refusal.code in OUTSIDE else failed)[refusal.code] += 1
            continue
        for item in objects:
            written += 1
            (target / f"overread-{written:04d}-{item.Modality.lower()}.dcm").write_bytes(dicom_bytes(item))
        judgement = reply.judgement
        result = {"result_id": reply.stored.result["id"], "verdict": judgement.verdict, "reasons": list(judgement.reasons)}
        answered.append(result)
    return {"results": answered, "objects": written, "skipped": dict(skipped), "failed": dict(failed)}


def main(argv: list[str]) -> int:
    """Run ``overread folder``."""
    parser = command_parser(
        "folder",
        "Analyse the DICOM files of a folder, and write result objects and result.json into another. docs/pacs.md.",
        'overread folder "$MERCURE_IN_DIR" "$MERCURE_OUT_DIR"',
    )
    parser.add_argument("source", type=Path, metavar="IN", help="folder of the images, with its subfolders")
    parser.add_argument("target", type=Path, metavar="OUT", help="folder of the results; created when missing")
    parser.add_argument(
        "--region", metavar="X,Y,WIDTH,HEIGHT", help="analyse this part only; of a whole slide there has to be one"
    )
    options = parser.parse_args(argv)
    region = None if options.region is None else read_box(options.region)
    if not options.source.is_dir():
        raise Refusal("data_invalid", "IN is not a folder.")
    try:
        options.target.mkdir(parents=True, exist_ok=True)
        site = Site(read_settings())
        try:
            report = run(site, options.source, options.target, region)
        finally:
            site.close()
        write_whole(options.target / REPORT_NAME, (json.dumps(report, indent=1) + "\n").encode())
    except OSError as error:  # files that cannot be read are counted instead
        raise Refusal("config_invalid", f"OUT cannot be written ({type(error).__name__}).") from error
    found = f"{len(report['results'])} analysed, {report['objects']} objects written"
    print(f"{found}, {sum(report['skipped'].values())} skipped, {sum(report['failed'].values())} failed")
    return 1 if report["failed"] else 0
