"""What a segmentation by the shipped model costs around its network, on drawn tissue.

python benchmarks/segmentation_speed.py --scale small
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from benchmarks import report
from benchmarks.serving_client import exchange, request
from benchmarks.serving_servers import overread
from benchmarks.training_speed import side_by_side
from models.example import draw_tissue
from models.geojson import feature_collection
from models.imaging import Image, read_image
from models.quantities import quantities
from models.segmenter import SegmenterPredictor
from models.separation import detect

SCALES = {"smoke": (300, 2, 4), "small": (1000, 15, 60)}
"""Side of the image in pixels, repeats, and images sent to a service whose memory is looked at."""
PACKAGE = report.ROOT / "models" / "zoo" / "nuclei"
SHARE = 1 / 1.3
"""Of the whole that the network has to take at least: everything around it costs at most 30% of it."""
PAGE = report.ROOT / "docs" / "performance.md"


class TimedGraph:
    """A graph that notes the processor seconds spent in it, call by call of :meth:`predict`.

    The network is timed inside of the prediction that it is compared with: what disturbs a machine then disturbs both.
    """

    def __init__(self, predictor: SegmenterPredictor, image: Image) -> None:
        self.predictor = predictor
        self.image = image
        self.values = predictor.graph.values
        self.seconds: list[float] = []
        predictor.graph.values = self.timed  # type: ignore[method-assign]

    def timed(self, tensor: np.ndarray) -> list[np.ndarray]:
        """Run the network."""
        started = time.process_time()
        values = self.values(tensor)
        self.seconds[-1] += time.process_time() - started
        return values

    def predict(self) -> None:
        """Predict once."""
        self.seconds.append(0.0)
        self.predictor.predict(self.image)


def picture_of(side: int) -> np.ndarray:
    """Return drawn tissue, continued by reflection, uint8 (side, side, 3)."""
    phantom = draw_tissue()
    beyond = max(side - len(phantom), 0)
    return np.pad(phantom, ((0, beyond), (0, beyond), (0, 0)), mode="reflect")[:side, :side]


def encoded(picture: np.ndarray) -> bytes:
    """Return a picture as PNG."""
    stream = io.BytesIO()
    Pillow.fromarray(picture).save(stream, format="PNG")
    return stream.getvalue()


def memory(side: int, count: int) -> dict[str, Any]:
    """Send images that differ to a service of the shipped model, two at a time; return what its worker holds before and after."""
    picture = picture_of(side)
    report.SMOKE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=report.SMOKE) as folder, overread(PACKAGE, Path(folder)) as server:
        ready = server.memory_mib()[0]
        bodies = (encoded(np.roll(picture, number, axis=1)) for number in range(count))
        sent = [request(server.path, "image/png", server.token, body) for body in bodies]
        answers = exchange(server.port, sent, 2).answers
        if {status for status, _ in answers} != {200}:
            raise RuntimeError("an answer was not 200")
        after = server.memory_mib()[0]
    return {"measure": "memory", "side": side, "n": count, "worker_mib_ready": ready, "worker_mib_after": after}


def measure(side: int, repeats: int) -> list[dict[str, Any]]:
    """Time the network and everything else; times are processor time, ratios are taken turn by turn."""
    png, served = encoded(picture_of(side)), SegmenterPredictor.load(PACKAGE)
    image = read_image(png)
    segmentation, foreground = served.predict(image)
    graph = TimedGraph(served, image)
    calls = {
        "decoding": lambda: read_image(png),
        "prediction": graph.predict,
        "objects": lambda: detect(foreground, served.card.output, (0, 0)),
        "quantities": lambda: quantities(segmentation, (0.00025, 0.00025)),
        "GeoJSON": lambda: json.dumps(feature_collection(segmentation)),
    }
    taken = side_by_side(calls, repeats)
    network = np.array(graph.seconds[-repeats:])
    seconds = {
        "network": network,
        **taken,
        "tiles, blending, doubts": taken["prediction"] - network - taken["objects"],
        "from PNG to GeoJSON and quantities": sum(taken[part] for part in ("decoding", "prediction", "quantities", "GeoJSON")),
    }
    rows = []
    for part, values in seconds.items():
        ratios = values / network
        rows.append({
            "part": part, "milliseconds": round(float(np.median(values)) * 1e3, 1), "median": round(float(np.median(ratios)), 4),
            "low": round(float(np.quantile(ratios, 0.25)), 4), "high": round(float(np.quantile(ratios, 0.75)), 4),
            "n": repeats, "side": side, "objects": len(segmentation.objects), "tiles": len(segmentation.tiles),
        })  # fmt: skip
    return rows


def draw(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Draw each part as a bar, as a ratio to the network, with its quartiles; the line is the goal for the whole."""
    middle = [row["median"] for row in rows]
    spread = [[row["median"] - row["low"] for row in rows], [row["high"] - row["median"] for row in rows]]
    axes.barh([row["part"] for row in rows], middle, xerr=spread, color="#4c78a8")
    axes.axvline(1 / SHARE, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel(f"ratio to the network ({rows[0]['tiles']} tiles, {rows[0]['objects']} objects)")


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", choices=tuple(SCALES), required=True)
    scale = parser.parse_args().scale
    side, repeats, count = SCALES[scale]
    rows = measure(side, repeats)
    for row in rows:
        print(f"{row['part']}: {row['milliseconds']:.0f} ms, {row['median']:.3f} ({row['low']:.3f} to {row['high']:.3f})")
    by_part = {row["part"]: row["median"] for row in rows}
    goals = [
        report.goal(f"share of the network in the time of: {part}", 1 / by_part[part], round(SHARE, 4))
        for part in ("prediction", "from PNG to GeoJSON and quantities")
    ]
    held = memory(side, count)
    file = report.write("segmentation_speed", scale, [0], [*rows, held], goals)
    print(report.plot(file, lambda axes: draw(axes, rows)))
    if scale == "small":
        parts = [
            [row["part"], row["milliseconds"], f"{row['median']:.2f} ({row['low']:.2f} to {row['high']:.2f})"] for row in rows
        ]
        text = report.markdown(["part", "ms, one core", "median (quartiles), as a ratio to the network"], parts)
        note = (
            f"A worker holds {held['worker_mib_ready']:.0f} MiB when ready, {held['worker_mib_after']:.0f} after {count} images."
        )
        report.fill(PAGE, "segmentation_speed", "\n\n".join([report.verdicts(goals), text, note]))


if __name__ == "__main__":
    main()
