import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from models.card import read_package
from models.errors import Refusal
from tests.conftest import tiny_card, tiny_graph
from training import release

Rewrite = Callable[[Path, Callable[[dict], None]], None]


@pytest.fixture
def copy(finished: tuple[Path, Path], tmp_path: Path) -> Path:
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def words(run: Path, about: Path, out: Path, version: str = "1.0.0") -> list[str]:
    return [str(run), "--name", "drawn", "--version", version, "--about", str(about), "--out", str(out)]


def test_package_is_written_once_from_the_reports(
    copy: Path, about: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "zoo"
    assert release.main(words(copy, about, out)) == 0
    package = out / "drawn"
    assert sorted(file.name for file in package.iterdir()) == ["card.json", "model.onnx", "seen.json"]
    card, graph, _ = read_package(package)
    assert graph == (copy / "model.onnx").read_bytes()
    reports = [json.loads((copy / name).read_text()) for name in ("calibration.json", "evaluation.json")]
    assert card.calibration.model_dump(mode="json") == reports[0]["calibration"]
    assert [figure.model_dump(mode="json") for figure in card.evaluation] == reports[1]["figures"]
    assert {source.domain: source.licence for source in card.training.sources} == {"east": "CC0", "west": "CC0"}
    assert card.intended_use.not_for == "diagnosis"
    before = (package / "card.json").read_bytes()
    assert release.main(words(copy, about, out)) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (package / "card.json").read_bytes() == before


def test_another_release_needs_a_higher_version(copy: Path, about: Path, tmp_path: Path) -> None:
    out = tmp_path / "zoo"
    release.main(words(copy, about, out, "1.9.0"))
    text = json.loads(about.read_text())
    text["intended_use"]["population"] = "other"
    about.write_text(json.dumps(text))
    for version in ("1.9.0", "1.8.9", "0.10.0"):
        with pytest.raises(Refusal) as caught:
            release.main(words(copy, about, out, version))
        assert caught.value.code == "output_exists"
    assert read_package(out / "drawn")[0].intended_use.population == "drawn"
    assert release.main(words(copy, about, out, "1.10.0")) == 0
    card = read_package(out / "drawn")[0]
    assert (card.version, card.intended_use.population) == ("1.10.0", "other")


@pytest.mark.parametrize("report", ["model.onnx", "calibration.json", "evaluation.json", "run.json"])
def test_a_missing_report_is_refused(copy: Path, about: Path, tmp_path: Path, report: str) -> None:
    (copy / report).unlink()
    with pytest.raises(Refusal) as caught:
        release.main(words(copy, about, tmp_path / "zoo"))
    assert caught.value.code == "config_invalid"
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize(
    ("report", "change"),
    [
        ("calibration.json", lambda d: d["calibration"].pop("temperature")),
        ("calibration.json", lambda d: d.pop("triage")),
        ("calibration.json", lambda d: d["calibration"].update(n=1)),  # then the evaluation is of another calibration
        ("evaluation.json", lambda d: d["figures"].clear()),
        ("evaluation.json", lambda d: d["figures"][0].pop("low")),
        ("evaluation.json", lambda d: d.update(model_sha256="0" * 64)),
        ("evaluation.json", lambda d: d.update(figures=[f for f in d["figures"] if f["held_out"] == "patients"])),
        ("evaluation.json", lambda d: d.update(figures=[f for f in d["figures"] if f["domain"] == "east"])),
    ],
)
def test_a_gap_in_a_report_is_refused(
    copy: Path, about: Path, tmp_path: Path, report: str, change: Callable[[dict], None]
) -> None:
    document = json.loads((copy / report).read_text())
    change(document)
    (copy / report).write_text(json.dumps(document))
    with pytest.raises(Refusal) as caught:
        release.main(words(copy, about, tmp_path / "zoo"))
    assert caught.value.code == "config_invalid"
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["sources"].pop("west"),
        lambda d: d["sources"]["west"].pop("licence"),
        lambda d: d["sources"]["west"].update(credit=" "),
        lambda d: d["intended_use"].pop("not_for"),
        lambda d: d.pop("intended_use"),
    ],
)
def test_a_gap_in_what_people_know_is_refused(copy: Path, about: Path, tmp_path: Path, change: Callable[[dict], None]) -> None:
    document = json.loads(about.read_text())
    change(document)
    about.write_text(json.dumps(document))
    with pytest.raises(Refusal) as caught:
        release.main(words(copy, about, tmp_path / "zoo"))
    assert caught.value.code == "config_invalid"


@pytest.mark.parametrize(("name", "version"), [("Drawn Model", "1.0.0"), ("drawn", "1.0"), ("../drawn", "1.0.0")])
def test_a_bad_name_or_version_is_refused(copy: Path, about: Path, tmp_path: Path, name: str, version: str) -> None:
    with pytest.raises(Refusal) as caught:
        release.make_card(copy, name, version, release.read_about(about))
    assert caught.value.code == "config_invalid"


def test_what_is_no_package_is_not_overwritten(copy: Path, about: Path, tmp_path: Path) -> None:
    (tmp_path / "zoo" / "drawn").mkdir(parents=True)
    (tmp_path / "zoo" / "drawn" / "notes.txt").write_text("mine")
    with pytest.raises(Refusal) as caught:
        release.main(words(copy, about, tmp_path / "zoo"))
    assert caught.value.code == "package_invalid"
    assert (tmp_path / "zoo" / "drawn" / "notes.txt").exists()


class Killed(BaseException):
    """What no code catches."""


@pytest.mark.parametrize(("step", "left"), [("to old", "1.0.0"), ("to place", "1.0.0"), ("removal", "1.1.0")])
def test_a_release_that_is_killed_leaves_a_package_and_the_next_one_puts_it_right(
    step: str, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, package = tiny_graph(), tmp_path / "zoo" / "tiny"
    first, second = (tiny_card(graph).model_copy(update={"version": version}) for version in ("1.0.0", "1.1.0"))
    assert release.release(first, graph, package, {})
    rename, rmtree = Path.rename, shutil.rmtree

    def killed_rename(path: Path, target: Path) -> Path:
        if (step, target.name) in {("to old", ".tiny.old"), ("to place", "tiny")}:
            raise Killed
        return rename(path, target)

    def killed_removal(path: Path, ignore_errors: bool = False) -> None:
        if (step, path.name, path.exists()) == ("removal", ".tiny.old", True):
            (path / "card.json").unlink()
            raise Killed
        rmtree(path, ignore_errors=ignore_errors)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed_rename)
        patch.setattr(release.shutil, "rmtree", killed_removal)
        with pytest.raises(Killed):
            release.release(second, graph, package, {"seen.json": b"{}"})
    whole = package if package.exists() else package.with_name(".tiny.old")
    assert read_package(whole)[0].version == left
    assert release.settled(first, package).version == "1.0.0"  # reading puts it right too
    assert read_package(package)[0].version == left
    assert release.release(second, graph, package, {"seen.json": b"{}"}) == (left == "1.0.0")
    assert read_package(package)[0].version == "1.1.0"
    assert [path.name for path in package.parent.iterdir()] == ["tiny"]
