"""Style-agnostic training, Batch-Instance Normalization and held-out loss prediction, switched on in a run and exported."""

from __future__ import annotations

import copy
import json
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from scipy.stats import spearmanr

from models.errors import Refusal
from models.networks.domain_distance import GRID, DomainDistance, ViewDistance
from models.networks.normalization import fold_normalization, gates
from training import classifier, export, held_out
from training.classifier import ClassifierTraining, load_weights, sibling
from training.config import RunConfig, fold_of, make_config, read_input_spec, read_run
from training.data import load_images, read_manifest
from training.export import ServedClassifier, to_onnx
from training.held_out import finish, fit_loss_prediction

Arguments = Callable[..., list[str]]
WIDTHS = (4, 8, 16)


@pytest.fixture
def config(spec_file: Path) -> Callable[..., RunConfig]:
    def make(**more: Any) -> RunConfig:
        return make_config(
            seed=0, domains=("a", "b"), leave_out=(), classes=("n", "p"), finding="p", input=read_input_spec(spec_file),
            precision="32-true", widths=WIDTHS, blocks=1, style_stage=2, **more,
        )  # fmt: skip

    return make


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, small: dict[str, Any]) -> Callable[[list[str]], int]:
    """Run ``overread train classifier`` with small networks whose featurizer is two of three stages."""
    monkeypatch.setattr(classifier, "make_config", partial(classifier.make_config, style_stage=2))
    return classifier.main


def no_distance() -> ViewDistance:
    whole, cells = 2 * sum(WIDTHS), sum(WIDTHS[:-1])
    return ViewDistance(
        DomainDistance(torch.eye(whole)[None], torch.zeros(1, 1, whole), torch.zeros(1, whole)),
        DomainDistance(torch.eye(cells).repeat(GRID**2, 1, 1), torch.zeros(1, GRID**2, cells), torch.zeros(GRID**2, cells)),
    )


def graph(module: ClassifierTraining) -> Counter[str]:
    served = None if module.config.loss_prediction == "none" else module.loss_prediction
    folded = ServedClassifier(fold_normalization(module.classifier), served, no_distance()).eval()
    model = onnx.load_model_from_string(to_onnx(folded, module.config))
    return Counter(node.op_type for node in model.graph.node)


def test_style_and_open_gates_leave_nothing_in_the_exported_graph(config: Callable[..., RunConfig]) -> None:
    plain = graph(ClassifierTraining(config()))
    assert graph(ClassifierTraining(config(style="sagnet"))) == plain
    both = ClassifierTraining(config(style="sagnet", normalization="batch_instance"))
    assert graph(both) == plain
    with torch.no_grad():
        gates(both.classifier)[0].fill_(0.5)
    assert graph(both) == plain + Counter(InstanceNormalization=1, Mul=1, Add=1)  # the control: a gate that is used is seen


def test_without_loss_prediction_the_score_is_the_entropy(config: Callable[..., RunConfig]) -> None:
    module = ClassifierTraining(config(loss_prediction="none")).eval()
    served = ServedClassifier(module.classifier, None, no_distance())
    logits, _, score, _, _ = served(torch.randn(5, 1, 32, 32))
    likely = logits.softmax(dim=1)
    torch.testing.assert_close(score, -(likely * likely.log()).sum(dim=1))
    images, labels = torch.randn(8, 1, 32, 32), torch.arange(8) % 2
    assert module.losses(images, labels, True)[1].item() == 0
    assert ClassifierTraining(config()).losses(images, labels, True)[1].item() > 0


def test_gates_are_a_group_of_their_own_and_every_step_ends_in_the_interval(config: Callable[..., RunConfig]) -> None:
    module = ClassifierTraining(config(normalization="batch_instance"))
    optimiser = module.configure_optimizers()["optimizer"]
    *others, own = optimiser.param_groups
    assert own["initial_lr"] == pytest.approx(10 * others[0]["initial_lr"])
    assert own["weight_decay"] == 0
    assert {id(value) for value in own["params"]} == {id(value) for value in gates(module.classifier)}
    grouped = [id(value) for group in optimiser.param_groups for value in group["params"]]
    assert len(grouped) == len(set(grouped))
    for value in module.classifier.parameters():
        value.grad = torch.full_like(value, -1.0)
    for group in optimiser.param_groups:
        group["lr"] = 0.5
    optimiser.step()
    assert all(bool((rho == 1).all()) for rho in gates(module.classifier))  # without the hook they would be 1.5


def test_the_estimated_time_is_that_of_whole_steps(config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    taken: Counter[str] = Counter()
    styles, step = classifier.style_steps, torch.optim.AdamW.step

    def counted_styles(*given: Any) -> Any:
        taken["style"] += 1
        return styles(*given)

    def counted_step(optimizer: torch.optim.AdamW, closure: Any = None) -> Any:
        taken["optimizer"] += 1
        return step(optimizer, closure)

    monkeypatch.setattr(classifier, "style_steps", counted_styles)
    monkeypatch.setattr(torch.optim.AdamW, "step", counted_step)
    images, labels = torch.randn(8, 1, 32, 32), torch.arange(8) % 2
    assert classifier.seconds_per_step(config(), None, images, labels, steps=2) > 0
    assert taken == {"optimizer": 3}  # one that is not timed
    assert classifier.seconds_per_step(config(style="sagnet"), None, images, labels, steps=2) > 0
    assert taken == {"optimizer": 3 + 6, "style": 3}


def test_a_style_run_drops_its_head_and_goes_on_with_its_optimisers(
    train: Callable[[list[str]], int], arguments: Arguments, drawn_big: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = ("--epochs", "2", "--leave-out", "--style", "sagnet", "--normalization", "batch_instance")
    assert train(arguments(drawn_big, run, *options)) == 0
    assert set(torch.load(run / "model.pt", weights_only=True)) == {"classifier", "loss_prediction"}
    assert "--style sagnet --normalization batch_instance" in read_run(run).command
    kept = torch.load(run / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 20  # the style and adversarial steps are not counted
    assert len(kept["style_optimizers"]) == 2
    module = ClassifierTraining(read_run(run).config)
    module.on_load_checkpoint(kept)
    module.configure_optimizers()
    module.on_train_start()
    assert module.style_optimizers is not None
    momenta = [state["momentum_buffer"] for state in module.style_optimizers[1].state_dict()["state"].values()]
    assert momenta
    assert any(bool(momentum.abs().sum() > 0) for momentum in momenta)
    before, after = ClassifierTraining(read_run(run).config).classifier, load_weights(run).classifier
    assert not torch.equal(before.stages[0][0].norm1.weight, after.stages[0][0].norm1.weight)
    assert export.main([str(run), "--data", str(drawn_big)]) == 0  # compares the folded graph with torch


def test_held_out_errors_leave_the_classifier_as_it_is(
    train: Callable[[list[str]], int], arguments: Arguments, drawn_big: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {name: tmp_path / name for name in ("held-out", "none", "joint")}
    for name, run in runs.items():
        more = () if name == "held-out" else ("--leave-out",)
        assert train(arguments(drawn_big, run, "--epochs", "2", "--loss-prediction", name, *more)) == 0
    states = {name: load_weights(run).classifier.state_dict() for name, run in runs.items()}
    assert all(torch.equal(value, states["none"][key]) for key, value in states["held-out"].items())
    assert not all(torch.equal(value, states["none"][key]) for key, value in states["joint"].items())
    run = runs["held-out"]
    assert json.loads((run / "held_out.json").read_text())["errors"] == "leave one domain out"
    assert json.loads((sibling(run, "east") / "held_out.json").read_text())["errors"] == "out of fold"
    assert read_run(sibling(run, "east") / "fold_1").config.fold == 1
    assert train(arguments(drawn_big, run, "--epochs", "2", "--loss-prediction", "held-out")) == 0
    assert "nothing to do" in capsys.readouterr().out
    (run / "held_out.json").unlink()
    with pytest.raises(Refusal, match="not fitted"):
        load_weights(run)
    before = load_weights(run, fitted=False).loss_prediction.state_dict()
    assert train(arguments(drawn_big, run, "--epochs", "2", "--loss-prediction", "held-out")) == 0
    again = load_weights(run).loss_prediction.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in before.items())  # fitted again, to the same


def test_an_image_is_judged_by_the_run_that_did_not_see_it(
    train: Callable[[list[str]], int], arguments: Arguments, drawn_big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    options = ("--epochs", "1", "--loss-prediction", "held-out")
    assert train(arguments(drawn_big, run, *options)) == 0
    config = read_run(run).config
    images = load_images(read_manifest(drawn_big, config.domains, config.classes).rows, config.input, "reading").where(
        "train", config
    )
    classifiers = {
        folder: load_weights(folder, fitted=False).classifier for folder in (run, sibling(run, "east"), sibling(run, "west"))
    }
    for folder, bias in ((sibling(run, "east"), 30.0), (sibling(run, "west"), -30.0)):
        planted = copy.deepcopy(classifiers[folder])
        torch.nn.init.zeros_(planted.head.weight)
        planted.head.bias.data = torch.tensor([bias, -bias])  # certain of class 0, or of class 1
        classifiers[folder] = planted
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(
        held_out, "fit_loss_prediction", lambda stages, losses, *rest: seen.append(losses) or load_weights(run).loss_prediction
    )
    finish(run, classifiers, images)
    expected = [60.0 * (row.label == (1 if row.domain == "east" else 0)) for row in images.rows]
    torch.testing.assert_close(seen[0], torch.tensor(expected))


def test_fitting_ranks_by_the_losses_and_not_by_others() -> None:
    generator = torch.Generator().manual_seed(0)
    stages = [torch.rand(400, 5, generator=generator), torch.rand(400, 7, generator=generator)]
    losses = stages[0][:, 0] + stages[1][:, 3] ** 2
    fresh = [torch.rand(200, 5, generator=generator), torch.rand(200, 7, generator=generator)]
    truth = fresh[0][:, 0] + fresh[1][:, 3] ** 2

    def agreement(target: torch.Tensor) -> float:
        head = fit_loss_prediction(stages, target, 1.0, seed=0)
        with torch.no_grad():
            return float(spearmanr(head([part[:, :, None, None] for part in fresh]).numpy(), truth.numpy()).statistic)

    assert agreement(losses) > 0.9
    assert abs(agreement(losses[torch.randperm(400, generator=generator)])) < 0.5


def test_folds_part_the_patients_of_the_train_split_alone(drawn_big: Path, spec_file: Path) -> None:
    whole = make_config(
        seed=0, domains=("east",), leave_out=(), classes=("normal", "spot"), finding="spot", input=read_input_spec(spec_file)
    )
    images = load_images(read_manifest(drawn_big, whole.domains, whole.classes).rows, whole.input, "reading")
    halves = [{row.image for row in images.where("train", whole.model_copy(update={"fold": fold})).rows} for fold in (0, 1)]
    assert halves[0]
    assert halves[1]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == {row.image for row in images.where("train", whole).rows}
    one = whole.model_copy(update={"fold": 0})
    assert len(images.where("test", one).rows) == len(images.where("test", whole).rows)
    assert np.mean([fold_of(str(patient), 0) for patient in range(2000)]) == pytest.approx(0.5, abs=0.05)


def test_a_run_from_before_these_fields_is_read_as_it_was(finished: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished[0], run, ignore=shutil.ignore_patterns("without_*"))
    document = json.loads((run / "run.json").read_text())
    for name in ("normalization", "style", "style_stage", "adversarial_weight", "loss_prediction", "fold"):
        del document["config"][name]
    (run / "run.json").write_text(json.dumps(document))
    assert read_run(run).config == read_run(finished[0]).config
    assert load_weights(run).config.loss_prediction == "joint"


def test_style_stage_must_leave_a_content_head(config: Callable[..., RunConfig]) -> None:
    with pytest.raises(Refusal, match="content head"):
        make_config(**(config().model_dump() | {"style": "sagnet", "style_stage": 3}))
