"""Error codes, their statuses and problem documents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

import service
from models.errors import CODES, Refusal
from service.openapi import document
from service.schemas import RETRY_AFTER, STATUS, FindingAnswer, problem

ROOM = Path(service.__file__).parent
COMMANDS_ONLY = {
    "backup_invalid",
    "package_untrusted",
    "archive_unavailable",
    "archive_refused",
    "not_asked_for",
    "package_invalid",
    "config_invalid",
    "data_invalid",
    "output_exists",
    "burned_in_annotation",
    "candidate_not_compared",
    "candidate_worse",
    "cluster_unavailable",
    "folder_unavailable",
    "one_class",
    "too_few_labels",
}
REQUEST_PATH = ("access", "analysis", "api", "engine", "negotiation", "segmentation", "store", "wall", "wanted")


SEGMENTING = [ROOM.parent / "models" / f"{name}.py" for name in ("segmenter", "geojson", "pictures")]


def raised(file: Path) -> set[str]:
    return set(re.findall(r"Refusal\(\s*\"(\w+)\"", file.read_text()))


def test_a_code_has_a_status_if_and_only_if_a_request_can_meet_it() -> None:
    assert set(CODES) - set(STATUS) == COMMANDS_ONLY
    assert set(STATUS) <= set(CODES)
    here = set().union(*(raised(ROOM / f"{name}.py") for name in REQUEST_PATH))
    models = ROOM.parent / "models"
    reading = set().union(
        *(raised(file) for file in [*models.glob("*dicom*.py"), models / "imaging.py", models / "preprocess.py", *SEGMENTING])
    )
    assert here
    assert reading
    at_the_start = {"config_invalid", "package_invalid"}
    assert (here | reading) - at_the_start <= set(STATUS)


def test_each_code_with_a_status_is_listed_for_an_operation() -> None:
    listed: set[str] = set()
    for operations in document()["paths"].values():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if "application/problem+json" in answer.get("content", {}):
                    codes = answer["description"].removeprefix("One of the codes ").removesuffix(".").split(", ")
                    assert {STATUS[code] for code in codes} == {int(status)}
                    listed |= set(codes)
    assert listed == set(STATUS)


@pytest.mark.parametrize("code", sorted(STATUS))
def test_problem_documents(code: str) -> None:
    found = problem(Refusal(code, "Why."))
    assert (found.code, found.status, found.title, found.detail) == (code, STATUS[code], CODES[code], "Why.")
    assert found.type == f"urn:overread:error:{code}"
    assert problem(Refusal(code)).detail


def test_a_code_of_a_command_is_a_fault_here_and_its_detail_stays_inside() -> None:
    found = problem(Refusal("package_invalid", "something that belongs to the operator's terminal"))
    assert (found.code, found.status) == ("internal_error", 500)
    assert "terminal" not in found.model_dump_json()


def test_only_faults_of_ours_are_500() -> None:
    assert {code for code, status in STATUS.items() if status == 500} == {"internal_error", "model_output_invalid"}


def test_who_may_come_back_is_told_when() -> None:
    assert {status for status in STATUS.values() if status in {429, 503, 507}} == set(RETRY_AFTER)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5, -0.1])
def test_numbers_that_are_none_never_leave(value: float) -> None:
    with pytest.raises(ValidationError):
        FindingAnswer(label="x", probability=value, operating_point=0.5, positive=False)
