"""Which part may import which: the project holds to it, and a planted violation is seen."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

import models
import service
import training

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("models", "training", "service")

DOORS = {
    "bentoml": {"service/app.py"},
    "prometheus_client": {"service/telemetry.py"},
    "sqlalchemy": {
        "service/audit.py",
        "service/backup.py",
        "service/database.py",
        "service/dialects.py",
        "service/erasure.py",
        "service/health.py",
        "service/intake.py",
        "service/items.py",
        "service/label_export.py",
        "service/migrate_database.py",
        "service/label_studio_tasks.py",
        "service/labels.py",
        "service/leases.py",
        "service/random_share.py",
        "service/sites.py",
        "service/worklist.py",
        "service/store.py",
        "service/arrivals.py",
        "service/comparisons.py",
        "service/promotions.py",
        "service/sessions.py",
        "service/tables.py",
    },
    "sqlite3": {"service/database.py"},
    "alembic": {"service/database.py", "service/migrations/env.py"},
    "onnxruntime": {"models/predictor.py"},
    "requests": set(),
    "cryptography": {"models/signature.py"},
    "pynetdicom": {"service/dimse.py"},
    "httpx": {"service/dicomweb.py"},
    "ray": {"service/score_ray.py"},
    "pyarrow": {"service/score_rows.py"},
    "urllib.request": set(),
    "http.client": set(),
    "pickle": set(),
}
"""A library, and the only files in ``models`` and ``service`` that may import it (the migrations' steps aside)."""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the code, for violations to be planted in."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__", "zoo"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(folder: Path) -> bool:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0


def test_the_contracts_hold(tree: Path) -> None:
    assert lint_imports(tree)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("service/store.py", "import training.data"),
        ("training/losses.py", "import service.store"),
        ("models/errors.py", "import service.schemas"),
        ("models/uncertainty.py", "import models.predictor"),
        ("models/predictor.py", "import models.networks.classifier"),
        ("service/analysis.py", "import torch"),
        ("models/unlisted.py", "import models.errors"),
    ],
)
def test_a_planted_violation_breaks_them(tree: Path, file: str, line: str) -> None:
    with (tree / file).open("a") as out:
        out.write(f"\n{line}\n")
    assert not lint_imports(tree)


def imported(tree: Path) -> Iterator[tuple[str, str]]:
    """Yield (file, module) for every import statement in models and service."""
    for path in sorted([*(tree / "models").rglob("*.py"), *(tree / "service").rglob("*.py")]):
        if "versions" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield path.relative_to(tree).as_posix(), alias.name
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield path.relative_to(tree).as_posix(), node.module
                for alias in node.names:
                    yield path.relative_to(tree).as_posix(), f"{node.module}.{alias.name}"


def through_other_doors(tree: Path) -> set[tuple[str, str]]:
    found = set()
    for file, module in imported(tree):
        for library, doors in DOORS.items():
            if (module == library or module.startswith(library + ".")) and file not in doors:
                found.add((file, library))
    return found


def test_each_library_has_one_door() -> None:
    assert through_other_doors(ROOT) == set()


@pytest.mark.parametrize("library", DOORS)
def test_another_door_is_seen(tree: Path, library: str) -> None:
    with (tree / "service" / "access.py").open("a") as out:
        out.write(f"\nimport {library}\n")
    assert through_other_doors(tree) == {("service/access.py", library)}


def environment_readers(tree: Path) -> set[str]:
    found = set()
    for path in (tree / "service").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "environb"}:
                found.add(path.relative_to(tree).as_posix())
    return found


def test_only_the_settings_read_the_environment(tree: Path) -> None:
    # PROMETHEUS_MULTIPROC_DIR is set by BentoML for prometheus_client, which telemetry wraps.
    # Ray is told by variables alone not to report its use, and where to listen: service/score.py sets them.
    assert environment_readers(ROOT) == {"service/settings.py", "service/telemetry.py", "service/score.py"}
    with (tree / "service" / "store.py").open("a") as out:
        out.write("\nimport os\nos.environ.get('HOME')\n")
    assert "service/store.py" in environment_readers(tree)


@pytest.mark.parametrize("room", [models, training, service])
def test_the_rooms_are_this_checkout(room: object) -> None:
    assert Path(str(room.__file__)).resolve().parents[1] == ROOT  # type: ignore[attr-defined]


def test_no_other_distribution_owns_the_names() -> None:
    owners = metadata.packages_distributions()
    assert {name: set(owners.get(name, [])) - {"overread"} for name in ROOMS} == {name: set() for name in ROOMS}


def undeclared(tree: Path) -> set[str]:
    """Return the distributions that models and service import and pyproject.toml does not ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [
        *project["dependencies"],
        *(one for extra in ("cpu", "dimse", "score") for one in project["optional-dependencies"][extra]),
    ]
    declared = {re.split(r"[^\w-]", requirement)[0].lower() for requirement in asked}
    owners = metadata.packages_distributions()
    tops = {module.split(".")[0] for file, module in imported(tree) if "networks" not in file} - set(ROOMS)
    return {
        owner.lower().replace("_", "-") for top in tops - set(sys.stdlib_module_names) for owner in owners.get(top, [top])[:1]
    } - declared


def test_every_library_that_serving_imports_is_asked_for() -> None:
    assert undeclared(ROOT) == set()


def test_one_that_is_not_is_seen(tree: Path) -> None:
    with (tree / "service" / "access.py").open("a") as out:
        out.write("\nimport pandas\n")
    assert undeclared(tree) == {"pandas"}


def test_the_bento_asks_for_the_same() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["postgresql"]]
    declared = {re.split(r"[^\w-]", requirement)[0].lower() for requirement in asked} | {"onnxruntime"}
    listed = re.findall(r"^    - ([\w-]+)==", (ROOT / "bentofile.cpu.yaml").read_text(), re.MULTILINE)
    assert {name.lower() for name in listed} == declared


def test_nothing_happens_at_import() -> None:
    code = (  # gdcm, which DICOM decoding needs, sets a variable when imported: it is imported first
        "import gdcm, os, sys, threading; before = dict(os.environ); import service.api, service.analysis;"
        "print(threading.active_count(), before == dict(os.environ), 'prometheus_client' in sys.modules, 'torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["1", "True", "False", "False"]
