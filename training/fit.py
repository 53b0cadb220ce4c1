"""The loop around a training module: Lightning's, with a checkpoint an epoch, from which a killed run goes on."""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from models.durable import write_whole
from models.errors import Refusal
from models.networks.normalization import GATE_LEARNING_RATE, clamp_gates, gates
from training.config import RunConfig
from training.data import BalancedBatches, ImageSet

CHECKPOINT = "last.ckpt"
WEIGHTS = "model.pt"
LOG = "log.csv"


class Recipe(Protocol):
    """What the loop needs of a config: see :class:`training.config.RunConfig`."""

    @property
    def domains(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def epochs(self) -> int: ...  # noqa: D102

    @property
    def total_steps(self) -> int: ...  # noqa: D102

    @property
    def learning_rate(self) -> float: ...  # noqa: D102

    @property
    def weight_decay(self) -> float: ...  # noqa: D102

    @property
    def precision(self) -> Any: ...  # noqa: D102


def memory_format(config: Recipe) -> torch.memory_format:
    """Return the order in memory that a training's images and weights have.

    With bfloat16 it is channels last, which makes a step 1.3 to 1.9 times as quick on a processor. With float32 it must not be:
    there, of a 1 x 1 convolution with stride 2 and 8 channels or fewer, torch 2.13's backward pass writes beyond its memory.
    """
    return torch.channels_last if config.precision == "bf16-mixed" else torch.contiguous_format


def rate(step: int, total: int) -> float:
    """Return the factor of the learning rate: a linear warm-up over a twentieth of the steps, and a cosine to zero."""
    warm = max(1, total // 20)
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))


def adamw(modules: Sequence[nn.Module], config: Recipe) -> torch.optim.AdamW:
    """Return AdamW over all parameters of ``modules``.

    Vectors (biases, normalisations) do not decay. The gates of BIN are a group of their own, with their own learning rate, that
    every step brings back into [0, 1].
    """
    whole = nn.ModuleList(modules)
    gate = gates(whole)
    rest = [value for value in whole.parameters() if not any(value is rho for rho in gate)]
    groups: list[dict[str, Any]] = [
        {"params": [value for value in rest if value.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [value for value in rest if value.ndim <= 1], "weight_decay": 0.0},
    ]
    if gate:
        groups.append({"params": gate, "weight_decay": 0.0, "lr": GATE_LEARNING_RATE * config.learning_rate})
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
    optimizer.register_step_post_hook(lambda *_: clamp_gates(whole))
    return optimizer


class _Log(lightning.Callback):
    """One line an epoch, so that a run without a terminal leaves its course behind."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if not self.file.exists():
            self.file.write_text("step,loss,ranking\n", encoding="utf-8")
        values = trainer.callback_metrics
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(f"{trainer.global_step},{float(values['loss']):.4f},{float(values['ranking']):.4f}\n")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's advice that does not fit, its advertising, and its use of what torch calls deprecated."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
        warnings.filterwarnings("ignore", message=".*number of training batches .* is smaller than the logging interval.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*", category=FutureWarning)
        yield
    log.setLevel(level)


def load_safely(file: Path) -> dict[str, Any]:
    """Read a file of tensors and plain values; nothing in it is run.

    Raises
    ------
    Refusal
        ``config_invalid`` if it is damaged or holds anything else.
    """
    try:
        loaded: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no exception of its own: zip, unpickling, end of file and key errors
        message = f"{file.name} of the run is damaged ({type(error).__name__}): delete it, and give the command again."
        raise Refusal("config_invalid", message) from error
    return loaded


def save_weights(state: dict[str, Any], folder: Path) -> None:
    """Write ``model.pt`` of a run whole or not at all; raises OSError, which ``torch.save`` to a file does not."""
    stream = io.BytesIO()
    torch.save(state, stream)
    write_whole(folder / WEIGHTS, stream.getvalue())


def fit(module: lightning.LightningModule, parts: Sequence[str], config: RunConfig, images: ImageSet, folder: Path) -> None:
    """Train a module on whole images, in balanced batches of (images, labels); see :func:`fit_batches`.

    Parameters
    ----------
    images : ImageSet
        The training split of the config's domains.
    """
    tensors, labels = torch.from_numpy(images.tensors), torch.from_numpy(images.labels)
    groups = [(row.domain, row.label) for row in images.rows]
    batches = BalancedBatches(groups, config.steps_per_epoch, config.batch_size, config.seed)
    # As the sampler, not the batch sampler: Lightning tells only the former which epoch it is.
    fit_batches(module, parts, config, DataLoader(TensorDataset(tensors, labels), sampler=batches, batch_size=None), folder)


def fit_batches(
    module: lightning.LightningModule, parts: Sequence[str], config: Recipe, loader: Iterable[Any], folder: Path
) -> None:
    """Train a module, from the last checkpoint if there is one.

    Parameters
    ----------
    module : LightningModule
        It logs ``loss`` and ``ranking``. What is random in a step must depend on the seed and the step alone.
    parts : sequence of str
        Its submodules whose state dicts are kept at the end.
    config : Recipe
    loader : DataLoader
        Of the batches; its sampler is told the epoch.
    folder : Path
        Receives ``last.ckpt`` (after every epoch), ``log.csv`` and, at the end, ``model.pt``: a state dict for each part.
        All can be loaded with ``weights_only=True``.

    Raises
    ------
    KeyboardInterrupt
        If it was interrupted; Lightning alone would return as if it were done.
    """
    resumed = folder / CHECKPOINT if (folder / CHECKPOINT).exists() else None
    done = int(load_safely(resumed)["global_step"]) if resumed else 0
    going_on = f", going on from step {done}" if done else ""
    print(f"{', '.join(config.domains)}: {config.total_steps} steps{going_on}", flush=True)
    module.to(memory_format=memory_format(config))
    with _quiet():
        trainer = lightning.Trainer(
            max_epochs=config.epochs, precision=config.precision, accelerator="auto", devices=1, logger=False,
            callbacks=[
                ModelCheckpoint(folder, CHECKPOINT.removesuffix(".ckpt"), save_top_k=1, enable_version_counter=False),
                TQDMProgressBar(refresh_rate=10), _Log(folder / LOG),
            ],
            enable_model_summary=False, gradient_clip_val=1.0,
        )  # fmt: skip
        trainer.fit(module, loader, ckpt_path=resumed, weights_only=True)
    if trainer.global_step != config.total_steps:
        raise KeyboardInterrupt
    module.cpu()
    save_weights({name: module.get_submodule(name).state_dict() for name in parts}, folder)
