"""Which package answers: followed, taken back, and left alone where it cannot be loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from models.errors import Refusal
from service.analysis import Site
from service.promotion import Desk
from tests.service.packages import count, identity, output, write


@pytest.mark.dialects
def test_a_promotion_is_followed_and_taken_back(
    site: Site, desk: Desk, connect: Any, draw: Any, package: Path, tmp_path: Path
) -> None:
    caller, second = connect(site), write(tmp_path / "second", "1.1.0")
    before = caller.predict(draw(1))
    desk.promote(second, "because")
    assert caller.predict(draw(1)).content == before.content  # until it is followed
    site.lineup.refresh()
    new = caller.predict(draw(1)).json()
    assert (new["model"]["version"], new["model"]["sha256"]) == ("1.1.0", identity(second))
    assert new["result_id"] != before.json()["result_id"]
    (listed,) = caller.get("/v1/models").json()["models"]
    assert listed["sha256"] == identity(second)
    assert count(site, "overread_model_info", sha256=identity(second)) == 1
    assert count(site, "overread_model_info", sha256=identity(package)) == 0
    desk.roll_back("tiny", "")
    site.lineup.refresh()
    assert caller.predict(draw(1)).content == before.content  # to the byte
    old = caller.get(f"/v1/results/{new['result_id']}").json()
    assert old["model"]["version"] == "1.1.0"  # what was answered stays an answer


def test_it_is_followed_at_a_start_too(make_site: Any, desk: Desk, connect: Any, draw: Any, tmp_path: Path) -> None:
    second = write(tmp_path / "second", "1.1.0")
    desk.promote(second, "because")
    shutil.rmtree(second)
    assert connect(make_site()).predict(draw(1)).json()["model"]["version"] == "1.1.0"


def test_a_start_with_a_damaged_package_is_refused(make_site: Any, desk: Desk, tmp_path: Path) -> None:
    second = write(tmp_path / "second", "1.1.0")
    desk.promote(second, "because")
    (tmp_path / "state" / "packages" / identity(second) / "model.onnx").write_bytes(b"")
    with pytest.raises(Refusal) as caught:
        make_site()
    assert caught.value.code == "package_invalid"
    assert "overread rollback tiny" in caught.value.detail
    desk.roll_back("tiny", "")
    assert make_site().predictor(None).card.version == "1.0.0"


@pytest.mark.parametrize("damage", ["gone", "cut", "another"])
def test_a_package_that_cannot_be_loaded_leaves_the_one_before(
    site: Site, desk: Desk, connect: Any, draw: Any, package: Path, tmp_path: Path, damage: str
) -> None:
    caller, second = connect(site), write(tmp_path / "second", "1.1.0")
    before = caller.predict(draw(1)).content
    desk.promote(second, "because")
    copy = tmp_path / "state" / "packages" / identity(second)
    if damage == "cut":
        (copy / "model.onnx").write_bytes((copy / "model.onnx").read_bytes()[:-1])
    else:
        shutil.rmtree(copy)
    if damage == "another":
        shutil.copytree(package, copy)
    site.lineup.refresh()
    site.lineup.refresh()  # not tried again at once
    assert caller.predict(draw(1)).content == before
    assert count(site, "overread_package_failures_total", model="tiny") == 1
    desk.promote(second, "because")  # the copy is put right
    site.lineup._again_at = 0.0  # as half a minute later
    site.lineup.refresh()
    assert caller.predict(draw(1)).json()["model"]["version"] == "1.1.0"


def test_a_request_ends_with_the_package_that_it_began_with(
    site: Site, desk: Desk, connect: Any, draw: Any, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = write(tmp_path / "second", "1.1.0", **output(0.0))
    desk.promote(second, "because")
    analyse = site.analyse

    def promoted_meanwhile(*arguments: Any) -> Any:
        found = analyse(*arguments)
        site.lineup.refresh()
        return found

    monkeypatch.setattr(site, "analyse", promoted_meanwhile)
    caller = connect(site)
    first, later = (caller.predict(draw(seed)).json() for seed in (1, 2))
    assert first["model"]["sha256"] == identity(package)
    assert first["findings"][0]["operating_point"] == 0.5
    assert later["model"]["sha256"] == identity(second)
    assert later["findings"][0]["operating_point"] == 0.0
