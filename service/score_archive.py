"""What an archive holds, and its bytes: a folder, a DICOMDIR or a DICOMweb address, listed once and then read file by file."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import quote, unquote

from pydicom import dcmread
from pydicom.uid import MediaStorageDirectoryStorage

from models.batch import MAX_FILE_BYTES, check_there, gone, is_image_name
from models.errors import Refusal
from models.imaging import refusing
from service import qido
from service.dicomweb import Archive
from service.places import Header, Place
from service.settings import Settings

T = TypeVar("T")
DICOMDIR = "DICOMDIR"
AWAY = frozenset({"archive_unavailable", "folder_unavailable"})
"""Codes that say nothing about a file: all of it is gone, for now."""
PAUSES = (1.0, 2.0, 4.0)
"""Seconds between attempts at an archive that does not answer."""
_KEPT = "What was scored is kept. Give the command again."
_LOST = frozenset({errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENODEV, errno.ENXIO})
"""What a lost mount gives in the place of a file's bytes."""


@dataclass(frozen=True)
class Content:
    """The bytes of a file, and their SHA-256; without bytes where the file is larger than what is read."""

    data: bytes | None
    sha256: str


class Source(Protocol):
    """An archive. A name is bytes: of a file, its path from the archive's folder; of an instance, its path at the address."""

    @property
    def key(self) -> str:
        """Which archive it is, as text that is only ever hashed: it may hold a patient's name."""

    def names(self) -> list[bytes]:
        """List what there is to score, in order, each once.

        Raises
        ------
        Refusal
            ``data_invalid``, ``folder_unavailable``, ``archive_unavailable`` or ``archive_refused`` if it cannot be listed whole.
        """

    def read(self, name: bytes) -> Content:
        """Return the bytes of one.

        Raises
        ------
        Refusal
            One of :data:`AWAY` if the archive is gone; another code if this one cannot be read.
        """


@dataclass(frozen=True)
class Folder:
    """A folder of image files, with its subfolders; ``index`` is the DICOMDIR that lists it, if it is read by one."""

    root: Path
    index: Path | None = None

    @property
    def key(self) -> str:
        """The resolved path."""
        return f"folder {os.fspath((self.index or self.root).resolve())!r}"

    def names(self) -> list[bytes]:
        """List the files, in the order of their paths' bytes; a DICOMDIR's without those that it says are no images."""
        found = sorted(self._listed() if self.index else self._walked())
        if not found:
            raise Refusal("data_invalid", "The archive holds no image file.")
        return found

    def _walked(self) -> Iterator[bytes]:
        def fail(error: OSError) -> None:
            check_there(self.root, _KEPT)
            raise Refusal("data_invalid", f"A folder inside of the archive cannot be read ({type(error).__name__}).") from error

        for folder, below, files in os.walk(self.root, onerror=fail):
            below[:] = [name for name in below if not name.startswith(".")]
            for name in files:
                path = Path(folder, name)
                try:
                    if is_image_name(name) and name.upper() != DICOMDIR and path.is_file():
                        yield os.fsencode(path.relative_to(self.root).as_posix())
                except OSError as error:
                    fail(error)

    def _listed(self) -> set[bytes]:
        assert self.index is not None
        with refusing():
            try:
                directory = dcmread(self.index)
            except OSError as error:
                check_there(self.root, _KEPT)
                raise Refusal("data_invalid", f"The DICOMDIR cannot be read ({type(error).__name__}).") from error
            if directory.file_meta.MediaStorageSOPClassUID != MediaStorageDirectoryStorage:
                raise Refusal("data_invalid", "The file is no DICOMDIR; name the folder that holds it instead.")
            found = set()
            for record in directory.DirectoryRecordSequence:
                if record.DirectoryRecordType == "IMAGE" and record.get("RecordInUseFlag") != 0:
                    parts = record.get("ReferencedFileID") or ""
                    found.add(self._inside([parts] if isinstance(parts, str) else list(parts)))
            return found

    def _inside(self, parts: list[str]) -> bytes:
        if not parts or any(part in {"", ".", ".."} or "/" in part or "\0" in part for part in parts):
            raise Refusal("data_invalid", "The DICOMDIR names a file outside of its folder.")
        name = "/".join(parts)
        # A disc without Rock Ridge names is shown in small letters
        return os.fsencode(name.lower() if not (self.root / name).exists() and (self.root / name.lower()).exists() else name)

    def read(self, name: bytes) -> Content:
        """Read a file of the archive."""
        path = self.root / os.fsdecode(name)
        try:
            with path.open("rb") as stream:
                if os.fstat(stream.fileno()).st_size > MAX_FILE_BYTES:
                    return Content(None, hashlib.file_digest(stream, "sha256").hexdigest())
                data = stream.read()
        except OSError as error:
            if error.errno in _LOST:
                raise gone(_KEPT) from error
            check_there(self.root, _KEPT)
            if self.index is None and isinstance(error, FileNotFoundError):  # listed there: a mount below the root may be lost
                check_there(path.parent, _KEPT)
            raise Refusal("not_decodable", f"The file cannot be read ({type(error).__name__}).") from error
        return Content(data, hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Web:
    """A DICOMweb archive. Its address stands in the settings, with the credentials' files, which each node reads by itself."""

    settings: Settings

    @property
    def key(self) -> str:
        """The address, and which modalities are asked for."""
        return f"dicomweb {self.settings.pacs_url} {sorted(self.settings.pacs_modalities)}"

    @cached_property
    def _archive(self) -> Archive:
        return Archive(self.settings)

    @cached_property
    def _given(self) -> deque[Place]:
        """The instance that the archive gave last to this process."""
        return deque(maxlen=1)

    def __getstate__(self) -> dict[str, Settings]:
        """Leave the connection here when it goes to another process."""
        return {"settings": self.settings}

    def names(self) -> list[bytes]:
        """List the instances by QIDO-RS."""
        found: set[bytes] = set()
        for modality in self.settings.pacs_modalities or ("",):
            for page in qido.everything(self._query, modality):
                found.update(_name(place) for place in page)
        if not found:
            raise Refusal("data_invalid", "The archive holds no instance that the settings ask for.")
        return sorted(found)

    def _query(self, resource: str, parameters: Mapping[str, str]) -> list[Header]:
        return _patiently(partial(self._archive.query, resource, parameters))

    def read(self, name: bytes) -> Content:
        """Fetch an instance by WADO-RS."""
        _, study, _, series, _, instance = (unquote(part) for part in name.decode().split("/"))
        place = Place(instance, study, series, instance)
        try:
            data = self._archive.retrieve(place)
        except Refusal as refusal:
            if refusal.code != "archive_unavailable":
                raise
            data = self._again(place)
        self._given.append(place)
        return Content(data, hashlib.sha256(data).hexdigest())

    def _again(self, place: Place) -> bytes:
        """Fetch what the archive did not give; one instance that it never gives is told from an archive that is away."""
        _patiently(self._check)
        time.sleep(PAUSES[0])
        try:
            return self._archive.retrieve(place)
        except Refusal as refusal:
            if refusal.code != "archive_unavailable":
                raise
            self._check()
            raise Refusal("archive_refused", refusal.detail) from refusal

    def _check(self) -> None:
        """Raise ``archive_unavailable`` where the archive does not answer, or does not give what it gave before."""
        self._archive.probe()
        for place in self._given:
            try:
                self._archive.retrieve(place)
            except Refusal as refusal:
                if refusal.code == "archive_unavailable":
                    raise


def _name(place: Place) -> bytes:
    uids = (quote(uid, safe="") for uid in (place.study_uid, place.series_uid, place.sop_instance_uid))
    return "studies/{}/series/{}/instances/{}".format(*uids).encode()


def _patiently(call: Callable[[], T]) -> T:
    """Call again after a pause while the archive does not answer, a few times."""
    for pause in PAUSES:
        try:
            return call()
        except Refusal as refusal:
            if refusal.code != "archive_unavailable":
                raise
        time.sleep(pause)
    return call()


def open_source(archive: str, settings: Settings) -> Source:
    """Return the archive that a command names: an address, a folder, or the file of a DICOMDIR.

    Raises
    ------
    Refusal
        ``data_invalid`` if there is none, ``folder_unavailable`` if it does not answer, ``config_invalid`` for an address that
        the settings do not allow.
    """
    if archive.startswith(("http://", "https://")):
        web = Web(settings.model_copy(update={"pacs_url": archive, "pacs_orthanc_url": None}))
        web._archive  # noqa: B018  (what the settings do not allow is told before anything starts)
        return web
    path = Path(archive)
    try:
        if path.is_dir():
            return Folder(path)
        if path.is_file():
            return Folder(path.parent, path)
    except OSError as error:
        raise gone(_KEPT) from error
    raise Refusal("data_invalid", "ARCHIVE is no folder, no DICOMDIR and no address (http:// or https://).")
