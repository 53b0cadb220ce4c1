"""What the model says of an item: drawn anew from the kept pixels, and kept from readers who are not to know it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.analysis import Site
from service.tokens import add_token
from tests.conftest import png
from tests.service.packages import vivid, write
from tests.service.scans import ALL, NONE, Reader, ask, code, scan, take
from tests.service.test_api import check

ITEM = "/v1/items/1"
TASK = {"id": 1, "data": {"image": "data:,"}}


@pytest.fixture
def clear(make_site: Any, tmp_path: Path) -> Site:
    """A site whose model has a heatmap that differs from image to image."""
    site: Site = make_site(**ALL, models=(vivid(tmp_path / "vivid"),))
    return site


@pytest.fixture
def reader(clear: Site, connect: Any) -> Reader:
    """The one person of an open site."""
    return Reader(connect(clear))


def test_an_item_brings_the_heatmap_that_its_scan_was_answered_with(clear: Site, connect: Any) -> None:
    caller = connect(clear)
    sent = caller.predict(png(1), query="?heatmap=true").json()
    plain = caller.get(ITEM).json()
    assert plain["result"]["heatmap"] is None
    answer = caller.get(f"{ITEM}?heatmap=true")
    check(answer, "GET", "/v1/items/{item_id}")
    drawn = answer.json()
    assert drawn["result"]["heatmap"] == sent["heatmap"] is not None
    assert drawn == plain | {"result": plain["result"] | {"heatmap": sent["heatmap"]}}
    other = caller.predict(png(2), query="?heatmap=true").json()
    assert other["heatmap"]["data"] != sent["heatmap"]["data"], "another scan has another"
    assert ask(clear, "SELECT count(*) FROM results") == [(2,)], "nothing is stored by looking"


def test_a_dicom_files_window_is_in_what_is_kept(reader: Reader) -> None:
    sent = reader.send(scan(1), "?heatmap=true").json()["heatmap"]
    drawn = reader.get(f"{ITEM}?heatmap=true").json()["result"]["heatmap"]
    assert (drawn["label"], drawn["media_type"]) == (sent["label"], sent["media_type"])
    assert drawn["peak"] == pytest.approx(sent["peak"], rel=1e-3)


def test_looking_at_it_is_noted(make_site: Any, connect: Any, tmp_path: Path) -> None:
    tokens = {name: add_token(tmp_path / "state" / "tokens.json", name, name) for name in ("device", "annotator")}
    site = make_site(**ALL)
    device, anna = (Reader(connect(site), tokens[name]) for name in ("device", "annotator"))
    sha256 = device.send(scan(1)).json()["image_sha256"]
    before = ask(site, "SELECT max(id) FROM audit")[0][0] or 0
    assert code(device.get(f"{ITEM}?heatmap=true")) == (403, "forbidden")
    assert anna.get(f"{ITEM}?heatmap=true").status_code == 200
    noted = ask(site, f"SELECT actor, role, action, subject FROM audit WHERE id > {before}")
    assert noted == [("annotator", "annotator", "item_read", sha256)]


def test_where_it_cannot_be_drawn_there_is_none(make_site: Any, connect: Any, tmp_path: Path) -> None:
    site = make_site(**ALL, models=(vivid(tmp_path / "vivid"),))
    reader = Reader(connect(site))
    reader.send(scan(1))
    url = f"{ITEM}?heatmap=true"
    assert reader.get(url).json()["result"]["heatmap"] is not None
    sha256 = ask(site, "SELECT image_sha256 FROM items")[0][0]
    kept = site.loop.kept.read(sha256)
    site.loop.kept.remove(sha256)
    assert reader.get(url).json()["result"]["heatmap"] is None
    site.loop.kept.write(sha256, kept)
    assert reader.get(url).json()["result"]["heatmap"] is not None
    site.close()
    newer = make_site(**ALL, models=(write(tmp_path / "newer", "1.1.0"),))
    assert Reader(connect(newer)).get(url).json()["result"]["heatmap"] is None, "of another package than the item's result"


@pytest.mark.parametrize("query", ["heatmap=yes", "heatmap=", "picture=true"])
def test_what_cannot_be_asked(reader: Reader, query: str) -> None:
    reader.send(scan(1))
    assert code(reader.get(f"{ITEM}?{query}")) == (400, "bad_request")


def test_objects_have_no_heatmap(make_site: Any, connect: Any, segmenter: Path) -> None:
    caller = connect(make_site(**ALL, models=(segmenter,)))
    assert caller.predict(png(1)).status_code == 200
    assert code(caller.get(f"{ITEM}?heatmap=true")) == (400, "bad_request")
    assert caller.get(f"{ITEM}?heatmap=false").status_code == 200


@pytest.mark.parametrize(
    ("setting", "blind"),
    [({}, {"doubt": False, "random": True}), ({"blind_reading": "none"}, {"doubt": False, "random": False}),
     ({"blind_reading": "all"}, {"doubt": True, "random": True})],
)  # fmt: skip
def test_which_items_are_read_without_the_model(
    make_site: Callable[..., Site], connect: Any, setting: dict[str, Any], blind: dict[str, bool]
) -> None:
    for number, limits in enumerate((ALL, NONE | {"keep_random_share": 1.0})):
        take(make_site(**limits), scan(number))
    site = make_site(**setting)
    reader = Reader(connect(site))
    items = reader.get("/v1/worklist").json()["items"]
    assert {item["origin"]: item["blind"] for item in items} == blind
    # Label Studio shows a prediction as a label that is there already: of these there is none
    for item in items:
        task = TASK | {"data": TASK["data"] | {"result_id": item["result_id"]}}  # type: ignore[operator]
        (found,) = reader.post("/v1/label-studio/predict", {"tasks": [task]}).json()["results"]
        assert bool(found["result"]) is not blind[item["origin"]]
