"""What is installed is what was reviewed (row 24 of docs/reliability.md): constraints, SBOM, list of third-party software."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.conftest import ROOT

TOOLS = {"overread", "pip", "setuptools", "wheel"}
"""The project, and what installs it."""
SERVING = ROOT / ".venv" / "bin" / "python"
SHOW = "import importlib.metadata as m, json; print(json.dumps([[d.metadata['Name'], d.version] for d in m.distributions()]))"
Versions = dict[str, str]


def normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def constraints() -> Versions:
    lines = (ROOT / "constraints.txt").read_text().split()
    return {normal(name): version for name, version in (line.split("==") for line in lines)}


def installed(python: Path | str) -> Versions:
    """Return what an environment holds; versions without their local part, such as +cpu."""
    shown = subprocess.run([str(python), "-c", SHOW], capture_output=True, text=True, check=True, cwd="/").stdout
    found = {normal(name): version.partition("+")[0] for name, version in json.loads(shown)}
    return {name: version for name, version in found.items() if name not in TOOLS}


@pytest.fixture(scope="module")
def serving() -> Path:
    """The interpreter of the environment that serves."""
    if not SERVING.exists():
        if os.environ.get("CI") == "true":
            pytest.fail("there is no .venv; make test makes it")
        pytest.skip("there is no .venv; make test makes it")
    return SERVING


def test_the_development_environment_is_the_constraints() -> None:
    assert installed(sys.executable) == constraints()


def test_the_serving_environment_is_a_part_of_them(serving: Path) -> None:
    found = installed(serving)
    assert found.items() <= constraints().items()
    assert {"bentoml", "onnxruntime", "sqlalchemy", "cryptography"} <= found.keys()
    assert not {"torch", "lightning", "pytest", "lxml"} & found.keys()


def test_a_planted_package_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stray-1.0.dist-info").mkdir()
    (tmp_path / "stray-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: stray\nVersion: 1.0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert installed(sys.executable).items() - constraints().items() == {("stray", "1.0")}


@pytest.fixture(scope="module")
def sbom(serving: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The SBOM as ``make sbom`` writes it: by the same commands, into another file."""
    file = tmp_path_factory.mktemp("sbom") / "sbom.cdx.json"
    recipe = (ROOT / "Makefile").read_text().partition("\nsbom:")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(recipe) == 2
    for line in recipe:
        command = (
            line.strip().replace("build/sbom.cdx.json", str(file)).replace(".venv-dev/bin/", f"{Path(sys.executable).parent}/")
        )
        subprocess.run(command.split(), cwd=ROOT, check=True, capture_output=True)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def components(sbom: dict[str, Any]) -> Versions:
    found = {normal(each["name"]): each["version"].partition("+")[0] for each in sbom["components"]}
    return {name: version for name, version in found.items() if name not in TOOLS}


def test_the_sbom_holds_what_is_installed(sbom: dict[str, Any], serving: Path) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(sbom)) is None
    assert components(sbom) == installed(serving) | {"ol": "10.11.0"}
    assert sbom["metadata"]["component"]["version"] == metadata.version("overread")
    broken = sbom | {"components": [*sbom["components"], {"name": "x"}]}
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(broken)) is not None


def test_the_list_of_third_party_software_is_what_is_installed(serving: Path) -> None:
    shown = subprocess.run([str(serving), "deploy/third_party.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    page = (ROOT / "docs" / "regulatory" / "third-party.md").read_text()
    assert page == shown
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")][2:]
    assert {normal(row[0].strip("| ")): row[1].partition("+")[0] for row in rows} == installed(serving) | {"ol": "10.11.0"}
    # No licence that would bind who runs or ships it to publish their own code
    assert [row for row in rows if re.search(r"\b(A?GPL|SSPL|BUSL)", row[2])] == []
