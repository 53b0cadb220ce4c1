"""What ``kubectl apply -k`` would send, of the few things that our kustomizations use; any other is an error."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
KNOWN = {"apiVersion", "kind", "namespace", "resources", "images", "patches"}


def objects_of(folder: Path) -> list[Object]:
    """Read a folder with a ``kustomization.yaml``, and what it refers to.

    Raises
    ------
    ValueError
        If a kustomization uses anything else, or a patch meets no object.
    """
    how = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if unknown := set(how) - KNOWN:
        raise ValueError(f"not known: {sorted(unknown)}")
    found: list[Object] = []
    for name in how["resources"]:
        path = folder / name
        found += objects_of(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    for thing in found:
        if "namespace" in how and thing["kind"] != "Namespace":
            thing["metadata"]["namespace"] = how["namespace"]
    for patch in how.get("patches", ()):
        target = patch["target"]
        met = [thing for thing in found if target == {"kind": thing["kind"], "name": thing["metadata"]["name"]}]
        if not met:
            raise ValueError(f"there is no {target}")
        for thing in met:
            for operation in yaml.safe_load(patch["patch"]):
                _add(thing, **operation)
    for image in how.get("images", ()):
        for container in (one for thing in found for one in pod_of(thing).get("containers", ())):
            if container["image"] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
    return found


def pod_of(thing: Object) -> Object:
    """Return the specification of the pods that an object makes; empty where it makes none."""
    found: Object = thing.get("spec", {}).get("template", {}).get("spec", {}) if thing["kind"] != "Pod" else thing["spec"]
    return found


def _add(thing: Object, op: str, path: str, value: Any) -> None:
    """Carry out one step of RFC 6902; of its operations ``add`` to a mapping only."""
    if op != "add":
        raise ValueError(f"not known: {op}")
    *way, last = (part.replace("~1", "/").replace("~0", "~") for part in path.removeprefix("/").split("/"))
    place: Any = thing
    for part in way:
        place = place[int(part)] if isinstance(place, list) else place[part]
    place[last] = copy.deepcopy(value)
