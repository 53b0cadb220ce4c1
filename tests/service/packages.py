"""Tiny packages that differ in little, comparisons beside them, and what a site's metrics say."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import onnx
from prometheus_client.parser import text_string_to_metric_families

from models.card import Finding, card_bytes, read_package
from models.comparison import REPORT, Comparison, Difference, why_worse
from service.analysis import Site
from tests.conftest import tiny_card, tiny_graph


def write(folder: Path, version: str, name: str = "tiny", **change: Any) -> Path:
    """Write a package whose identity differs by its version."""
    folder.mkdir(parents=True)
    graph = tiny_graph()
    card = tiny_card(graph, name).model_copy(update={"version": version} | change)
    (folder / "model.onnx").write_bytes(graph)
    (folder / "card.json").write_bytes(card_bytes(card))
    return folder


def vivid(folder: Path, name: str = "tiny") -> Path:
    """Write a package whose heatmap is what is bright in the image, for the finding, and what is dark, against it."""
    write(folder, "1.0.0", name)
    model = onnx.load(folder / "model.onnx")
    (drawn,) = [node for node in model.graph.node if "heatmap" in node.output]
    model.graph.node.remove(drawn)
    model.graph.node.append(onnx.helper.make_node("Neg", ["pooled"], ["dark"]))
    model.graph.node.append(onnx.helper.make_node("Concat", ["dark", "pooled"], ["heatmap"], axis=1))
    graph = model.SerializeToString()
    (folder / "model.onnx").write_bytes(graph)
    (folder / "card.json").write_bytes(card_bytes(tiny_card(graph, name)))
    return folder


def identity(package: Path) -> str:
    return read_package(package)[2]


def difference(site: str, change: float, half: float, patients: int = 40, metric: str = "true_loss") -> dict[str, Any]:
    return {
        "site": site, "metric": metric, "larger_is_better": metric == "auroc", "images": patients, "patients": patients,
        "current": 0.5, "candidate": 0.5 + change, "difference": change, "low": change - half, "high": change + half,
    }  # fmt: skip


def compare(candidate: Path, current: Path, *differences: dict[str, Any]) -> None:
    """Write a comparison beside the candidate's card."""
    sides = {
        side: {"name": "tiny", "version": read_package(folder)[0].version, "sha256": identity(folder)}
        for side, folder in (("current", current), ("candidate", candidate))
    }
    document: dict[str, Any] = {
        "schema_version": 1, "created": "2026-01-01T00:00:00Z", **sides, "data_sha256": "0" * 64, "left_out": 0,
        "loss": "true_loss", "decisive": ["true_loss", "auroc"], "margin": 0.05,
        "differences": differences or (difference("all", -0.1, 0.05),), "worse": (), "accepted": None,
    }  # fmt: skip
    parsed = tuple(Difference.model_validate(each) for each in document["differences"])
    document["worse"] = why_worse(parsed, document["loss"], document["decisive"], document["margin"])
    (candidate / REPORT).write_text(Comparison.model_validate(document).model_dump_json())


def output(operating_point: float) -> dict[str, Any]:
    """What changes a card's findings."""
    finding = Finding(label="pneumonia", operating_point=operating_point, rule="given")
    return {"output": tiny_card(tiny_graph()).output.model_copy(update={"findings": (finding,)})}


def count(site: Site, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(site.telemetry.exposition()[0].decode())
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def settled(site: Site, number: int) -> None:
    """Wait until the candidate has seen so many images."""
    end = time.monotonic() + 60
    names = ("overread_candidate_findings_total", "overread_candidate_missed_total")
    while sum(count(site, name) for name in names) < number:
        assert time.monotonic() < end
        time.sleep(0.02)
