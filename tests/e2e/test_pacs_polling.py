"""A real Orthanc that is polled by QIDO-RS, as any other archive is, through a proxy that is not kind.

Row 16 of docs/reliability.md.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.e2e.orthancs import Door, Orthanc, Watcher, once, reports, until
from tests.e2e.test_pacs import described

BAD = 3
TODAY = f"{datetime.now(UTC):%Y%m%d}"


def test_studies_are_polled_and_one_instance_that_is_never_given_is_a_failure(
    empty: Orthanc, door: Door, watch: Callable[..., Watcher], files: Any, ask: Any, tmp_path: Path
) -> None:
    def refuse(_: str, path: str) -> None:
        if path.endswith(f"/instances/2.25.{BAD}"):
            raise ConnectionAbortedError

    door.before, door.strip = refuse, True
    empty.send(*files(*(described(number, StudyDate=TODAY) for number in range(1, 6))))
    empty.send(*files(described(7, StudyDate=TODAY, Modality="CT"), described(8, StudyDate="20200101")))
    watcher = watch(door.url, PACS_ORTHANC_URL="", PACS_MODALITIES="DX", PACS_ATTEMPTS="2")
    asked_for = once(range(1, 6)) - once(range(BAD, BAD + 1))
    states = "SELECT state, count(*) FROM pacs_instances GROUP BY state ORDER BY state"
    until(lambda: reports(empty) == asked_for)
    until(lambda: ask(tmp_path / "state", states) == [("done", 4), ("failed", 1)])
    assert "archive_pause" not in watcher.log.read_text()
    lookups = [path for _, path in door.passed if path.startswith("/dicom-web/instances?SOPInstanceUID=")]
    assert len(lookups) == 4, "no answer said that a report was stored"
    assert not [path for _, path in door.passed if "/studies/2.25.17/" in path or "/studies/2.25.18/" in path]

    def quiet() -> bool:
        """Nothing but the list of studies is asked for, look after look."""
        last = [path for _, path in door.passed[-9:]]
        return len(last) == 9 and all(path.startswith("/dicom-web/studies?StudyDate=") for path in last)

    door.passed.clear()
    until(quiet)
    door.passed.clear()
    empty.send(*files(described(6, StudyDate=TODAY)))
    until(lambda: reports(empty) == asked_for + once(range(6, 7)))
    door.passed.clear()
    until(quiet)
    assert not [path for _, path in door.passed if "/series" in path and "/studies/2.25.16/" not in path]
    assert watcher.stop() == 0
