"""Weights to begin with: taken over to the last value, or refused by name before any time is spent."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from models.errors import Refusal
from models.networks.classifier import Classifier
from models.networks.domain_distance import GRID, DomainDistance, ViewDistance
from models.networks.efficientnet import BLOCKS, WIDTHS, efficientnet_lite0, from_published
from models.networks.normalization import fold_normalization, gates, use_batch_instance
from models.predictor import Graph
from training import classifier
from training.config import RunConfig, make_config, read_input_spec, read_run
from training.export import ServedClassifier, largest_difference, to_onnx
from training.start import make_classifier, read_start

SMALL = (4, 8, 16)


@pytest.fixture
def config(spec_file: Path) -> Callable[..., RunConfig]:
    return partial(
        make_config, seed=0, domains=("a", "b"), leave_out=(), classes=("n", "p"), finding="p", widths=SMALL, blocks=1,
        input=read_input_spec(spec_file), style_stage=2,
    )  # fmt: skip


def saved(folder: Path, state: Any) -> Path:
    torch.save(state, folder / "weights.pt")
    return folder / "weights.pt"


def published() -> dict[str, torch.Tensor]:
    """Return random weights under the published names, in the published order of blocks."""
    torch.manual_seed(0)
    state: dict[str, torch.Tensor] = {}

    def norm(name: str, width: int) -> None:
        state.update({f"{name}.{part}": torch.rand(width) + 0.5 for part in ("weight", "bias", "running_mean", "running_var")})
        state[f"{name}.num_batches_tracked"] = torch.tensor(1)

    state["_conv_stem.weight"] = torch.randn(32, 3, 3, 3)
    norm("_bn0", 32)
    inputs, number = 32, 0
    for kernel, _, expansion, outputs in (block for stage in BLOCKS for block in stage):
        prefix, hidden = f"_blocks.{number}", inputs * expansion
        if expansion != 1:
            state[f"{prefix}._expand_conv.weight"] = torch.randn(hidden, inputs, 1, 1)
            norm(f"{prefix}._bn0", hidden)
        state[f"{prefix}._depthwise_conv.weight"] = torch.randn(hidden, 1, kernel, kernel)
        norm(f"{prefix}._bn1", hidden)
        state[f"{prefix}._project_conv.weight"] = torch.randn(outputs, hidden, 1, 1)
        norm(f"{prefix}._bn2", outputs)
        inputs, number = outputs, number + 1
    state["_conv_head.weight"] = torch.randn(1280, 320, 1, 1)
    norm("_bn1", 1280)
    state |= {"_fc.weight": torch.randn(1000, 1280), "_fc.bias": torch.randn(1000)}
    return state


def test_a_run_begins_with_the_weights_and_keeps_their_digest(tmp_path: Path, config: Callable[..., RunConfig]) -> None:
    theirs = Classifier(1, 2, SMALL, 1, 0.0)
    for state in (theirs.state_dict(), {"classifier": theirs.state_dict()}, {"state_dict": theirs.state_dict()}):
        start = read_start(saved(tmp_path, state))
        network = make_classifier(config(start_sha256=start.sha256), start)
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, theirs.state_dict()[name])
    random = make_classifier(config(), None)
    assert not torch.equal(random.head.weight, theirs.head.weight)  # control


def test_a_head_of_other_classes_is_left_random(tmp_path: Path, config: Callable[..., RunConfig]) -> None:
    theirs = Classifier(1, 5, SMALL, 1, 0.0)
    network = make_classifier(config(), read_start(saved(tmp_path, theirs.state_dict())))
    assert network.head.weight.shape == (2, SMALL[-1])
    torch.testing.assert_close(network.stem[0].weight, theirs.stem[0].weight)  # type: ignore[index]


@pytest.mark.parametrize("fault", ["missing", "extra", "shape"])
def test_weights_that_do_not_fit_are_refused_by_name(fault: str, tmp_path: Path, config: Callable[..., RunConfig]) -> None:
    state = Classifier(1, 2, SMALL, 1, 0.0).state_dict()
    name = "stages.1.0.conv1.weight"
    if fault == "missing":
        del state[name]
    elif fault == "extra":
        name = "another.weight"
        state[name] = torch.zeros(1)
    else:
        state[name] = torch.zeros(3)
    with pytest.raises(Refusal, match=name.replace(".", r"\.")) as caught:
        make_classifier(config(), read_start(saved(tmp_path, state)))
    assert caught.value.code == "config_invalid"


def test_a_file_that_would_run_code_or_holds_no_weights_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (str(tmp_path / "ran"),)

    files = [tmp_path / name for name in ("evil.pt", "text.pt", "missing.pt")]
    files[0].write_bytes(pickle.dumps(Evil()))
    files[1].write_text("weights")
    for file in [*files, saved(tmp_path, {"epoch": 3}), saved(tmp_path, [torch.zeros(1)])]:
        with pytest.raises(Refusal) as caught:
            read_start(file)
        assert caught.value.code == "config_invalid"
    assert not (tmp_path / "ran").exists()


def test_published_weights_are_taken_over_name_by_name(tmp_path: Path, config: Callable[..., RunConfig]) -> None:
    state = published()
    start = read_start(saved(tmp_path, state))
    network = make_classifier(config(backbone="efficientnet_lite0"), start)
    assert network.widths == WIDTHS
    assert sum(value.numel() for value in network.parameters()) == pytest.approx(3.4e6, rel=0.02)
    block = network.get_submodule("stages.3.5.body")  # the eleventh block
    torch.testing.assert_close(block.state_dict()["6.weight"], state["_blocks.10._project_conv.weight"])
    grey = network.get_submodule("stem.0").weight
    torch.testing.assert_close(grey, state["_conv_stem.weight"].sum(dim=1, keepdim=True))
    assert set(from_published(state, 3)) == set(network.state_dict()) - {"head.weight", "head.bias"}
    del state["_blocks.7._bn1.running_var"]
    with pytest.raises(Refusal, match=r"_blocks\.7\._bn1\.running_var is missing"):
        make_classifier(config(backbone="efficientnet_lite0"), read_start(saved(tmp_path, state)))


def test_gates_need_more_than_one_pixel(config: Callable[..., RunConfig]) -> None:
    assert config(normalization="batch_instance").widths == SMALL
    with pytest.raises(Refusal, match="one pixel has no style"):
        config(normalization="batch_instance", backbone="efficientnet_lite0")  # 32 pixels, halved five times


def test_padding_is_that_of_the_published_network() -> None:
    """At stride 2 and an even size all of the padding of a 3 x 3 kernel lies at the far edge, so the first row sees no zero."""
    stem = efficientnet_lite0(1, 2, 0.0).get_submodule("stem.0")
    with torch.no_grad():
        stem.weight.fill_(1.0)
        sums = stem(torch.ones(1, 1, 8, 8))[0, 0]
    assert sums[0, 0] == 9
    assert sums[-1, -1] == 4


@pytest.mark.timeout(120)
def test_the_large_backbone_is_exported_with_gates_folded(config: Callable[..., RunConfig]) -> None:
    torch.manual_seed(0)
    settings = config(backbone="efficientnet_lite0")
    network = make_classifier(settings, None)
    assert use_batch_instance(network) == 49
    with torch.no_grad():
        gates(network)[3].fill_(0.5)
    whole, cells = 2 * sum(WIDTHS), sum(WIDTHS[:-1])
    distance = ViewDistance(
        DomainDistance(torch.eye(whole)[None], torch.zeros(1, 1, whole), torch.zeros(1, whole)),
        DomainDistance(torch.eye(cells).repeat(GRID**2, 1, 1), torch.zeros(1, GRID**2, cells), torch.zeros(GRID**2, cells)),
    )
    served = ServedClassifier(fold_normalization(network.eval()), None, distance).eval()
    images = torch.randn(8, 1, 32, 32)
    assert largest_difference(served, Graph(to_onnx(served, settings)), images.numpy()) <= 1e-4


@pytest.mark.timeout(300)
def test_the_command_takes_weights_and_keeps_to_them(
    arguments: Callable[..., list[str]], finished: tuple[Path, Path], small: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    earlier, data = finished
    command = arguments(data, tmp_path / "run", "--leave-out", "--epochs", "1", "--weights")
    wrong = saved(tmp_path, Classifier(3, 2, SMALL, 1, 0.0).state_dict())
    with monkeypatch.context() as patch:
        patch.setattr(classifier, "load_images", lambda *_: pytest.fail("an image was read"))
        with pytest.raises(Refusal, match=r"stem\.0\.weight has another shape"):
            classifier.main([*command, str(wrong)])
    assert not (tmp_path / "run").exists()
    assert classifier.main([*command, str(earlier / "model.pt")]) == 0
    run = read_run(tmp_path / "run")
    assert run.config.start_sha256 == read_start(earlier / "model.pt").sha256
    assert "--weights WEIGHTS" in run.command

    def loss(folder: Path) -> float:
        return float((folder / "log.csv").read_text().splitlines()[1].split(",")[1])

    assert loss(tmp_path / "run") < 0.8 * loss(earlier)  # the first epoch of a trained network and of a random one
    with pytest.raises(Refusal, match="start_sha256") as caught:
        classifier.main(command[:-1])
    assert caught.value.code == "output_exists"
