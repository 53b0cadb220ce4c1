"""Lists the third-party software of the environment that runs this: ``make third-party`` and ``make sbom``.

Needs nothing but Python's standard library. The page's library is no Python package; it is read from its own list.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENDORED = ROOT / "service" / "web" / "vendor" / "THIRD-PARTY.md"
OURS = {"overread", "pip", "setuptools"}
"""What is no part of what runs: the project, and the tools that install it."""
HEAD = """# Third-party software

What the serving environment holds, written by `make third-party` from what is installed; a test compares it with that.
Licences are as the packages state them. The standard library and the interpreter, the operating system's libraries, and a
proxy come from where you install them. `make sbom` writes the same as CycloneDX.

| software | version | licence | where |
| --- | --- | --- | --- |
"""


@dataclass(frozen=True, order=True)
class Component:
    """A piece of software of others."""

    name: str
    version: str
    licence: str
    where: str


def _licence(about: metadata.PackageMetadata) -> str:
    if expression := about.get("License-Expression"):
        return str(expression)
    classified = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier", []) if line.startswith("License :: ")]
    stated = str(about.get("License") or "").split("\n")[0].strip()
    return " and ".join(sorted(classified)) or stated or "not stated"


def installed() -> list[Component]:
    """Return the Python packages of this environment."""
    found = []
    for each in metadata.distributions():
        name = str(each.metadata["Name"])
        if name.lower() not in OURS:
            found.append(Component(name, each.version, _licence(each.metadata), "Python package"))
    return sorted(found, key=lambda each: each.name.lower())


def vendored() -> list[Component]:
    """Return what the page brings, once for each package."""
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in VENDORED.read_text().splitlines()]
    found = {Component(row[1].split(" ")[0], row[2], row[3], "page") for row in rows if len(row) == 5 and re.match(r"\d", row[2])}
    return sorted(found)


def document() -> str:
    """Return the page of the documents."""
    rows = [f"| {each.name} | {each.version} | {each.licence} | {each.where} |" for each in [*installed(), *vendored()]]
    return HEAD + "\n".join(rows) + "\n"


def complete(file: Path) -> None:
    """Add what the page brings, and our own version, to an SBOM that was made of the environment (CycloneDX, JSON)."""
    sbom = json.loads(file.read_text())
    known = {each.get("bom-ref") for each in sbom["components"]}
    for each in vendored():
        reference = f"pkg:npm/{each.name}@{each.version}"
        if reference not in known:
            licence = [{"license": {"id": each.licence}}]
            entry = {"type": "library", "bom-ref": reference, "name": each.name, "version": each.version, "purl": reference}
            sbom["components"].append(entry | {"licenses": licence})
    sbom["metadata"]["component"]["version"] = metadata.version("overread")
    file.write_text(json.dumps(sbom, indent=2, sort_keys=True) + "\n")


def main() -> None:
    """Print the page, or complete an SBOM."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: make third-party")
    parser.add_argument("--sbom", type=Path, metavar="FILE", help="complete this SBOM instead")
    options = parser.parse_args()
    if options.sbom is None:
        print(document(), end="")
    else:
        complete(options.sbom)


if __name__ == "__main__":
    main()
