"""An archive in memory, in the place of the real client, that fails where a test says so; and what tests of the watch share."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import pydicom

from models.errors import Refusal
from service.arrivals import Arrivals
from service.dicomweb import Changes
from service.places import Header, Place, path_of
from service.watch import Watch
from tests.models.dicom_files import dicom, ramp


def chest(number: int, **attributes: Any) -> bytes:
    """A chest X-ray of its own study; the same number gives the same bytes."""
    uids = {"SOPInstanceUID": f"2.25.{number}", "StudyInstanceUID": f"2.25.1{number}", "SeriesInstanceUID": f"2.25.2{number}"}
    return dicom(ramp(64, 80), 12, **(uids | {"WindowCenter": 2000 + number, "WindowWidth": 3000} | attributes))


class MemoryArchive:
    """Behaves as :class:`service.dicomweb.Archive` before an Orthanc."""

    has_log = True

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.log: list[tuple[int, str]] = []
        self.sequence = 0
        self.stored: list[str] = []  # each STOW of an object that was not there
        self.sent = 0  # each STOW of an object
        self.calls: list[str] = []
        self.faults: dict[str, list[Callable[[], None]]] = {}
        self.away = 0  # so many calls more find it away, whatever they ask

    def arrive(self, data: bytes) -> str:
        """Take an instance as a scanner sends it; one that is there already leaves no trace, as Orthanc has it."""
        identifier = "id-" + str(pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True).SOPInstanceUID)
        if identifier not in self.files:
            self.change(identifier, data)
        return identifier

    def change(self, identifier: str, data: bytes) -> None:
        self.files[identifier] = data
        self.sequence += 1
        self.log.append((self.sequence, identifier))

    def fail(self, method: str, times: int, code: str = "archive_unavailable") -> None:
        """Let a method fail that often."""

        def refuse() -> None:
            raise Refusal(code)

        self.faults.setdefault(method, []).extend([refuse] * times)

    def _call(self, method: str) -> None:
        self.calls.append(method)
        if self.away:
            self.away -= 1
            raise Refusal("archive_unavailable")
        if faults := self.faults.get(method):
            faults.pop(0)()

    def changes(self, since: int, limit: int = 3) -> Changes:
        self._call("changes")
        later = [entry for entry in self.log if entry[0] > since]
        page = later[:limit]
        if not page:
            return Changes((), self.log[-1][0] if self.log else 0, "", True)
        return Changes(tuple(page), page[-1][0], page[-1][1], len(page) == len(later))

    def last_change(self) -> Changes:
        self._call("last_change")
        return Changes((), *(self.log[-1] if self.log else (0, "")), True)

    def probe(self) -> None:
        self._call("probe")

    def query(self, resource: str, parameters: Mapping[str, str]) -> list[Header]:
        """Search as QIDO-RS does, with two matches a page, whatever ``limit`` says."""
        self._call("query")
        headers = [pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True) for data in self.files.values()]
        _, _, study, _, series, *_ = [*resource.split("/"), *[""] * 5]
        found: dict[str, Header] = {}
        for header in headers:
            if study in {"", header.StudyInstanceUID} and series in {"", header.SeriesInstanceUID}:
                level = {"studies": "Study", "series": "Series", "instances": "SOP"}[resource.split("/")[-1]]
                entry = found.setdefault(str(header[f"{level}InstanceUID"].value), {})
                number = str(1 + int(entry.get("NumberOfStudyRelatedInstances", 0)))
                numbers = {"NumberOfStudyRelatedInstances": number, "NumberOfSeriesRelatedInstances": number}
                entry |= {f"{level}InstanceUID": str(header[f"{level}InstanceUID"].value), **numbers}
                entry["Modality"] = str(header.Modality)
                entry["ModalitiesInStudy"] = entry.get("ModalitiesInStudy", "") + f" {header.Modality}"
        wanted = parameters.get("ModalitiesInStudy", "")
        matches = [entry for entry in found.values() if wanted in entry["ModalitiesInStudy"]]
        offset = int(parameters["offset"])
        return matches[offset : offset + 2]

    def header(self, place: Place) -> Header:
        self._call("header")
        if not self.has_log:
            path_of(place)
        data = self.files.get(place.reference) or self.files.get("id-" + place.reference)
        if data is None:
            raise Refusal("not_found")
        header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
        return {element.keyword: str(element.value) for element in header if element.VR != "SQ"}

    def retrieve(self, place: Place) -> bytes:
        self._call("retrieve")
        return self.files["id-" + place.sop_instance_uid]

    def store(self, objects: dict[str, bytes]) -> None:
        self._call("store")
        self.sent += len(objects)
        for data in objects.values():
            if self.arrive(data) not in self.stored:
                self.stored.append(self.arrive(data))
        if faults := self.faults.get("stored"):  # after it was stored, before the answer
            faults.pop(0)()

    def results_for(self, number: int) -> list[pydicom.Dataset]:
        """Return the objects in the study of a chest."""
        found = [pydicom.dcmread(io.BytesIO(self.files[identifier])) for identifier in self.stored]
        return [item for item in found if item.StudyInstanceUID == f"2.25.1{number}"]


def settle(watch: Watch) -> dict[str, int]:
    """Let a watch work until nothing is left."""
    while watch.step():
        pass
    return rows(watch).counts()


def rows(watch: Watch) -> Arrivals:
    return watch._arrivals


def dues(watch: Watch) -> list[Any]:
    """Return what waits, its time come or not."""
    with watch._site.store.writing() as connection:
        connection.exec_driver_sql("UPDATE pacs_instances SET due_at = 0")
    return rows(watch).due(100)


class Killed(BaseException):
    """Ends the process, as far as the code can tell: nothing after it runs."""
