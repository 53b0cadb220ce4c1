import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models.errors import Refusal
from training import classifier
from training.classifier import ClassifierTraining, load_weights, sibling
from training.config import RunConfig, make_config, read_input_spec, read_run

Arguments = Callable[..., list[str]]


@pytest.fixture
def config(spec_file: Path) -> RunConfig:
    return make_config(
        seed=0, domains=("a", "b"), leave_out=(), classes=("n", "p"), finding="p", input=read_input_spec(spec_file),
        precision="32-true",
    )  # fmt: skip


def _run_planted() -> None:
    Planted.ran = True


class Planted:
    """What a checkpoint must not be able to do: run code when it is read."""

    ran = False

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _run_planted, ()


def gradients(config: RunConfig, joint: bool) -> tuple[float, float]:
    """Return the gradient, of the ranking loss alone, on the features and on the loss prediction module."""
    torch.manual_seed(0)
    module = ClassifierTraining(config)
    _, ranking = module.losses(torch.randn(8, 1, 32, 32), torch.arange(8) % 2, joint)
    ranking.backward()
    parts = (module.classifier.parameters(), module.loss_prediction.parameters())
    first, second = (sum(float(p.grad.abs().sum()) for p in part if p.grad is not None) for part in parts)
    return first, second


def test_ranking_loss_reaches_the_features_only_while_joint(config: RunConfig) -> None:
    features, scores = gradients(config, joint=True)
    assert features > 0
    assert scores > 0
    features, scores = gradients(config, joint=False)
    assert features == 0
    assert scores > 0


def test_ranking_loss_never_trains_the_head(config: RunConfig) -> None:
    module = ClassifierTraining(config)
    module.losses(torch.randn(8, 1, 32, 32), torch.arange(8) % 2, True)[1].backward()
    assert module.classifier.head.weight.grad is None  # the true loss is detached


def test_learning_rate_warms_up_and_falls_to_zero(config: RunConfig) -> None:
    schedule = ClassifierTraining(config).configure_optimizers()["lr_scheduler"]["scheduler"]
    factor = schedule.lr_lambdas[0]
    total = config.total_steps
    assert factor(0) < 0.05
    assert factor(total // 20) > 0.9
    assert factor(total) == pytest.approx(0, abs=1e-9)


def test_a_finished_run_and_its_siblings(
    finished: tuple[Path, Path], arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = finished
    for folder in (run, sibling(run, "east"), sibling(run, "west")):
        weights = torch.load(folder / "model.pt", weights_only=True)
        assert set(weights) == {"classifier", "loss_prediction"}
        assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 40
        assert not load_weights(folder).training
        assert len((folder / "log.csv").read_text().splitlines()) == 5
    assert read_run(sibling(run, "east")).config.domains == ("west",)
    assert read_run(run).trained_on["east"][0] == 2 * read_run(run).trained_on["east"][1]
    command = read_run(run).command
    assert str(data) not in command
    assert "--steps-per-epoch 10 --batch-size 16 " in command  # not the defaults, so the command would not make the same run
    before = (run / "model.pt").stat().st_mtime_ns
    assert classifier.main(arguments(data, run, "--epochs", "4")) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (run / "model.pt").stat().st_mtime_ns == before


def test_another_setting_or_other_data_in_the_same_folder_is_refused(
    finished: tuple[Path, Path], arguments: Arguments, tmp_path: Path
) -> None:
    run, data = finished
    with pytest.raises(Refusal, match="seed") as caught:
        classifier.main(arguments(data, run, "--epochs", "4", "--seed", "1"))
    assert caught.value.code == "output_exists"
    with pytest.raises(Refusal, match="batch_size"):
        classifier.main(arguments(data, run, "--epochs", "4", "--batch-size", "32"))
    other = tmp_path / "data"
    shutil.copytree(data, other)
    image = next(other.glob("*.png"))
    image.write_bytes(image.read_bytes() + b"\0")
    with pytest.raises(Refusal, match="other data"):
        classifier.main(arguments(other, run, "--epochs", "4"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(Refusal, match="holds no run"):
        classifier.main(arguments(data, tmp_path / "out"))


def test_an_unreadable_test_image_is_found_before_training(drawn_big: Path, arguments: Arguments, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(drawn_big, data)
    (data / "east_spot_3_1.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(Refusal, match=r"row 68: ") as caught:
        classifier.main(arguments(data, tmp_path / "run"))
    assert caught.value.code == "data_invalid"
    assert not (tmp_path / "run").exists()


def start(command: list[str], small: dict[str, Any]) -> subprocess.Popen[bytes]:
    code = (
        "import functools, training.classifier as c\n"
        f"c.make_config = functools.partial(c.make_config, **{small!r})\n"
        f"raise SystemExit(c.main({command!r}))"
    )
    root = Path(__file__).parents[2]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdout=quiet, stderr=quiet, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(
    drawn_big: Path, arguments: Arguments, small: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(out: Path) -> list[str]:
        return arguments(drawn_big, out, "--epochs", "20", "--leave-out")

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(command(killed), small)
    while not (killed / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    saved = torch.load(killed / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < saved < 200
    assert not (killed / "model.pt").exists()
    with pytest.raises(Refusal, match="not finished"):
        load_weights(killed)
    assert classifier.main(command(killed)) == 0
    assert f"200 steps, going on from step {saved}" in capsys.readouterr().out
    assert classifier.main(command(whole)) == 0
    assert "going on" not in capsys.readouterr().out
    ours, theirs = (torch.load(folder / "model.pt", weights_only=True) for folder in (killed, whole))
    assert torch.load(killed / "last.ckpt", weights_only=True)["global_step"] == 200
    for part in ours:
        for name, value in ours[part].items():
            torch.testing.assert_close(value, theirs[part][name], rtol=0, atol=0, msg=f"{part}.{name} differs")


def test_damaged_or_foreign_weights_are_refused_and_nothing_in_them_is_run(finished: tuple[Path, Path], tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished[0], copy)
    load_weights(copy)
    whole = (copy / "model.pt").read_bytes()
    torch.save({"classifier": Planted()}, copy / "planted.pt")
    for content in (b"", whole[: len(whole) // 2], (copy / "planted.pt").read_bytes()):
        (copy / "model.pt").write_bytes(content)
        with pytest.raises(Refusal, match="damaged") as caught:
            load_weights(copy)
        assert caught.value.code == "config_invalid"
    assert not Planted.ran
    torch.load(copy / "planted.pt", weights_only=False)
    assert Planted.ran  # control: an unsafe reader runs it


@pytest.mark.usefixtures("small")
def test_what_will_be_done_is_said_first(
    drawn_big: Path, arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert classifier.main(arguments(drawn_big, tmp_path / "run", "--epochs", "1", "--leave-out")) == 0
    out = capsys.readouterr().out
    assert "240 images" in out
    assert "1 models of 10 steps: about" in out
    assert out.index("about") < out.index("10 steps\n")


@pytest.mark.usefixtures("small")
def test_every_epoch_draws_its_own_batches(
    drawn_big: Path, arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    step = ClassifierTraining.training_step

    def record(self: ClassifierTraining, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        seen.append(batch[0].numpy().tobytes())
        return step(self, batch, index)

    monkeypatch.setattr(ClassifierTraining, "training_step", record)
    classifier.main(arguments(drawn_big, tmp_path / "run", "--epochs", "2", "--leave-out"))
    assert len(seen) == len(set(seen)) == 20


@pytest.mark.parametrize("missing", ["--data", "--domains", "--classes", "--finding", "--input", "--out"])
def test_what_must_be_given_has_no_default(arguments: Arguments, tmp_path: Path, missing: str) -> None:
    words = arguments(tmp_path, tmp_path)
    start_at = words.index(missing)
    end = next((i for i in range(start_at + 1, len(words)) if words[i].startswith("--")), len(words))
    with pytest.raises((SystemExit, Refusal)):
        classifier.main(words[:start_at] + words[end:])
