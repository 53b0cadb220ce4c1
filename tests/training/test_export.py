import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from models.card import GRAPH_INPUT, GRAPH_OUTPUTS
from models.errors import Refusal
from models.networks.classifier import Classifier
from models.networks.domain_distance import DomainDistance, ViewDistance
from models.networks.loss_prediction import LossPrediction
from models.predictor import Graph
from training import export
from training.config import make_config, read_input_spec, read_run
from training.data import load_images, read_manifest

SPECS = Path(__file__).parents[2] / "training" / "specs"


def test_graph_has_the_contracts_names_and_a_free_batch(finished: tuple[Path, Path]) -> None:
    run, _ = finished
    model = onnx.load(run / "model.onnx", load_external_data=False)
    assert [item.name for item in model.graph.input] == [GRAPH_INPUT]
    assert [item.name for item in model.graph.output] == list(GRAPH_OUTPUTS)
    shape = [dimension.dim_value for dimension in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == [0, 1, 32, 32]
    assert not any(item.data_location == onnx.TensorProto.EXTERNAL for item in model.graph.initializer)
    graph = Graph((run / "model.onnx").read_bytes())
    for count in (1, 3, 8):
        raw = graph.run(np.zeros((count, 1, 32, 32), np.float32))
        assert raw.logits.shape == (count, 2)
        assert raw.features.shape == (count, 16)
        assert raw.loss_score.shape == raw.domain_distance.shape == (count,)
        assert raw.heatmap.shape == (count, 2, 4, 4)
        assert all(getattr(raw, name).dtype == np.float32 for name in GRAPH_OUTPUTS)


def test_graph_holds_no_trace_of_the_machine_that_made_it(finished: tuple[Path, Path]) -> None:
    graph = (finished[0] / "model.onnx").read_bytes()
    assert b".py" not in graph
    model = onnx.load_model_from_string(graph)
    model.graph.node[0].metadata_props.add(key="stack_trace", value="export.py, line 1")
    assert b".py" in model.SerializeToString()  # control


def served() -> export.ServedClassifier:
    """The shipped size with random weights, and statistics of batch normalisation that are not the initial ones."""
    torch.manual_seed(0)
    classifier = Classifier(1, 2, (16, 32, 64, 128), 2, 0.2)
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    distance = ViewDistance(
        DomainDistance(torch.randn(1, 480, 480) / 20, torch.randn(2, 1, 480), torch.randn(1, 480)),
        DomainDistance(torch.randn(16, 112, 112) / 10, torch.randn(2, 16, 112), torch.randn(16, 112)),
    )
    return export.ServedClassifier(classifier, LossPrediction(classifier.widths), distance).eval()


def test_torch_and_onnxruntime_agree_on_real_images(data_root: Path) -> None:
    spec = read_input_spec(SPECS / "chest_xray.json")
    config = make_config(
        seed=0, domains=("nih_chestxray",), leave_out=(), classes=("normal", "pneumonia"), finding="pneumonia", input=spec
    )
    rows = read_manifest(data_root / "cxr", config.domains, config.classes).rows[:24]
    tensors = load_images(rows, spec, "test").tensors
    module = served()
    graph = Graph(export.to_onnx(module, config))
    assert export.largest_difference(module, graph, tensors) <= 1e-4
    with torch.no_grad():
        module.classifier.head.bias += 0.001
    assert export.largest_difference(module, graph, tensors) > 5e-4  # control: other weights are seen


def test_a_graph_that_differs_from_torch_is_not_written(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = finished
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    images = export.load_run_images(copy, data)
    written = (copy / "model.onnx").read_bytes()
    monkeypatch.setattr(export, "to_onnx", lambda *_: written)  # it takes seconds, and is not what is tested here
    size, difference = export.export(copy, images)
    assert (copy / "model.onnx").stat().st_size == size
    assert difference <= 1e-4
    (copy / "model.onnx").unlink()
    monkeypatch.setattr(export, "largest_difference", lambda *_: float("nan"))
    with pytest.raises(Refusal) as caught:
        export.export(copy, images)
    assert caught.value.code == "model_output_invalid"
    assert not (copy / "model.onnx").exists()
    with pytest.raises(Refusal, match="overread export writes it"):
        export.read_graph(copy)


def test_distance_weighs_domains_equally_and_whitens_what_is_within_them() -> None:
    random = np.random.default_rng(0)
    big, small = random.normal(0, 1, (2000, 6)), random.normal(0, 3, (200, 6)) + 40
    statistics = np.concatenate([big, small]).astype(np.float32)[:, None]
    module = export.fit_distance(statistics, ["big"] * 2000 + ["small"] * 200)
    covariance = np.linalg.inv((module.whitening[0].T @ module.whitening[0]).double().numpy())
    np.testing.assert_allclose(np.diag(covariance), (1 + 9) / 2, rtol=0.2)  # not (2000 * 1 + 200 * 9) / 2200
    assert module.centres.shape == (2, 1, 6)
    between = module(torch.full((1, 1, 6), 20.0))
    assert float(between) > 3 * float(module(torch.from_numpy(statistics)).mean())  # the gap between domains is not home


def test_distance_stays_finite_with_few_images_and_a_dead_channel() -> None:
    statistics = np.random.default_rng(0).normal(size=(10, 3, 50)).astype(np.float32)
    statistics[:, :, 0] = 0
    module = export.fit_distance(statistics, ["a"] * 10)
    assert torch.isfinite(module(torch.from_numpy(statistics) + 1)).all()


def test_values_that_hardly_vary_are_the_same_in_single_precision() -> None:
    random = np.random.default_rng(0)
    statistics = random.normal(size=(200, 1, 6)).astype(np.float32)
    statistics[:, :, 1] = 900 + 0.01 * statistics[:, :, 1]  # large, and nearly constant
    statistics[:, :, 2] = 0.0  # a dead channel
    module = export.fit_distance(statistics, ["a"] * 200)
    probe = torch.from_numpy(statistics[:20].copy())
    probe[:, :, 2] = 0.5  # alive in another image: far, but not beyond all measure
    found, exact = module(probe), export.fit_distance(statistics, ["a"] * 200).double()(probe.double())
    assert float((found - exact).abs().max()) < 1e-4
    assert 3 < float(found.min()) < float(found.max()) < 100


def test_other_data_are_refused(finished: tuple[Path, Path], tmp_path: Path) -> None:
    run, data = finished
    other = tmp_path / "data"
    shutil.copytree(data, other)
    image = next(other.glob("*.png"))
    image.write_bytes(image.read_bytes() + b"\0")
    with pytest.raises(Refusal, match="not the rows and images") as caught:
        export.main([str(run), "--data", str(other)])
    assert caught.value.code == "data_invalid"


def test_siblings_are_exported_too(finished: tuple[Path, Path]) -> None:
    run, _ = finished
    assert export.run_folders(run) == [run, run / "without_east", run / "without_west"]
    digests = {(folder / "model.onnx").read_bytes() for folder in export.run_folders(run)}
    assert len(digests) == 3
    assert read_run(run / "without_west").config.domains == ("east",)
