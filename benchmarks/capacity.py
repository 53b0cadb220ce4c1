"""What a number of studies a day needs: computed from the committed results of other benchmarks, and written to docs/capacity.md.

python benchmarks/capacity.py
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import report

PAGE = report.ROOT / "docs" / "capacity.md"
STUDIES = {"a hospital": 1_000, "a network": 100_000}
"""Studies a day."""
PEAK = 3.0
"""Of the busiest hour to the mean of the day: an eighth of all studies come in it."""
USED = 0.6
"""Share of a core's time that is planned with: a queue grows without bound as it nears 1."""
CORES = 2
"""Of a replica, as deploy/kubernetes asks for."""


@dataclass(frozen=True)
class Work:
    """A kind of image, and what one costs.

    Attributes
    ----------
    name : str
    images : int
        A study.
    seconds : float
        Of one core, an image.
    report_seconds : float
        Of one core, to make what is stored in the archive.
    memory_mib : float
        Of a worker, after the measurements.
    watched_a_minute : float
        Images of which one watch stored the results in an archive beside it.
    """

    name: str
    images: int
    seconds: float
    report_seconds: float
    memory_mib: float
    watched_a_minute: float

    @property
    def images_a_second(self) -> float:
        """Of one core that does nothing else."""
        return 1 / self.seconds


def _row(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    """Return the one row with these values."""
    (found,) = [row for row in rows if wanted.items() <= row.items()]
    return found


def read(folder: Path = report.RESULTS) -> tuple[Work, Work]:
    """Read what was measured: X-rays over HTTP by a ResNet-18, and tissue by the shipped segmenter.

    Parameters
    ----------
    folder : Path
        Of ``serving.json``, ``segmentation_speed.json`` and ``pacs.json``.
    """
    serving, speed, pacs = (
        json.loads((folder / f"{name}.json").read_text())["rows"] for name in ("serving", "segmentation_speed", "pacs")
    )
    served = _row(serving, measure="throughput", contender="overread", body="dicom", concurrency=8)
    memory = _row(serving, measure="memory", model="resnet18-random")
    whole = _row(speed, part="from PNG to GeoJSON and quantities")
    return (
        Work(
            "X-rays, two a study",
            2,
            served["cpu_ms_per_image"] / 1000,
            _row(pacs, measure="writing", model="cxr-pneumonia", part="sr")["ms"] / 1000,
            memory["worker_mib_after"],
            _row(pacs, measure="arrival", model="cxr-pneumonia", part="sr")["studies_a_minute"],
        ),
        Work(
            "tissue, five regions a study",
            5,
            whole["milliseconds"] / 1000,
            _row(pacs, measure="writing", model="nuclei", part="sr + seg + sc")["ms"] / 1000,
            _row(speed, measure="memory")["worker_mib_after"],
            _row(pacs, measure="arrival", model="nuclei", part="sr + seg + sc")["studies_a_minute"],
        ),
    )


@dataclass(frozen=True)
class Need:
    """What a number of studies a day needs in its busiest hour.

    Attributes
    ----------
    images_a_second : float
    cores : float
        With ``USED`` of each.
    replicas : int
        Of ``CORES`` cores: what carries the load, and one that may be away.
    """

    images_a_second: float
    cores: float
    replicas: int


def need(work: Work, studies: int) -> Need:
    """Return what ``studies`` of this kind a day need, results for the archive included."""
    a_second = studies * work.images * PEAK / 86_400
    cores = a_second * (work.seconds + work.report_seconds) / USED
    return Need(a_second, cores, math.ceil(cores / CORES) + 1)


def tables(works: tuple[Work, ...]) -> str:
    """Return both tables of the page."""
    costs = [
        [
            work.name,
            f"{work.images_a_second:.1f}",
            f"{1000 * work.report_seconds:.0f}",
            f"{work.memory_mib:.0f}",
        ]
        for work in works
    ]
    needs = [
        [
            f"{who}, {studies:,} studies a day",
            work.name,
            f"{found.images_a_second:.2f}",
            f"{found.cores:.2f}",
            found.replicas,
            f"{60 * found.images_a_second:.1f}",
            f"{work.watched_a_minute:.1f}",
        ]
        for who, studies in STUDIES.items()
        for work in works
        for found in [need(work, studies)]
    ]
    head = ["who", "what", "images a second", "cores", "replicas", "images a minute", "one watch did"]
    first = report.markdown(["what", "images a second and core", "ms of a core for the archive's objects", "worker, MiB"], costs)
    return f"{first}\n\n{report.markdown(head, needs)}"


def main() -> None:
    """Compute, and fill the page."""
    text = tables(read())
    report.fill(PAGE, "capacity", text)
    print(text)


if __name__ == "__main__":
    main()
