"""Shared fixtures: the public images, a tiny model package, and a real server."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import PIL.Image
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.card import (
    Calibration,
    Figure,
    Finding,
    InputSpec,
    IntendedUse,
    ModelCard,
    OutputSpec,
    Source,
    Training,
    Triage,
    card_bytes,
)
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[1]
SIDE = 64


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the public images; tests that need it are skipped without it, but never in CI."""
    folder = Path(os.environ.get("OVERREAD_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "cxr" / "manifest.csv").exists():
        if os.environ.get("CI") == "true":
            pytest.fail("the public images are missing; set OVERREAD_DATA")
        pytest.skip("the public images are missing; set OVERREAD_DATA")
    return folder


def require(tool: str) -> None:
    """Skip the test where a system package is missing, naming it; in CI that is a failure."""
    if shutil.which(tool) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"the system package {tool} is missing; .ci/run installs it")
        pytest.skip(f"the system package {tool} is missing")


def tiny_graph(*, poison: float | None = None) -> bytes:
    """Build a graph whose outputs follow from the mean and the contrast of the image; ``poison`` replaces the loss score."""

    def constant(name: str, value: Any) -> onnx.TensorProto:
        return numpy_helper.from_array(np.asarray(value), name)

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, inputs, [output], **attributes)

    constants = [
        constant("axes", np.array([1, 2, 3], dtype=np.int64)),
        constant("weight", np.array([[1.0, -1.0], [0.5, 0.5]], dtype=np.float32)),
        constant("last", np.array([1], dtype=np.int64)),
        constant("pair", np.array([1, 2, 1, 1], dtype=np.int64)),
        constant("poison", np.array(poison if poison is not None else 1.0, dtype=np.float32)),
    ]
    nodes = [
        node("ReduceMean", ["image", "axes"], "mean4", keepdims=1),
        node("Sub", ["image", "mean4"], "centred"),
        node("Mul", ["centred", "centred"], "squared"),
        node("ReduceMean", ["squared", "axes"], "variance", keepdims=0),
        node("ReduceMean", ["image", "axes"], "mean", keepdims=0),
        node("Unsqueeze", ["mean", "last"], "mean2"),
        node("Unsqueeze", ["variance", "last"], "variance2"),
        node("Concat", ["mean2", "variance2"], "features", axis=1),
        node("MatMul", ["features", "weight"], "logits"),
        node("Mul", ["variance", "poison"], "loss_score"),
        node("Abs", ["mean"], "domain_distance"),
        node("AveragePool", ["image"], "pooled", kernel_shape=[8, 8], strides=[8, 8]),
        node("Tile", ["pooled", "pair"], "heatmap"),
    ]
    float_ = TensorProto.FLOAT
    outputs = {"logits": ["N", 2], "features": ["N", 2], "loss_score": ["N"], "domain_distance": ["N"], "heatmap": ["N", 2, 8, 8]}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", float_, ["N", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info(name, float_, shape) for name, shape in outputs.items()],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def tiny_card(graph: bytes, name: str = "tiny") -> ModelCard:
    """Build a complete card for a tiny graph; its limits accept grey images of mid contrast."""
    ramp = tuple(float(value) for value in np.linspace(0.0, 1.0, 101))
    figure = {"domain": "drawn", "held_out": "patients", "subgroup": "all", "metric": "auroc", "n": 10, "note": ""}
    return ModelCard(
        schema_version=1,
        name=name,
        version="1.0.0",
        created="2026-01-01",
        task="classification",
        model_sha256=hashlib.sha256(graph).hexdigest(),
        card_sha256="0" * 64,
        input=InputSpec(
            channels=1,
            height=SIDE,
            width=SIDE,
            intensity="percentile",
            low=0.5,
            high=99.5,
            mean=0.5,
            std=0.25,
            modalities=("CR", "DX"),
            body_parts=("CHEST",),
            views=("PA", "AP"),
            age_years=(1, 120),
            min_side=32,
        ),
        output=OutputSpec(
            classes=("normal", "pneumonia"), findings=(Finding(label="pneumonia", operating_point=0.5, rule="given"),)
        ),
        calibration=Calibration(
            temperature=1.0,
            loss_knots=((0.0, 0.1), (2.0, 1.5)),
            unseen_loss_knots=((0.0, 0.9), (0.5, 1.4)),
            loss_quantiles=tuple(4 * value for value in ramp),
            domain_quantiles=ramp,
            n=100,
            method="given",
        ),
        triage=Triage(review_loss_percentile=90, review_domain_percentile=95, refuse_domain_distance=1.5),
        intended_use=IntendedUse(statement="Tests.", population="Drawn images.", not_seen="Everything.", not_for="diagnosis"),
        training=Training(
            command="none",
            seed=0,
            data_sha256="0" * 64,
            sources=(Source(domain="drawn", images=1, patients=1, licence="CC0", credit="none", link="none"),),
            config={},
            versions={},
        ),
        evaluation=(Figure.model_validate(figure | {"value": 0.5, "low": 0.4, "high": 0.6}),),
    )


@pytest.fixture(scope="session")
def make_package(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that writes a tiny model package and returns its folder."""

    def make(name: str = "tiny", **options: Any) -> Path:
        graph = tiny_graph(**options)
        folder = tmp_path_factory.mktemp("package") / name
        folder.mkdir()
        (folder / "model.onnx").write_bytes(graph)
        (folder / "card.json").write_bytes(card_bytes(tiny_card(graph, name)))
        return folder

    return make


@pytest.fixture(scope="session")
def make_segmenter(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that writes a segmenter's tiny package: ``make_segmenter(name, poison, **fields of ObjectSpec)``."""
    from tests.segmenters import segmenter_card, segmenter_graph

    def make(name: str = "tiny-segmenter", poison: dict[str, float] | None = None, **output: Any) -> Path:
        graph = segmenter_graph(poison=poison)
        folder = tmp_path_factory.mktemp("package") / name
        folder.mkdir()
        (folder / "model.onnx").write_bytes(graph)
        (folder / "card.json").write_bytes(card_bytes(segmenter_card(graph, name, **output)))
        return folder

    return make


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Any]:
    """A PostgreSQL server; tests that need it are skipped without Debian's postgresql, but never in CI."""
    from tests.postgresql import running

    with running() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def package(make_package: Callable[..., Path]) -> Path:
    """Folder of a tiny model package."""
    return make_package()


def png(seed: int = 0, side: int = 96) -> bytes:
    """Draw a grey image with structure and noise, unlike any other seed's, as PNG."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    picture = 127 + 60 * np.sin(6 * x + seed) * np.cos(5 * y) + rng.normal(0, 20, (side, side))
    stream = BytesIO()
    PIL.Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def draw() -> Callable[..., bytes]:
    """Return the function that draws a test image: ``draw(seed, side)`` -> PNG bytes."""
    return png


@dataclass
class Server:
    """A running ``overread serve``."""

    process: subprocess.Popen[bytes]
    url: str
    state: Path
    log: Path

    def workers(self) -> list[int]:
        """Return the process ids of the workers, the children of the parent."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:  # the process has ended meanwhile
                    continue
                if int(fields[1]) == self.process.pid and fields[0] != "Z":
                    found.append(int(entry.name))
        return found

    def wait_ready(self, seconds: float = 240) -> None:
        """Wait until the server takes images."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended: {self.log.read_text()[-2000:]}")
            try:
                if httpx.get(f"{self.url}/readyz", timeout=2).status_code in {200, 401}:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"the server is not ready: {self.log.read_text()[-2000:]}")

    def stop(self) -> int:
        """Stop in an orderly way, or else by force; return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(60)
        return self.process.returncode


@contextmanager
def starting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Give a function that starts a real server; all that it started end with the context."""
    started: list[Server] = []

    def start(
        *packages: Path, workers: int = 1, state: Path | None = None, wait: bool = True, port: int = 0, **environment: str
    ) -> Server:  # fmt: skip
        state = state or tmp_path_factory.mktemp("state")
        log, port = tmp_path_factory.mktemp("log") / "server.log", port or free_port()
        known = {name: value for name, value in os.environ.items() if not name.startswith("OVERREAD_")}
        known |= {"OVERREAD_STATE": str(state), "OVERREAD_MODELS": ":".join(map(str, packages))} | environment
        command = [sys.executable, "-m", "models.cli", "serve", "--port", str(port), "--workers", str(workers)]
        with log.open("wb") as out:
            process = subprocess.Popen(command, cwd=ROOT, env=known, stdout=out, stderr=out, start_new_session=True)
        server = Server(process, f"http://127.0.0.1:{port}", state, log)
        started.append(server)
        if wait:
            server.wait_ready()
        return server

    try:
        yield start
    finally:
        for server in started:
            server.stop()


@pytest.fixture(scope="module")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Return what starts a real server; it ends with the module, since idle ones take processor time, and there are dozens."""
    with starting(tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, package: Path) -> Iterator[Server]:
    """A server of the tiny model that tests share; none may stop it."""
    with starting(tmp_path_factory) as start:
        yield start(package)
