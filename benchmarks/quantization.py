"""Whether int8 (static, onnxruntime) and OpenVINO make the shipped models quicker without changing what they say.

python benchmarks/quantization.py --data FOLDER --scale small

The graph's processor time, as a ratio to the float32 graph in the same run, turn by turn, on one thread; and by how much
probabilities and predicted loss move on real images that did not calibrate it. Kept is what takes at most 0.85 of the time and
moves neither by more than 0.005. OpenVINO is measured where it is installed (``pip install openvino``); nothing else needs it.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks import report
from benchmarks.training_speed import side_by_side
from models.batch import read_file
from models.card import GRAPH_INPUT, GRAPH_OUTPUTS, SEGMENTER_OUTPUTS, ZOO, ModelCard, read_package
from models.errors import Refusal
from models.image import Image
from models.predictor import Graph, Predictor
from models.segmenter import SegmenterPredictor

SCALES = {"smoke": (2, 1, 3), "small": (16, 16, 9)}
"""Images that calibrate, images that are compared, and turns that are timed."""
QUICKER, CLOSE = 0.85, 0.005
PICTURES = {"cxr-pneumonia": ("cxr", "kermany_guangzhou"), "nuclei": ("nuclei", "dsb18_256x320_purple")}
"""Model -> folder of the public images, and the domain that is taken: of each, one that it was trained on, where it says most."""
Values = list[NDArray[np.float32]]


class Recorded:
    """Stands for a graph, keeps what it is given, and answers by the graph that it stands for."""

    provider = "recorded"

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.tensors: list[NDArray[np.float32]] = []

    def values(self, tensor: NDArray[np.float32]) -> Values:
        """Keep the tensor, and answer."""
        self.tensors.append(tensor)
        return self._graph.values(tensor)

    def run(self, tensor: NDArray[np.float32]) -> Any:
        """Keep the tensor, and answer as a classifier's graph does."""
        self.tensors.append(tensor)
        return self._graph.run(tensor)


class OpenVino(Graph):
    """The same graph, run by OpenVINO on one thread: with numbers as short as it likes for the processor, or all their digits."""

    def __init__(self, file: Path, outputs: tuple[str, ...], *, exact: bool) -> None:
        import openvino

        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        if exact:
            options["INFERENCE_PRECISION_HINT"] = "f32"  # else bfloat16 where the processor computes in it
        self._compiled = openvino.Core().compile_model(str(file), "CPU", options)
        self.outputs, self.provider = outputs, "OpenVINO"

    def values(self, tensor: NDArray[np.float32]) -> Values:
        """Run it."""
        found = self._compiled({GRAPH_INPUT: tensor})
        return [np.array(found[name]) for name in self.outputs]


class _Calibrating(CalibrationDataReader):  # type: ignore[misc]
    """Gives onnxruntime one tensor after another."""

    def __init__(self, tensors: Sequence[NDArray[np.float32]]) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter([{GRAPH_INPUT: tensor} for tensor in tensors])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def images(data: Path, name: str, card: Any, count: int) -> list[Image]:
    """Read ``count`` of the real images that the model takes, drawn by a seed."""
    folder, domain = PICTURES[name]
    with (data / folder / "manifest.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["domain"] == domain]
    found: list[Image] = []
    for number in np.random.default_rng(0).permutation(len(rows)):
        if len(found) == count:
            break
        try:
            path = data / folder / rows[number]["image"]
            found.append(read_file(path, card.input, whole=not isinstance(card, ModelCard))[0])
        except Refusal:
            continue  # smaller than the model takes
    return found


def predictor_of(card: Any, graph: Any) -> Callable[[Image], tuple[NDArray[np.float64], float]]:
    """Return what gives an image's probabilities and predicted loss by a graph."""
    if isinstance(card, ModelCard):
        classifier = Predictor(card, graph, "")

        def classify(image: Image) -> tuple[NDArray[np.float64], float]:
            (found,) = classifier.predict([image])
            return np.array(list(found.probabilities.values())), found.predicted_loss

        return classify
    segmenter = SegmenterPredictor(card, graph, "")

    def segment(image: Image) -> tuple[NDArray[np.float64], float]:
        segmentation, foreground = segmenter.predict(image)
        return foreground.astype(np.float64), segmentation.predicted_loss

    return segment


def variants(content: bytes, outputs: tuple[str, ...], tensors: Sequence[NDArray[np.float32]], folder: Path) -> dict[str, Graph]:
    """Return the graph in each form, the shipped one first."""
    plain, prepared, quantized = (folder / f"{name}.onnx" for name in ("plain", "prepared", "int8"))
    plain.write_bytes(content)
    quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
    found = {"float32": Graph(content, outputs=outputs)}
    for form, wanted in (("int8", None), ("int8, convolutions alone", ["Conv"])):
        quantize_static(
            str(prepared), str(quantized), _Calibrating(tensors),
            quant_format=QuantFormat.QDQ, per_channel=True, op_types_to_quantize=wanted,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax,
        )  # fmt: skip
        found[form] = Graph(quantized.read_bytes(), outputs=outputs)
    if find_spec("openvino") is not None:
        found["OpenVINO"] = OpenVino(plain, outputs, exact=False)
        found["OpenVINO, float32"] = OpenVino(plain, outputs, exact=True)
    return found


def measure(data: Path, name: str, scale: str) -> list[dict[str, Any]]:
    """Return a row for each form of a model."""
    calibrating, compared, turns = SCALES[scale]
    card, content, _ = read_package(ZOO / name)
    outputs = GRAPH_OUTPUTS if isinstance(card, ModelCard) else SEGMENTER_OUTPUTS
    pictures = images(data, name, card, calibrating + compared)
    recorded = Recorded(Graph(content, outputs=outputs))
    record = predictor_of(card, recorded)
    for picture in pictures[:calibrating]:
        record(picture)
    with tempfile.TemporaryDirectory() as folder:
        graphs = variants(content, outputs, recorded.tensors[:calibrating], Path(folder))
        tensor = recorded.tensors[0]
        taken = side_by_side({form: (lambda graph=graph: graph.values(tensor)) for form, graph in graphs.items()}, turns)
        said = {
            form: [predictor_of(card, graph)(picture) for picture in pictures[calibrating:]] for form, graph in graphs.items()
        }
    rows = []
    for form, answers in said.items():
        ratios = taken[form] / taken["float32"]
        moved = list(zip(answers, said["float32"], strict=True))
        row = {"model": name, "form": form, "repeats": turns, "images": len(answers)}
        row |= {"ms": round(1000 * float(np.median(taken[form])), 2), "ratio": round(float(np.median(ratios)), 4)}
        for key, share in (("ratio_low", 0.25), ("ratio_high", 0.75)):
            row[key] = round(float(np.quantile(ratios, share)), 4)
        row["probability_moved"] = round(max(float(np.abs(one[0] - other[0]).max()) for one, other in moved), 4)
        row["predicted_loss_moved"] = round(max(abs(one[1] - other[1]) for one, other in moved), 4)
        rows.append(row)
    return rows


def kept(row: dict[str, Any]) -> bool:
    """Tell whether a form is worth having: quicker by 15%, and saying the same."""
    return bool(row["ratio"] <= QUICKER and max(row["probability_moved"], row["predicted_loss_moved"]) <= CLOSE)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table of ``docs/performance.md``."""
    head = ["model", "form", "ms, one core", "ratio (quartiles)", "probabilities move by", "predicted loss by", "kept"]
    return report.markdown(
        head,
        [
            [row["model"], row["form"], row["ms"], f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})",
             row["probability_moved"], row["predicted_loss_moved"],
             "" if row["form"] == "float32" else "yes" if kept(row) else "no"]
            for row in rows
        ],
    )  # fmt: skip


def main() -> None:
    """Measure, write the result and its plot, and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the public images, with cxr and nuclei")
    parser.add_argument("--scale", choices=sorted(SCALES), default="small")
    options = parser.parse_args()
    rows = [row for name in PICTURES for row in measure(options.data, name, options.scale)]
    file = report.write("quantization", options.scale, [0], rows, [])

    def draw(axes: Any) -> None:
        axes.bar([f"{row['model']}\n{row['form']}" for row in rows], [row["ratio"] for row in rows])
        axes.axhline(QUICKER, color="black")
        axes.set_ylabel("time, as a ratio to float32")
        axes.tick_params(axis="x", labelrotation=60, labelsize=7)

    report.plot(file, draw)
    print(table(rows))
    if options.scale != "smoke":
        report.fill(report.ROOT / "docs" / "performance.md", "quantization", table(rows))


if __name__ == "__main__":
    main()
