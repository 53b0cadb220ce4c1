"""What a segmentation costs around the network, on drawn tissue, measured side by side with the bare network.

python benchmarks/segmentation_speed.py --scale small
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import time
import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor, nn

from benchmarks import report
from benchmarks.training_speed import side_by_side
from models.card import GRAPH_INPUT, SEGMENTER_OUTPUTS, Calibration, InputSpec, ObjectSpec, SegmenterCard
from models.example import draw_tissue
from models.geojson import feature_collection
from models.imaging import Image, read_image
from models.networks.domain_distance import DomainDistance, stage_statistics
from models.networks.loss_prediction import LossPrediction
from models.networks.segmenter import Segmenter
from models.predictor import Graph
from models.preprocess import standardise
from models.quantities import quantities
from models.segmenter import SegmenterPredictor
from models.separation import detect

SCALES = {"smoke": (300, 2), "small": (1000, 15)}
"""Side of the image in pixels, and repeats."""
WIDTHS, BLOCKS = (16, 32, 64, 128), 2
SHARE = 1 / 1.3
"""Of the whole that the network has to take at least: everything around it costs at most 30% of it."""
INPUT = InputSpec(
    channels=3, height=224, width=224, intensity="full_range", low=0, high=100, mean=0.5, std=0.25, modalities=(), body_parts=(),
    views=(), age_years=None, min_side=64,
)  # fmt: skip
OUTPUT = ObjectSpec(
    label="nucleus", threshold=0.5, separation="distance_watershed", smoothing=1.0, peak_distance=5, min_area=20, overlap=24,
    max_pixels=16_000_000, rule="given",
)  # fmt: skip


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


class Served(nn.Module):
    """The shipped network with random weights, and a foreground that is there to be found.

    Random weights see no nuclei, and nothing would be left to do after the network: its logits are computed, but count for a
    billionth beside how dark the red of a pixel is.
    """

    def __init__(self) -> None:
        super().__init__()
        channels = 2 * sum(WIDTHS)
        self.segmenter = Segmenter(3, WIDTHS, BLOCKS)
        self.loss_prediction = LossPrediction(WIDTHS)
        self.distance = DomainDistance(torch.eye(channels)[None], torch.zeros(1, 1, channels))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what a segmenter's graph yields of (N, 3, H, W)."""
        maps = self.segmenter.stage_maps(image)
        logits = self.segmenter.decode(maps, (image.shape[2], image.shape[3])) * 1e-9 + 6 * (0.3 - image[:, :1])
        return logits, self.segmenter.pool(maps), self.loss_prediction(maps), self.distance(stage_statistics(maps))


def build(height: int, width: int) -> Graph:
    """Return the graph for tiles of this size, any number of them, on one thread."""
    torch.manual_seed(0)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
        program = torch.onnx.export(
            Served().eval(), (torch.zeros(2, 3, height, width),), dynamo=True, verbose=False, input_names=[GRAPH_INPUT],
            output_names=list(SEGMENTER_OUTPUTS), dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False,
        )  # fmt: skip
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    return Graph(program.model_proto.SerializeToString(), 1, SEGMENTER_OUTPUTS)


def predictor() -> SegmenterPredictor:
    """Return the predictor, with a card that says no more than predicting needs."""
    ramp = tuple(np.linspace(0, 1, 101).tolist())
    calibration = Calibration(
        temperature=1.0, loss_knots=((0, 0), (1, 1)), loss_quantiles=ramp, domain_quantiles=ramp, n=1, method="given"
    )
    card = SegmenterCard.model_construct(input=INPUT, output=OUTPUT, calibration=calibration)
    return SegmenterPredictor(card, build(INPUT.height, INPUT.width), "")


def measure(side: int, repeats: int) -> list[dict[str, Any]]:
    """Time the network and everything else; times are processor time, ratios are taken turn by turn."""
    phantom = draw_tissue()
    beyond = max(side - len(phantom), 0)
    picture = np.pad(phantom, ((0, beyond), (0, beyond), (0, 0)), mode="reflect")[:side, :side]
    stream = io.BytesIO()
    Pillow.fromarray(picture).save(stream, format="PNG")
    png, served, once = stream.getvalue(), predictor(), build(side, side)
    image = read_image(png)
    at_once = np.ascontiguousarray(standardise(picture, 0, 255, INPUT).transpose(2, 0, 1)[None], np.float32)
    segmentation, foreground = served.predict(image)
    graph = TimedGraph(served, image)
    calls = {
        "network, image at once": lambda: once.values(at_once),
        "decoding": lambda: read_image(png),
        "prediction": graph.predict,
        "objects": lambda: detect(foreground, OUTPUT, (0, 0)),
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
    torch.set_num_threads(1)
    rows = measure(*SCALES[scale])
    for row in rows:
        print(f"{row['part']}: {row['milliseconds']:.0f} ms, {row['median']:.3f} ({row['low']:.3f} to {row['high']:.3f})")
    by_part = {row["part"]: row["median"] for row in rows}
    goals = [
        report.goal(f"share of the network in the time of: {part}", 1 / by_part[part], round(SHARE, 4))
        for part in ("prediction", "from PNG to GeoJSON and quantities")
    ]
    file = report.write("segmentation_speed", scale, [0], rows, goals)
    print(report.plot(file, lambda axes: draw(axes, rows)))


if __name__ == "__main__":
    main()
