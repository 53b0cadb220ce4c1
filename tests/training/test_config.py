import json
from pathlib import Path

import pytest

from models.card import InputSpec
from models.errors import Refusal
from training.config import make_config, read_input_spec, read_json, read_run, versions, write_json

SPECS = Path(__file__).parents[2] / "training" / "specs"


def values(spec_file: Path, **more: object) -> dict[str, object]:
    spec = read_input_spec(spec_file)
    plain = {"seed": 0, "domains": ("a", "b"), "leave_out": (), "classes": ("n", "p"), "finding": "p", "input": spec}
    return plain | more


def test_sibling_has_the_same_recipe_on_other_domains(spec_file: Path) -> None:
    config = make_config(**values(spec_file, leave_out=("a",)))
    other = config.without("a")
    assert (other.domains, other.leave_out) == (("b",), ())
    assert other.model_copy(update={"domains": config.domains, "leave_out": config.leave_out}) == config
    assert config.total_steps == config.epochs * config.steps_per_epoch


@pytest.mark.parametrize(
    "change",
    [
        {"domains": ("a", "a")},
        {"domains": ("a",), "leave_out": ("a",)},
        {"leave_out": ("c",)},
        {"finding": "q"},
        {"classes": ("p",)},
        {"domains": ("../a",)},
        {"seed": -1},
        {"epochs": 0},
        {"fractions": (0.5, 0.2, 0.2)},
        {"learning_rate": float("nan")},
        {"unknown": 1},
    ],
)
def test_bad_settings_are_refused(spec_file: Path, change: dict[str, object]) -> None:
    make_config(**values(spec_file))
    with pytest.raises(Refusal) as caught:
        make_config(**values(spec_file, **change))
    assert caught.value.code == "config_invalid"


@pytest.mark.parametrize("content", ["{}", "not json", '{"channels": 1}', None])
def test_a_bad_input_specification_is_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "spec.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(Refusal) as caught:
        read_input_spec(file)
    assert caught.value.code == "config_invalid"


def test_the_shipped_input_specification_reads() -> None:
    spec = read_input_spec(SPECS / "chest_xray.json")
    assert isinstance(spec, InputSpec)
    assert (spec.channels, spec.views) == (1, ("PA", "AP"))


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    write_json(file, {"a": 1.5})
    with pytest.raises(ValueError):
        write_json(file, {"a": float("nan")})
    assert read_json(file, "missing") == {"a": 1.5}


@pytest.mark.parametrize("content", [None, "[1]", "{"])
def test_a_missing_or_broken_report_is_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "report.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(Refusal) as caught:
        read_json(file, "There is none.")
    assert caught.value.code == "config_invalid"


def test_a_run_that_does_not_validate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="no run in this folder"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"config": {}}))
    with pytest.raises(Refusal, match="does not validate"):
        read_run(tmp_path)


def test_versions_name_what_is_installed() -> None:
    assert {"torch", "onnx", "numpy"} <= set(versions())
