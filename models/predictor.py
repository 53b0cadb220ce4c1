"""A model package on disk becomes a :class:`Predictor`; images become predictions. onnxruntime only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from models.card import GRAPH_INPUT, GRAPH_OUTPUTS, ModelCard, read_package
from models.errors import Refusal
from models.image import Image
from models.microbatch import MicroBatches
from models.postprocess import Prediction, RawOutputs, predictions
from models.preprocess import preprocess

CUDA = "CUDAExecutionProvider"
"""What onnxruntime calls NVIDIA's GPUs."""


def _refuse_external_data(graph: bytes) -> None:
    """Weights outside the file are not covered by its digest and could be read from anywhere."""
    try:
        model = onnx.load_model_from_string(graph)
    except Exception as error:  # protobuf raises its own types, which differ between its implementations
        raise Refusal("package_invalid", "model.onnx is not an ONNX graph.") from error
    for initializer in model.graph.initializer:
        if initializer.data_location == onnx.TensorProto.EXTERNAL:
            raise Refusal("package_invalid", "model.onnx keeps weights outside of the file.")


class Graph:
    """An ONNX graph and its onnxruntime session.

    Parameters
    ----------
    graph : bytes
        The content of ``model.onnx``.
    threads : int
        Threads inside one call. Serving uses one a session and several sessions' calls side by side, which scales better.
    outputs : tuple of str
        What the graph must yield: a classifier's or a segmenter's.
    binding : bool or None
        Whether inputs and outputs are bound to the session before it runs, so that only the outputs that are wanted leave the
        GPU's memory, and each once; None where a GPU runs.

    Raises
    ------
    Refusal
        ``package_invalid`` if it is no graph, keeps data outside the file, or lacks an input or output.
    """

    def __init__(
        self, graph: bytes, threads: int = 1, outputs: tuple[str, ...] = GRAPH_OUTPUTS, *, binding: bool | None = None
    ) -> None:
        _refuse_external_data(graph)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        wanted = [name for name in (CUDA, "CPUExecutionProvider") if name in ort.get_available_providers()]
        if CUDA in wanted:
            ort.preload_dlls()  # CUDA and cuDNN as pip installs them, which the loader does not find by itself
        try:
            self.session = ort.InferenceSession(graph, options, providers=wanted)
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            raise Refusal("package_invalid", "onnxruntime cannot load model.onnx.") from error
        if [item.name for item in self.session.get_inputs()] != [GRAPH_INPUT]:
            raise Refusal("package_invalid", f"The graph must have the one input {GRAPH_INPUT!r}.")
        missing = set(outputs) - {item.name for item in self.session.get_outputs()}
        if missing:
            raise Refusal("package_invalid", f"The graph lacks the outputs {sorted(missing)}.")
        # onnxruntime-gpu falls back to the CPU without an error: what runs is what the session says, not what was asked.
        self.provider: str = self.session.get_providers()[0]
        self.outputs = outputs
        self._binding = self.provider == CUDA if binding is None else binding
        self._gathered: MicroBatches | None = None

    def gather(self, most: int, seconds: float) -> None:
        """From now on, run images of calls that come within ``seconds`` of each other together, ``most`` at once."""
        self._gathered = MicroBatches(self._at_once, most, seconds)

    def values(self, tensor: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Run the graph on ``tensor``, float32, shape (N, C, H, W); return its outputs in their order."""
        return self._at_once(tensor) if self._gathered is None else self._gathered.values(tensor)

    def _at_once(self, tensor: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        values: list[NDArray[np.float32]]
        if not self._binding:
            values = self.session.run(list(self.outputs), {GRAPH_INPUT: tensor})
            return values
        binding = self.session.io_binding()
        binding.bind_cpu_input(GRAPH_INPUT, np.ascontiguousarray(tensor))
        for name in self.outputs:
            binding.bind_output(name)
        self.session.run_with_iobinding(binding)
        values = binding.copy_outputs_to_cpu()
        return values

    def run(self, tensor: NDArray[np.float32]) -> RawOutputs:
        """Run a classifier's graph on ``tensor``, float32, shape (N, C, H, W)."""
        return RawOutputs(*self.values(tensor))


class Predictor:
    """A verified model package, ready to predict. Thread-safe: calls may run side by side.

    Attributes
    ----------
    card : ModelCard
    sha256 : str
        Identity of the package.
    provider : str
        The onnxruntime execution provider that runs.
    """

    def __init__(self, card: ModelCard, graph: Graph, sha256: str) -> None:
        self.card = card
        self.graph = graph
        self.sha256 = sha256
        self.provider = graph.provider

    @classmethod
    def load(cls, folder: Path, threads: int = 1) -> Predictor:
        """Load the package in ``folder``.

        Raises
        ------
        Refusal
            ``package_invalid`` if anything in it is not exactly as released.
        """
        card, graph, sha256 = read_package(folder)
        if not isinstance(card, ModelCard):
            raise Refusal("package_invalid", "The model package does not hold a classifier.")
        return cls(card, Graph(graph, threads), sha256)

    def predict(self, images: Sequence[Image], *, heatmap: bool = False) -> list[Prediction]:
        """Predict for each image.

        Parameters
        ----------
        images : sequence of Image
            Accepted by :func:`models.preprocess.check_accepted` before.
        heatmap : bool
            Also keep the heatmaps.

        Raises
        ------
        Refusal
            ``model_output_invalid`` if any value is not finite.
        """
        tensor = np.concatenate([preprocess(image, self.card.input) for image in images])
        return self.predict_tensor(tensor, heatmap=heatmap)

    def predict_tensor(self, tensor: NDArray[np.float32], *, heatmap: bool = False) -> list[Prediction]:
        """Predict for preprocessed images, float32, shape (N, C, H, W)."""
        raw = self.graph.run(tensor)
        for name in GRAPH_OUTPUTS:
            if not np.isfinite(getattr(raw, name)).all():
                raise Refusal("model_output_invalid", f"The model's output {name} holds a value that is not finite.")
        return predictions(raw, self.card, heatmap=heatmap)
