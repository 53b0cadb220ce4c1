"""``overread erase``: remove all that there is of a patient. Who that is comes from a file, never as an argument."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from models.command import command_parser
from models.errors import Refusal
from service.audit import operator
from service.erasure import Asked, Eraser, Found
from service.kept import Kept
from service.pseudonyms import Pseudonyms, Whose, read_key
from service.settings import keep_temporary_files, read_settings
from service.store import Store

MAX_BYTES = 16 * 1024 * 1024


def _lines(name: str | None) -> list[str]:
    """Return the lines of a file that hold something; of standard input where it is called ``-``."""
    if name is None:
        return []
    try:
        raw = sys.stdin.buffer.read(MAX_BYTES + 1) if name == "-" else Path(name).read_bytes()
        lines = [line.strip(" \r") for line in raw.decode("utf-8-sig").split("\n")] if len(raw) <= MAX_BYTES else []
    except (OSError, ValueError) as error:
        raise Refusal("data_invalid", "The file cannot be read; it has one identifier a line, in UTF-8.") from error
    found = [line for line in lines if line]
    if any("\0" in line for line in found):
        raise Refusal("data_invalid", "The file holds NUL characters; it has one identifier a line, in UTF-8.")
    if not found:
        raise Refusal("data_invalid", "The file has no line; it has one identifier a line, and 16 MiB at most.")
    return found


def read_patients(lines: list[str], pseudonyms: Pseudonyms) -> tuple[tuple[Whose, bool], ...]:
    """Return whose images are meant: a line holds a PatientID, and after a tab its issuer where it has one."""
    patients = []
    for line in lines:
        number, tab, issuer = line.partition("\t")
        if not number.strip():
            raise Refusal("data_invalid", "A line begins with a tab: it has a PatientID, then a tab and its issuer.")
        patients.append((pseudonyms.of_number(number.strip(), issuer.strip()), bool(tab)))
    return tuple(patients)


def _remarks(eraser: Eraser, found: Found) -> list[str]:
    """Return what the operator has to see to elsewhere."""
    remarks = []
    if days := eraser.exported((*found.images, *found.shared)):
        remarks.append(f"Copies left with labels or tasks that were exported, and are to be erased there: {'; '.join(days)}.")
    if found.shared:
        remarks.append(f"{len(found.shared)} images stay, since another patient has the very same: only the link went.")
    if found.patients and (unknown := eraser.unknown()):
        remarks.append(f"{unknown} other instances have no patient noted: those are found by their SOP Instance UIDs alone.")
    remarks.append("Backups hold them until they are replaced: keep what was asked, and erase again after a restore.")
    return remarks


def main(argv: list[str]) -> int:
    """Run ``overread erase``; returns 0, or 1 where bytes may be left in the database's files."""
    parser = command_parser(
        "erase",
        "Remove all that there is of a patient: pixels, results, labels, items, and what is known of the archive. "
        "Erase in the archive first: what it still holds may be analysed again.",
        "overread erase --patient-id-file -",
        allow_abbrev=False,  # --patient-id would be taken for --patient-id-file
    )
    parser.add_argument("--patient-id-file", metavar="FILE", help="a PatientID a line, after a tab its issuer; - reads stdin")
    parser.add_argument("--uid-file", metavar="FILE", help="a SOP Instance UID a line; - reads stdin")
    parser.add_argument("--image", action="append", default=[], metavar="DIGEST", help="an image_sha256; may be repeated")
    parser.add_argument("--dry-run", action="store_true", help="say what would be removed")
    options = parser.parse_args(argv)
    if not (options.patient_id_file or options.uid_file or options.image):
        parser.error("say what: --patient-id-file, --uid-file or --image")
    if options.patient_id_file == options.uid_file == "-":
        parser.error("standard input can be one file only")
    if not all(re.fullmatch("[0-9a-f]{64}", digest) for digest in options.image):
        raise Refusal("config_invalid", "--image has 64 hexadecimal digits, as an answer's image_sha256.")
    settings = read_settings()
    if settings.store == settings.database and not settings.database.exists():
        raise Refusal("config_invalid", "There is no database in OVERREAD_STATE.")
    pseudonyms = Pseudonyms(read_key(settings.pseudonym_key))
    patients = read_patients(_lines(options.patient_id_file), pseudonyms)
    asked = Asked(patients, tuple(_lines(options.uid_file)), tuple(options.image))
    keep_temporary_files(settings.state)
    store = Store(settings.store)
    try:
        store.check_key(pseudonyms.fingerprint())  # another secret would find nobody
        eraser = Eraser(store, Kept(settings.kept))
        found = eraser.find(asked)
        if options.dry_run:
            print(f"would remove {len(found.images)} images")
            return 0
        remarks = _remarks(eraser, found)
        removed = eraser.erase(found, operator())
        clean = eraser.scrub()
    finally:
        store.close()
    print(f"removed {removed.images} images, {removed.results} results, {removed.labels} labels")
    if removed.objects:
        print(f"{removed.objects} objects of ours were stored in the archive: erase the study there, if that was not done.")
    print("\n".join(remarks))
    if not clean:
        print("The database was busy: removed bytes may be left in its files. Run 'overread erase' again at a quieter time.")
    return 0 if clean else 1
