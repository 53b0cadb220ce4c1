"""``overread backup`` and ``overread restore``: the whole state of a site in a folder, made while the service runs.

The database is copied in one read transaction. Pictures are written before the transaction that names them and removed within
one, so copying them after the database loses only what expired meanwhile; the restored site sees that by itself.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import sqlalchemy as sa
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from models import __version__
from models.command import command_parser
from models.durable import sync, write_new
from models.errors import Refusal
from service.audit import note, operator
from service.database import coded, file_of
from service.loop_schemas import Digest
from service.settings import Settings, keep_temporary_files, read_settings
from service.store import Store
from service.tables import kept_images, sessions

MANIFEST = "backup.json"
DATABASE = "overread.sqlite3"
SECRETS = ("pseudonym.key", "tokens.json")
UNFINISHED = ".restoring"
_HEX = "[0-9a-f]"
_NAMES = re.compile(
    rf"{re.escape(DATABASE)}|pseudonym\.key|tokens\.json|kept/{_HEX}{{2}}/{_HEX}{{64}}\.png"
    rf"|packages/{_HEX}{{64}}/[A-Za-z0-9_][A-Za-z0-9_.-]{{0,63}}"
)
_CHUNK = 1024 * 1024
_LIVE = sa.select(kept_images.c.image_sha256).where(kept_images.c.removed_at.is_(None))


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class File(_Document):
    """A file of a backup."""

    sha256: Digest
    bytes: Annotated[int, Field(ge=0)]


class Manifest(_Document):
    """``backup.json``, written last: a folder without it is no backup.

    ``secrets`` are the files that have to be kept as safe as the state folder: with them, who holds a PatientID can tell its
    pseudonym, and who holds a token's hash can try guesses.
    """

    schema_version: Literal[1]
    created_at: AwareDatetime
    overread: str
    secrets: tuple[str, ...]
    files: dict[str, File]


def copy(source: Path, target: Path) -> File:
    """Copy a file, of mode 0600; it is on disk when this returns. Returns what was copied."""
    digest, number = hashlib.sha256(), 0
    with source.open("rb") as stream:  # first: where it is missing, nothing is made
        for folder in (target.parent.parent, target.parent):  # the mode is the last folder's only
            folder.mkdir(exist_ok=True, mode=0o700)
        with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            while block := stream.read(_CHUNK):
                digest.update(block)
                number += len(block)
                out.write(block)
            out.flush()
            os.fsync(out.fileno())
    return File(sha256=digest.hexdigest(), bytes=number)


def _digest(file: Path) -> File:
    with file.open("rb") as stream:
        return File(sha256=hashlib.file_digest(stream, "sha256").hexdigest(), bytes=file.stat().st_size)


@contextmanager
def _opened(file: Path) -> Iterator[sa.Connection]:
    """Open a copy of the database that nobody else uses."""
    engine = sa.create_engine(f"sqlite:///{file}")
    try:
        with coded(), engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def _is_whole(connection: sa.Connection) -> bool:
    return list(connection.exec_driver_sql("PRAGMA integrity_check").scalars()) == ["ok"]


def _snapshot(store: Store, file: Path) -> list[str]:
    """Copy the database without its sessions; return the digests of the images whose pixels it says are kept."""
    with store.reading() as connection:  # a statement is a transaction of its own here
        connection.exec_driver_sql("VACUUM INTO ?", (str(file),))
    file.chmod(0o600)
    with _opened(file) as connection:
        connection.exec_driver_sql("PRAGMA secure_delete = ON")
        connection.execute(sa.delete(sessions))  # one that was closed since must not come back
        if not _is_whole(connection):
            raise Refusal("storage_unavailable", "The database is damaged: restore an earlier backup.")
        images = list(connection.execute(_LIVE).scalars())
    sync(file)
    return images


def back_up(settings: Settings, out: Path) -> tuple[Manifest, str]:
    """Write a backup; return its manifest and its digest, that of the manifest's bytes.

    Parameters
    ----------
    settings : Settings
    out : Path
        Must not exist. It is there once the backup is whole; killed in between, ``OUT.partial`` is left, and is replaced.

    Raises
    ------
    Refusal
        ``output_exists``; ``config_invalid`` without a database; ``storage_*``, also where pixels are missing or the database is
        damaged.
    """
    if not file_of(settings.store).exists():
        raise Refusal("config_invalid", "There is no database in OVERREAD_STATE.")
    if out.exists():
        raise Refusal("output_exists", "The folder is there already: name another one.")
    part = out.with_name(out.name + ".partial")
    store = Store(settings.database)
    try:
        with coded():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True, mode=0o700)
            try:
                manifest, raw = _fill(settings, store, part)
                part.rename(out)
                sync(out.parent.absolute())
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
    finally:
        store.close()
    return manifest, hashlib.sha256(raw).hexdigest()


def _fill(settings: Settings, store: Store, part: Path) -> tuple[Manifest, bytes]:
    with store.writing() as connection:
        note(connection, operator(), "backup_made")
    created_at = datetime.now(UTC)
    images = _snapshot(store, part / DATABASE)
    files = {DATABASE: _digest(part / DATABASE)}
    missing = []
    for image in images:
        name = f"kept/{image[:2]}/{image}.png"
        try:
            files[name] = copy(settings.state / name, part / name)
        except FileNotFoundError:
            missing.append(image)
    with store.reading() as connection:  # those that expired meanwhile are no loss
        if set(missing) & set(connection.execute(_LIVE).scalars()):
            raise Refusal(
                "storage_unavailable", "Kept pixels are missing; the service notes that within the hour: try again then."
            )
    for source in sorted(settings.packages.glob("*/*")):
        name = source.relative_to(settings.state).as_posix()
        if _NAMES.fullmatch(name):
            files[name] = copy(source, part / name)
    for name in SECRETS:
        if (settings.state / name).exists():
            files[name] = copy(settings.state / name, part / name)
    secrets = tuple(name for name in SECRETS if name in files)
    manifest = Manifest(schema_version=1, created_at=created_at, overread=__version__, secrets=secrets, files=files)
    raw = (manifest.model_dump_json(indent=1) + "\n").encode()
    write_new(part / MANIFEST, raw)
    sync(*(path for path in part.rglob("*") if path.is_dir()), part)
    return manifest, raw


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """Read a backup's manifest; return it and the backup's digest.

    Raises
    ------
    Refusal
        ``backup_invalid`` if there is none, or it names what no backup holds, or other files are there than it names.
    """
    try:
        raw = (folder / MANIFEST).read_bytes()
        manifest = Manifest.model_validate_json(raw)
    except OSError as error:
        raise Refusal("backup_invalid", "backup.json cannot be read: the folder is no backup, or an unfinished one.") from error
    except ValidationError as error:
        raise Refusal("backup_invalid", "backup.json is not as this version writes it.") from error
    if DATABASE not in manifest.files or not all(_NAMES.fullmatch(name) for name in manifest.files):
        raise Refusal("backup_invalid", "backup.json names files that no backup holds.")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    if there != {MANIFEST, *manifest.files}:
        raise Refusal("backup_invalid", "The folder holds other files than backup.json names.")
    return manifest, hashlib.sha256(raw).hexdigest()


def check(folder: Path) -> tuple[Manifest, str]:
    """Check every digest of a backup; return its manifest and its digest.

    Raises
    ------
    Refusal
        ``backup_invalid``.
    """
    manifest, sha256 = read_manifest(folder)
    with coded():
        for name, file in manifest.files.items():
            if _digest(folder / name) != file:
                raise Refusal("backup_invalid", "A file of the backup is not the one that was written.")
    return manifest, sha256


def restore(folder: Path, state: Path) -> Manifest:
    """Make a state folder of a backup; the database comes last, so that a killed restore can be made again.

    Parameters
    ----------
    folder : Path
    state : Path
        Must be missing or empty, or hold an unfinished restore.

    Raises
    ------
    Refusal
        ``backup_invalid`` for a file that was changed, ``output_exists``, ``storage_*``, also for a backup of a newer version.
    """
    manifest, sha256 = read_manifest(folder)
    part = state / UNFINISHED
    with coded():
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        if (state / DATABASE).exists() or (any(state.iterdir()) and not part.exists()):
            raise Refusal("output_exists", "OVERREAD_STATE is not empty: move it away first.")
        for path in state.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        part.mkdir(mode=0o700)
        for name, file in manifest.files.items():
            if copy(folder / name, part / name) != file:
                raise Refusal("backup_invalid", "A file of the backup is not the one that was written.")
    store = Store(part / DATABASE)
    try:
        with store.writing() as connection:
            if not _is_whole(connection):
                raise Refusal("backup_invalid", "The database in the backup is damaged.")
            note(connection, operator(), "backup_restored", [sha256])
    finally:
        store.close()
    with coded():
        for path in sorted(part.iterdir(), key=lambda path: path.name == DATABASE):
            path.rename(state / path.name)
        sync(*(path for path in state.rglob("*") if path.is_dir()), state)
        part.rmdir()
    return manifest


def backup_main(argv: list[str]) -> int:
    """Run ``overread backup``; returns 0."""
    parser = command_parser(
        "backup",
        "Write the whole state of this site into a folder, while the service runs: database, kept pixels, packages, "
        "tokens and the secret of the pseudonyms.",
        "overread backup --out /backups/overread-2026-07-01",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="must not exist")
    options = parser.parse_args(argv)
    settings = read_settings()
    keep_temporary_files(settings.state)
    manifest, sha256 = back_up(settings, options.out)
    size = sum(file.bytes for file in manifest.files.values())
    print(f"{options.out}: {len(manifest.files)} files, {size} bytes, digest {sha256}")
    secrets = ", ".join(manifest.secrets) or "none"
    print(f"It holds images of patients, and secrets ({secrets}): keep it as safe as the state folder.")
    return 0


def restore_main(argv: list[str]) -> int:
    """Run ``overread restore``; returns 0."""
    parser = command_parser(
        "restore",
        "Make OVERREAD_STATE, which must be missing or empty, of a backup, or only check one.",
        "OVERREAD_STATE=/var/lib/overread overread restore /backups/overread-2026-07-01",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what 'overread backup' wrote")
    parser.add_argument("--check", action="store_true", help="only check every digest")
    options = parser.parse_args(argv)
    if options.check:
        manifest, sha256 = check(options.folder)
        print(f"{options.folder}: whole, made {manifest.created_at:%Y-%m-%dT%H:%M:%SZ}, digest {sha256}")
        return 0
    settings = read_settings()
    file_of(settings.store)
    manifest = restore(options.folder, settings.state)
    print(f"restored the state of {manifest.created_at:%Y-%m-%dT%H:%M:%SZ} ({len(manifest.files)} files)")
    print("What was erased or revoked since then is back: erase and revoke it again.")
    return 0
