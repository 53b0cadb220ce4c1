"""docs/capacity.md is what its command computes, and the command computes what can be worked out by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import capacity, report
from benchmarks.capacity import PAGE, Work, need, read, tables
from tests.conftest import ROOT


def check(page: str) -> None:
    """Compare the page with what is computed now; raises AssertionError."""
    table = page.partition("<!-- capacity -->\n")[2].partition("\n<!-- /capacity -->")[0]
    assert table == tables(read())


def test_the_page_is_what_the_command_computes() -> None:
    check(PAGE.read_text())


def test_another_figure_on_the_page_is_seen() -> None:
    page = PAGE.read_text()
    figure = f"{read()[0].images_a_second:.1f}"
    with pytest.raises(AssertionError):
        check(page.replace(figure, figure + "1"))


def test_the_command_writes_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "capacity.md"
    page.write_text("<!-- capacity -->\nold\n<!-- /capacity -->\n")
    monkeypatch.setattr(capacity, "PAGE", page)
    capacity.main()
    check(page.read_text())


def test_needs_are_those_worked_out_by_hand() -> None:
    """28,800 studies a day are one every three seconds; in the busiest hour one a second, of two images of 0.3 s each."""
    work = Work("w", images=2, seconds=0.25, report_seconds=0.05, memory_mib=400.0, watched_a_minute=1)
    found = need(work, 28_800)
    assert found.images_a_second == pytest.approx(2)
    assert found.cores == pytest.approx(1.0)  # 0.6 of it used
    assert found.replicas == 2
    assert need(work, 10 * 28_800).replicas == 6
    assert need(work, 1).replicas == 2


def test_what_was_not_measured_is_no_figure(tmp_path: Path) -> None:
    for name in ("serving", "pacs"):
        shutil.copy(report.RESULTS / f"{name}.json", tmp_path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path)
    text = (report.RESULTS / "segmentation_speed.json").read_text()
    (tmp_path / "segmentation_speed.json").write_text(text.replace("from PNG to GeoJSON", "from nowhere to GeoJSON"))
    with pytest.raises(ValueError, match="not enough values"):
        read(tmp_path)


def test_the_replicas_are_those_of_the_deployment() -> None:
    serve = (ROOT / "deploy" / "kubernetes" / "base" / "serve.yaml").read_text()
    assert f'requests: {{cpu: "{capacity.CORES}"' in serve
