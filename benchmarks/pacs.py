"""What results beside the images cost: from arrival in a real Orthanc to the stored objects, against prediction alone.

``python benchmarks/pacs.py --scale small`` needs Orthanc with its DICOMweb plugin (``docs/pacs.md``). It measures twice:
studies that come back from an archive, as ``overread watch`` takes them; and, in this process, what writing the objects adds
to a prediction.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
from pydicom.uid import VLMicroscopicImageStorage, generate_uid

from benchmarks import report
from benchmarks.serving_bodies import Bodies
from benchmarks.serving_servers import free_port
from models.batch import AnyPredictor
from models.example import draw_tissue
from models.imaging import read_image
from models.predictor import Predictor
from service.analysis import Site
from service.dicom_results import Commit, dicom_bytes
from service.outgoing import results
from service.settings import Settings
from service.wall import Upload
from service.wanted import Wanted

SEED = 0
GOAL = 0.2
"""Of the prediction's time that writing all objects may cost."""
SECONDS = 300
ONCE = httpx.Limits(max_keepalive_connections=0)
MODELS = {"cxr-pneumonia": ("sr", "sc"), "nuclei": ("sr", "seg", "sc")}
"""Shipped model -> the objects that it has; there is no segmentation of a classification."""
PAGE = report.ROOT / "docs" / "performance.md"


@dataclass(frozen=True)
class Scale:
    """How much is measured: repeats, and studies of each model in one; the drawn tissue's side, pixels; reports alone too."""

    repeats: int
    studies: dict[str, int]
    side: int
    reports_alone: bool


SCALES = {
    "smoke": Scale(repeats=1, studies={"cxr-pneumonia": 3, "nuclei": 1}, side=300, reports_alone=False),
    "small": Scale(repeats=5, studies={"cxr-pneumonia": 20, "nuclei": 3}, side=1000, reports_alone=True),
}


class Sources:
    """DICOM files without end, each a study of its own with pixels of its own."""

    def __init__(self, side: int) -> None:
        self._bodies = Bodies(SEED)
        self._random = np.random.default_rng(SEED)
        beyond = max(side - len(draw_tissue()), 0)
        self._tissue = np.pad(draw_tissue(), ((0, beyond), (0, beyond), (0, 0)), mode="reflect")[:side, :side]

    def make(self, model: str, count: int) -> list[bytes]:
        """Return ``count`` images for a model: a drawn chest of 1024 x 1024 pixels, or drawn tissue."""
        return [self._one(model, body) for body in self._bodies.make("dicom", count)]

    def _one(self, model: str, body: bytes) -> bytes:
        dataset = pydicom.dcmread(io.BytesIO(body))
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
        dataset.PatientName, dataset.PatientID = "DRAWN^IMAGE", "DRAWN"
        if model == "nuclei":
            pixels = np.roll(self._tissue, self._random.integers(1, len(self._tissue), 2), axis=(0, 1))
            dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = VLMicroscopicImageStorage
            dataset.Modality, dataset.Rows, dataset.Columns = "GM", *pixels.shape[:2]
            dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
            dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
            dataset.PixelData = np.ascontiguousarray(pixels).tobytes() + b"\0" * (pixels.size % 2)
            dataset["PixelData"].VR = "OB"
            del dataset.WindowCenter, dataset.WindowWidth, dataset.BodyPartExamined, dataset.ViewPosition
        stream = io.BytesIO()
        dataset.save_as(stream, enforce_file_format=True)
        return stream.getvalue()


def predict(predictor: AnyPredictor, data: bytes) -> None:
    """Do what every answer needs: read the image, run the model."""
    spec = predictor.card.input
    if isinstance(predictor, Predictor):
        predictor.predict([read_image(data, target=(spec.height, spec.width))])
    else:
        predictor.predict(read_image(data))


def writing(site: Site, sources: Sources, model: str, count: int) -> list[dict[str, Any]]:
    """Compare writing each object with the prediction of the same image, in processor time, image by image."""
    predictor, ratios, milliseconds = site.predictor(model), defaultdict(list), defaultdict(list)
    for number, data in enumerate(sources.make(model, count + 1)):
        started = time.process_time()
        predict(predictor, data)
        alone = time.process_time() - started
        heatmap = isinstance(predictor, Predictor)
        analysis = site.analyse(Upload(data, "application/dicom"), Wanted(model, heatmap=heatmap))
        reply = site.conclude(analysis)
        commit = Commit("0" * 64, datetime.now(UTC))
        taken = {}
        for kinds in (*((kind,) for kind in MODELS[model]), MODELS[model]):  # each alone, then all as a watch writes them
            started = time.process_time()
            for item in results(kinds, analysis.image, reply, commit, lambda _modality, _uid: None):
                dicom_bytes(item)
            taken[" + ".join(kinds)] = time.process_time() - started
        if number == 0:
            continue  # modules that are imported at the first object
        for name, seconds in {"prediction": alone, **taken}.items():
            milliseconds[name].append(1000 * seconds)
            ratios[name].append(seconds / alone)
    return [
        {"measure": "writing", "model": model, "part": name, "ms": round(statistics.median(values), 2)} | spread(ratios[name])
        for name, values in milliseconds.items()
    ]


def spread(values: list[float]) -> dict[str, Any]:
    """Return the median and the quartiles of ratios."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"ratio": round(float(middle), 4), "low": round(float(low), 4), "high": round(float(high), 4), "n": len(values)}


@contextmanager
def orthanc(folder: Path) -> Iterator[tuple[httpx.Client, dict[str, str]]]:
    """Run an Orthanc on the printed configuration; yield a client of it, and the settings of a watch before it."""
    config = json.loads((report.ROOT / "deploy" / "orthanc.json").read_text())
    config |= {"StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db")}
    config |= {"HttpPort": free_port(), "DicomPort": free_port()}
    folder.mkdir()
    (folder / "orthanc.json").write_text(json.dumps(config))
    ((user, password),) = config["RegisteredUsers"].items()
    (folder / "password").write_text(password)
    url = f"http://127.0.0.1:{config['HttpPort']}"
    settings = {"PACS_URL": f"{url}/dicom-web", "PACS_ORTHANC_URL": url}
    settings |= {"PACS_USER": user, "PACS_PASSWORD_FILE": str(folder / "password")}
    with (
        running(["Orthanc", str(folder / "orthanc.json")], folder / "log", dict(os.environ)),
        # Orthanc closes a connection that is idle for a second, just when the next request may be on its way
        httpx.Client(base_url=url, auth=(user, password), timeout=60, trust_env=False, limits=ONCE) as client,
    ):
        until(lambda: _answers(client))
        yield client, settings


@contextmanager
def running(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run a program until the block ends."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=report.ROOT, env=environment, stdout=out, stderr=out)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/system").status_code == 200
    except httpx.TransportError:
        return False


def until(true: Callable[[], bool]) -> None:
    """Wait until something is true.

    Raises
    ------
    TimeoutError
        After :data:`SECONDS`.
    """
    end = time.monotonic() + SECONDS
    while not true():
        if time.monotonic() > end:
            raise TimeoutError("it took too long")
        time.sleep(0.02)


def arrivals(scale: Scale, sources: Sources, site: Site, model: str, wanted: tuple[str, ...]) -> list[dict[str, Any]]:
    """Let studies arrive in an Orthanc with a watch beside it, and then the same images be predicted in a loop, turn by turn."""
    rates: dict[str, list[float]] = {"watch": [], "loop": []}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        client, settings = stack.enter_context(orthanc(folder / "orthanc"))
        given = settings | {"PACS_MODEL": model, "PACS_RESULTS": ",".join(wanted), "PACS_POLL_SECONDS": "0.05"}
        given |= {"STATE": str(folder / "state"), "THREADS": "1", "PACS_HISTORY": "true"}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OVERREAD_")}
        environment |= {f"OVERREAD_{name}": value for name, value in given.items()}
        stack.enter_context(running([sys.executable, "-m", "models.cli", "watch"], folder / "watch.log", environment))
        sent = 0

        def send(bodies: list[bytes]) -> None:
            nonlocal sent
            for body in bodies:
                client.post("/instances", content=body).raise_for_status()
            sent += len(bodies)
            until(lambda: client.get("/statistics").json()["CountInstances"] == sent * (1 + len(wanted)))

        send(sources.make(model, 1))  # what is imported and connected once
        for _ in range(scale.repeats):
            bodies = sources.make(model, scale.studies[model])
            for contender, work in (("watch", send), ("loop", lambda some: [predict(site.predictor(model), x) for x in some])):
                started = time.perf_counter()
                work(bodies)
                rates[contender].append(60 * len(bodies) / (time.perf_counter() - started))
    ratios = [ours / alone for ours, alone in zip(rates["watch"], rates["loop"], strict=True)]
    row = {"measure": "arrival", "model": model, "part": " + ".join(wanted), "studies": scale.studies[model]}
    row |= {"studies_a_minute": round(statistics.median(rates["watch"]), 1)}
    return [row | {"predictions_a_minute": round(statistics.median(rates["loop"]), 1)} | spread(ratios)]


def table(rows: list[dict[str, Any]]) -> str:
    """Return the tables of ``docs/performance.md``."""

    def lines(measure: str, *names: str) -> list[list[Any]]:
        chosen = [row for row in rows if row["measure"] == measure]
        return [[row[name] for name in names] + [f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"] for row in chosen]

    written = lines("writing", "model", "part", "ms")
    arrived = lines("arrival", "model", "part", "studies_a_minute", "predictions_a_minute")
    ratio = "median ratio to the prediction (quartiles)"
    return "\n\n".join(
        [
            report.markdown(["model", "part", "ms, one core", ratio], written),
            report.markdown(["model", "stored", "studies a minute", "predictions a minute", ratio], arrived),
        ]
    )


def draw(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Draw what writing adds to a prediction as bars; the line is the goal."""
    shown = [row for row in rows if row["measure"] == "writing" and row["part"] != "prediction"]
    spreads = [[row["ratio"] - row["low"] for row in shown], [row["high"] - row["ratio"] for row in shown]]
    axes.barh([f"{row['model']}: {row['part']}" for row in shown], [row["ratio"] for row in shown], xerr=spreads, color="#4c78a8")
    axes.axvline(GOAL, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("processor time of writing, as a ratio to the prediction")


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", choices=tuple(SCALES), required=True)
    name = parser.parse_args().scale
    scale, rows, goals = SCALES[name], [], []
    sources = Sources(scale.side)
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Settings(state=Path(folder), threads=1))
        for model, kinds in MODELS.items():
            rows += writing(site, sources, model, scale.repeats * 3)
            share = rows[-1]["ratio"]
            name_of = f"{model}: writing {' + '.join(kinds)}, share of the prediction, at most"
            goals.append({"name": name_of, "value": share, "goal": GOAL, "met": share <= GOAL})
            for wanted in (("sr",), kinds) if scale.reports_alone else (kinds,):
                rows += arrivals(scale, sources, site, model, wanted)
                print(rows[-1], flush=True)
        site.close()
    file = report.write("pacs", name, [SEED], rows, goals)
    print(table(rows))
    print(report.plot(file, lambda axes: draw(axes, rows)))
    if name == "small":
        report.fill(PAGE, "pacs", report.verdicts(goals) + "\n\n" + table(rows))


if __name__ == "__main__":
    main()
