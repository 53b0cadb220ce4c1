"""What does noting a read before it is answered cost? The route of kept pixels and the worklist, with the audit and without.

python benchmarks/audit.py --scale small
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks import report
from models.example import chest_phantom
from service.analysis import Site
from service.api import Api
from service.settings import Settings
from service.wall import Upload
from service.wanted import Wanted

REPEATS = {"smoke": 5, "small": 300}
PAGE = report.ROOT / "docs" / "performance.md"


async def _times(api: Api, site: Site, paths: dict[str, str], repeats: int) -> dict[str, dict[bool, list[float]]]:
    """Return the seconds of each request: route -> with the audit -> times, taken in turn."""
    noted, found = site.audit.read, {name: {True: [], False: []} for name in paths}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=api), base_url="http://127.0.0.1:3000") as client:
        for _ in range(repeats):
            for name, path in paths.items():
                for audited in (True, False):
                    site.audit.read = noted if audited else lambda *_: None  # type: ignore[method-assign]
                    begun = time.perf_counter()
                    (await client.get(path)).raise_for_status()
                    found[name][audited].append(time.perf_counter() - begun)
    return found


def measure(repeats: int) -> list[dict[str, Any]]:
    """Return a row for each route."""
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Settings.model_validate({"state": Path(folder) / "state", "review_loss_percentile": 0.0}))
        try:
            reply = site.conclude(site.analyse(Upload(chest_phantom(), "application/dicom"), Wanted()))
            image = reply.stored.result["image_sha256"]
            paths = {
                "kept pixels": f"/v1/images/{image}",
                "result": f"/v1/results/{reply.stored.result['id']}",
                "worklist of one item": "/v1/worklist",
            }
            api = Api()
            api.site = site
            times = asyncio.run(_times(api, site, paths, repeats))
        finally:
            site.close()
    rows = []
    for name, both in times.items():
        median = {audited: 1000 * float(np.median(values)) for audited, values in both.items()}
        cost = {"with_ms": round(median[True], 2), "without_ms": round(median[False], 2)}
        rows.append({"route": name, "repeats": repeats} | cost | {"cost_ms": round(median[True] - median[False], 2)})
    return rows


def draw(rows: list[dict[str, Any]], axes: Any) -> None:
    """Draw each read's time, and what the audit's row adds to it."""
    names = [row["route"] for row in rows]
    axes.bar(names, [row["without_ms"] for row in rows], label="the read")
    axes.bar(names, [row["cost_ms"] for row in rows], bottom=[row["without_ms"] for row in rows], label="noting it")
    axes.set_ylabel("median milliseconds")
    axes.legend()


def main() -> None:
    """Measure, write the result, and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", choices=sorted(REPEATS), default="small")
    scale = parser.parse_args().scale
    rows = measure(REPEATS[scale])
    file = report.write("audit", scale, [0], rows, [])
    report.plot(file, lambda axes: draw(rows, axes))
    print(file)
    if scale != "smoke":
        cells = [[row["route"], row["without_ms"], row["with_ms"], row["cost_ms"]] for row in rows]
        report.fill(PAGE, "audit", report.markdown(["read", "without ms", "with ms", "cost ms"], cells))


if __name__ == "__main__":
    main()
