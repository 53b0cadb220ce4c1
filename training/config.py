"""What decides a training run: one frozen document, written beside the run as JSON."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.card import Fraction, InputSpec
from models.durable import write_whole
from models.errors import Refusal
from training.adaptation_config import Adaptation
from training.fields import Count, Positive, Word, problem


class RunConfig(BaseModel):
    """Everything that decides the weights of a classifier, except the images.

    Attributes
    ----------
    domains : tuple of str
        Domains trained on.
    leave_out : tuple of str
        For each of these a sibling is trained by the same recipe on the other domains.
    classes : tuple of str
        Labels, in the order of the logits.
    finding : str
        The class that is reported as a finding, against all others.
    input : InputSpec
        How an image becomes a tensor.
    fractions : (float, float, float)
        Share of the patients in the splits train, calibration and test.
    epochs, steps_per_epoch, batch_size : int
        An epoch is a fixed number of balanced batches, so that a sibling with fewer images takes as many steps. A
        checkpoint is written after each.
    learning_rate, weight_decay : float
        AdamW; a linear warm-up over the first twentieth of the steps, then a cosine to zero.
    dropout : float
    widths, blocks : tuple of int, int
        See :class:`models.networks.classifier.Classifier`.
    backbone : str
        "residual", or "efficientnet_lite0" (:mod:`models.networks.efficientnet`), whose widths are its own.
    start_sha256 : str or None
        Digest of the file of weights that training began with; None for random ones.
    loss_weight, ranking_margin : float
        Of the ranking loss of the loss prediction module.
    loss_gradient_until : float
        Share of the steps after which that module's gradient no longer reaches the features.
    labels_sha256 : str or None
        Digest of the label package among the data; None without one.
    label_domains : tuple of str
        Domains whose images are the label package's alone, whatever a manifest beside it holds of them.
    flip : bool
        Whether images are mirrored at random.
    normalization : str
        "batch", or "batch_instance": see :class:`models.networks.normalization.BatchInstanceNorm2d`.
    style : str
        "none", or "sagnet": see :func:`training.style.style_steps`.
    style_stage, adversarial_weight : int, float
        Of "sagnet": stages of the featurizer, and weight of the adversarial loss.
    loss_prediction : str
        "joint": trained with the classifier (the paper's). "held-out": fitted afterwards, see :mod:`training.held_out`.
        "none": no module; softmax entropy is served in its place.
    fold : int or None
        Of a run on one half of the patients (0 or 1), made for the held-out errors of another.
    adaptation : Adaptation or None
        Of a run that was adapted to another domain after training.
    precision : str
        "32-true", or "bf16-mixed" (twice as fast on processors and cards that know it).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    verb: Literal["train classifier"] = "train classifier"
    seed: Annotated[int, Field(ge=0)]
    domains: Annotated[tuple[Word, ...], Field(min_length=1)]
    leave_out: tuple[Word, ...]
    classes: Annotated[tuple[Word, ...], Field(min_length=2)]
    finding: Word
    input: InputSpec
    fractions: tuple[Fraction, Fraction, Fraction] = (0.6, 0.2, 0.2)
    epochs: Count = 20
    steps_per_epoch: Count = 50
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: Positive = 2e-3
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.05
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    widths: Annotated[tuple[Count, ...], Field(min_length=1)] = (16, 32, 64, 128)
    blocks: Count = 2
    backbone: Literal["residual", "efficientnet_lite0"] = "residual"
    start_sha256: str | None = None
    loss_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    ranking_margin: Positive = 1.0
    loss_gradient_until: Fraction = 0.6
    labels_sha256: str | None = None
    label_domains: tuple[Word, ...] = ()
    flip: bool = True
    normalization: Literal["batch", "batch_instance"] = "batch"
    style: Literal["none", "sagnet"] = "none"
    style_stage: Count = 3
    adversarial_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    loss_prediction: Literal["joint", "held-out", "none"] = "joint"
    fold: Literal[0, 1] | None = None
    adaptation: Adaptation | None = None
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        for name in ("domains", "leave_out", "classes"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} holds one value twice")
        if not set(self.leave_out) <= set(self.domains) or (self.leave_out and len(self.domains) < 2):
            raise ValueError("only one of several domains can be left out")
        if self.finding not in self.classes:
            raise ValueError("the finding must be one of the classes")
        if self.style == "sagnet" and self.style_stage >= len(self.widths):
            raise ValueError("style_stage must leave at least one stage to the content head")
        stages = 5 if self.backbone == "efficientnet_lite0" else len(self.widths)
        if self.normalization == "batch_instance" and min(self.input.height, self.input.width) <= 2**stages:
            raise ValueError(f"batch_instance needs more than {2**stages} pixels a side: one pixel has no style")
        if abs(sum(self.fractions) - 1) > 1e-9 or min(self.fractions) <= 0:
            raise ValueError("fractions must be above 0 and sum to 1")
        return self

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def without(self, domain: str) -> RunConfig:
        """Return the config of the sibling that never sees ``domain``: the same recipe on the others."""
        others = tuple(name for name in self.domains if name != domain)
        return self.model_copy(update={"domains": others, "leave_out": ()})


def fold_of(patient: str, seed: int) -> int:
    """Return the half (0 or 1) of a patient, which depends on the seed and the patient alone."""
    return hashlib.sha256(f"fold:{seed}:{patient}".encode()).digest()[0] % 2


Config = TypeVar("Config", bound=BaseModel)


def config_of(kind: type[Config], values: dict[str, Any]) -> Config:
    """Return a config of a kind, or refuse it.

    Raises
    ------
    Refusal
        ``config_invalid``, with the first field that is wrong.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        raise Refusal("config_invalid", problem(error, "config")) from error


def make_config(**values: Any) -> RunConfig:
    """Return a classifier's config; see :func:`config_of`."""
    return config_of(RunConfig, values)


def read_input_spec(file: Path) -> InputSpec:
    """Read an :class:`InputSpec` from a JSON file.

    Raises
    ------
    Refusal
        ``config_invalid`` if it cannot be read or a field is missing, unknown or out of range.
    """
    try:
        return InputSpec.model_validate_json(file.read_bytes())
    except OSError as error:
        raise Refusal("config_invalid", f"The input specification cannot be read ({type(error).__name__}).") from error
    except ValidationError as error:
        raise Refusal("config_invalid", f"Input specification, {problem(error)}") from error


def versions() -> dict[str, str]:
    """Return the versions of the installed libraries that decide weights, graph and figures."""
    names = ("lightning", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript", "pillow", "scikit-learn", "torch")
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):  # exactly one of the two onnxruntimes is installed
            found[name] = version(name)
    return found


def sha256(data: bytes) -> str:
    """Return the SHA-256 of ``data``, as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def write_json(file: Path, document: dict[str, Any]) -> None:
    """Write a JSON document whole or not at all; numbers that are not finite are refused with a ValueError."""
    write_whole(file, (json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())


def read_json(file: Path, missing: str) -> dict[str, Any]:
    """Read a JSON document that an earlier command wrote.

    Parameters
    ----------
    missing : str
        What to do if it is not there, in a sentence.

    Raises
    ------
    Refusal
        ``config_invalid`` if the file is missing or not a JSON object.
    """
    try:
        document = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise Refusal("config_invalid", missing) from error
    except (OSError, ValueError) as error:
        raise Refusal("config_invalid", f"A report of the run cannot be read ({type(error).__name__}).") from error
    if not isinstance(document, dict):
        raise Refusal("config_invalid", "A report of the run is not a JSON object.")
    return document


class RunOf(BaseModel, Generic[Config]):
    """``run.json``: the config with what it was applied to and by what.

    ``data_sha256`` is the digest of the rows and images of the config's domains, ``trained_on`` the images and patients of
    each domain's training split, ``command`` the command that made it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: Config
    data_sha256: str
    trained_on: dict[str, tuple[int, int]]
    command: str
    versions: dict[str, str]


Run = RunOf[RunConfig]
SEGMENTER = "train segmenter"
"""What :func:`verb_of` says of a segmenter's run."""


def verb_of(folder: Path) -> str:
    """Return the command that a run was made by, such as "train classifier", before anything else of it is believed.

    Raises
    ------
    Refusal
        ``config_invalid`` if there is no run in the folder.
    """
    config = read_json(folder / "run.json", "There is no run in this folder: train one first.").get("config")
    return str(config.get("verb", "")) if isinstance(config, dict) else ""


def read_run_of(folder: Path, kind: type[RunOf[Config]]) -> RunOf[Config]:
    """Read ``run.json`` of a run of this kind.

    Raises
    ------
    Refusal
        ``config_invalid`` if there is none or it does not validate.
    """
    document = read_json(folder / "run.json", "There is no run in this folder: train one first.")
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise Refusal("config_invalid", "run.json of the run does not validate.") from error


def read_run(folder: Path) -> Run:
    """Read ``run.json`` of a classifier's run; see :func:`read_run_of`."""
    return read_run_of(folder, Run)


def refuse_other(run: RunOf[Config], folder: Path) -> None:
    """Refuse a folder that holds anything but this run, begun or finished.

    Raises
    ------
    Refusal
        ``output_exists`` if it holds another setting, other data, or files that are no run.
    """
    if not (folder / "run.json").exists():
        # A draft of run.json is what a kill leaves before anything else was written
        if folder.exists() and any(item.name != "run.json.part" for item in folder.iterdir()):
            raise Refusal("output_exists", "The folder is not empty and holds no run.")
        return
    earlier = read_run_of(folder, type(run))
    if earlier.config != run.config:
        theirs, ours = earlier.config.model_dump(), run.config.model_dump()
        changed = ", ".join(name for name in ours if ours[name] != theirs[name])
        raise Refusal("output_exists", f"The folder holds a run with another setting ({changed}).")
    if earlier.data_sha256 != run.data_sha256:
        raise Refusal("output_exists", "The folder holds a run on other data.")
