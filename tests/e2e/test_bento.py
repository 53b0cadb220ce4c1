"""``bentoml build`` works without a network, packs only what serving needs, and what it packs answers the same."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml

from tests.conftest import ROOT, Server
from tests.ports import free_port

BENTOML = str(Path(sys.executable).parent / "bentoml")
EXPECTED = re.compile(
    r"(bento\.yaml|README\.md|apis/(openapi\.yaml|schema\.json)|env/(docker|python)/[\w.-]+"
    r"|src/(bentofile\.yaml|models/[a-z_]+\.py|models/zoo/[a-z0-9-]+/(model\.onnx|card\.json)"
    r"|service/[a-z_]+\.py|service/migrations/(env\.py|script\.py\.mako|versions/\w+\.py)"
    r"|service/web/([\w.-]+\.(html|css|js|svg)|vendor/[\w.-]+\.(js|css|md|txt))))"
)


def environment(home: Path) -> dict[str, str]:
    home.mkdir(exist_ok=True)
    return os.environ | {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}


def build(tree: Path, home: Path) -> Path:
    """Build in ``tree``, where possible in a network namespace without any interface, and return the Bento's folder."""
    alone = ["unshare", "-n"] if shutil.which("unshare") and os.geteuid() == 0 else []
    command = [*alone, BENTOML, "build", "-f", "bentofile.cpu.yaml", "--output", "tag"]
    done = subprocess.run(command, cwd=tree, env=environment(home), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    tag = done.stdout.strip().rsplit("__tag__:", 1)[1]
    return home / "bentos" / tag.replace(":", "/")


def unexpected(bento: Path) -> set[str]:
    files = {path.relative_to(bento).as_posix() for path in bento.rglob("*") if path.is_file()}
    return {name for name in files if not EXPECTED.fullmatch(name)}


@pytest.fixture(scope="module")
def bento(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("bento") / "home")


def test_it_holds_only_what_it_needs(bento: Path) -> None:
    assert unexpected(bento) == set()
    assert (bento / "src/service/app.py").exists()
    assert (bento / "src/models/zoo/cxr-pneumonia/model.onnx").exists()


def test_its_image_does_not_run_as_root(bento: Path) -> None:
    lines = (bento / "env" / "docker" / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert users[-1] not in {"root", "0"}


def test_a_stray_file_is_seen(tmp_path: Path) -> None:
    for room in ("models", "service"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("bentofile.cpu.yaml", "README.md"):
        shutil.copy(ROOT / file, tmp_path)
    (tmp_path / "service" / "patients.csv").write_text("planted")
    assert unexpected(build(tmp_path, tmp_path / "home")) == {"src/service/patients.csv"}


def test_its_packages_are_the_pinned_ones() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().lower().replace("_", "-").split())
    for file, runtime in (("bentofile.yaml", "onnxruntime-gpu[cuda,cudnn]"), ("bentofile.cpu.yaml", "onnxruntime")):
        packages = dict(line.split("==") for line in yaml.safe_load((ROOT / file).read_text())["python"]["packages"])
        assert runtime in packages
        packages.pop("onnxruntime-gpu[cuda,cudnn]", None)
        assert packages == {name: pinned[name] for name in packages}


def test_it_answers_the_same(bento: Path, server: Server, package: Path, tmp_path: Path, draw: Callable[..., bytes]) -> None:
    port = free_port()
    command = [BENTOML, "serve", str(bento), "--host", "127.0.0.1", "--port", str(port)]
    settings = {"OVERREAD_STATE": str(tmp_path / "state"), "OVERREAD_MODELS": str(package), "PYTHONPATH": ""}
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment(tmp_path / "home") | settings, stdout=out, stderr=out, start_new_session=True
        )
    other = Server(process, f"http://127.0.0.1:{port}", tmp_path / "state", log)
    try:
        other.wait_ready()
        body, headers = draw(77), {"content-type": "image/png"}
        answers = [
            httpx.post(f"{each.url}/v1/predict", content=body, headers=headers, timeout=60).json() for each in (server, other)
        ]
        assert answers[0] == answers[1]
        assert answers[0]["verdict"] in {"accept", "review", "refuse"}
    finally:
        other.stop()
