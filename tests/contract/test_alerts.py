"""The alert rules: each has a test that raises it, one that must not, and a place in the documentation."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.telemetry import METRICS
from tests.conftest import require

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "prometheus"


def promtool(*arguments: str | Path) -> bool:
    require("promtool")
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, check=False).returncode == 0


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((FOLDER / "overread.rules.yml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def test_rules_and_configuration_are_valid() -> None:
    assert promtool("check", "config", FOLDER / "prometheus.yml")


def test_each_alert_is_raised_and_not_raised() -> None:
    assert promtool("test", "rules", FOLDER / "overread.test.yml")
    told = {(case["alertname"], bool(case["exp_alerts"])) for case in _cases()}
    assert told == {(rule["alert"], raised) for rule in rules() for raised in (True, False)}


def _cases() -> list[dict[str, Any]]:
    tests = yaml.safe_load((FOLDER / "overread.test.yml").read_text())["tests"]
    return [case for test in tests for case in test["alert_rule_test"]]


@pytest.mark.parametrize("alert", [rule["alert"] for rule in rules()])
def test_a_rule_that_is_wrong_is_seen(alert: str, tmp_path: Path) -> None:
    """The control: a rule that never fires, and one that always does, each fail the tests."""
    document = yaml.safe_load((FOLDER / "overread.rules.yml").read_text())
    (rule,) = [rule for rule in document["groups"][0]["rules"] if rule["alert"] == alert]
    document["groups"][0]["rules"] = [rule]  # the rule and its tests alone: promtool takes a tenth of a second for each
    cases = yaml.safe_load((FOLDER / "overread.test.yml").read_text())
    cases["tests"] = [case for case in cases["tests"] if case["alert_rule_test"][0]["alertname"] == alert]
    (tmp_path / "overread.test.yml").write_text(yaml.safe_dump(cases))
    for wrong in (rule["expr"], "vector(1) == 2", "vector(1)"):
        right, rule["expr"] = wrong == rule["expr"], wrong
        (tmp_path / "overread.rules.yml").write_text(yaml.safe_dump(document))
        assert promtool("test", "rules", tmp_path / "overread.test.yml") is right


def test_rules_name_metrics_that_there_are() -> None:
    found = {name for rule in rules() for name in re.findall(r"overread_[a-z_]+", rule["expr"])}
    names = {re.sub("(percentile|seconds)_(bucket|count|sum)$", r"\1", name) for name in found}  # the series of a histogram
    assert names
    assert names <= set(METRICS)


def test_the_page_says_what_to_do_at_each_alert() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    assert sorted(re.findall(r"^### `(\w+)`$", page, re.MULTILINE)) == sorted(rule["alert"] for rule in rules())
