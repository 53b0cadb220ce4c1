"""Sites: where a scan came from, and what each site saw."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from models.errors import Refusal
from service.access import Access, Caller
from service.settings import Settings, read_settings
from service.tokens import add_token
from service.tokens import main as token
from tests.service.scans import ALL, NONE, Reader, ask, code, scan
from tests.service.test_api import check

pytestmark = pytest.mark.dialects


def test_the_site_of_a_scan(make_site: Any, connect: Any) -> None:
    site = make_site(**ALL, sites=("east", "west"))
    reader = Reader(connect(site))
    assert reader.send(scan(1), "?site=west").status_code == 200
    assert reader.send(scan(2)).status_code == 200
    refused = reader.send(scan(3), "?site=north")
    check(refused, "POST", "/v1/predict")
    assert code(refused) == (400, "unknown_site")
    assert code(reader.send(scan(3), "?site=")) == (400, "unknown_site")
    assert (
        ask(site, "SELECT site FROM items ORDER BY id")
        == ask(site, "SELECT site FROM verdicts ORDER BY id")
        == [("west",), ("",)]
    )
    assert sorted(item["site"] for item in reader.get("/v1/worklist").json()["items"]) == ["", "west"]


def test_the_site_of_a_token(make_site: Any, connect: Any, tmp_path: Path) -> None:
    file = tmp_path / "state" / "tokens.json"
    bound, free = add_token(file, "ct", "device", "east"), add_token(file, "router", "device")
    assert set(Access.read(file).callers.values()) == {Caller("ct", "device", "east"), Caller("router", "device")}
    site = make_site(**ALL, sites=("east", "west"))
    caller = connect(site)
    assert Reader(caller, bound).send(scan(1)).status_code == 200
    assert Reader(caller, bound).send(scan(2), "?site=east").status_code == 200
    assert code(Reader(caller, bound).send(scan(3), "?site=west")) == (403, "forbidden")
    assert Reader(caller, free).send(scan(4), "?site=west").status_code == 200
    assert ask(site, "SELECT site FROM items ORDER BY id") == [("east",), ("east",), ("west",)]
    with pytest.raises(Refusal, match="OVERREAD_SITES"):
        make_site(sites=("west",))


def test_instances_by_stow_have_a_site_too(make_site: Any, connect: Any) -> None:
    site = make_site(**ALL, sites=("east",))
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + scan(1) + b"\r\n--b--\r\n"
    headers = {"content-type": 'multipart/related; type="application/dicom"; boundary=b'}
    url = "/v1/dicomweb/studies?site="
    assert connect(site).request("POST", url + "east", content=body, headers=headers).status_code == 200
    assert ask(site, "SELECT site, origin FROM items") == [("east", "doubt")]
    assert code(connect(site).request("POST", url + "west", content=body, headers=headers)) == (400, "unknown_site")


def test_names_of_sites() -> None:
    assert read_settings({"OVERREAD_SITES": "east, st.mary_2"}).sites == ("east", "st.mary_2")
    for bad in ("a b", "é", "x" * 65, "-a", "a/b", 'a"'):
        with pytest.raises(Refusal, match="OVERREAD_SITES"):
            read_settings({"OVERREAD_SITES": bad})
    with pytest.raises(Refusal, match="none of OVERREAD_SITES"):
        read_settings({"OVERREAD_SITES": "east", "OVERREAD_PACS_SITE": "west"})
    assert Settings(sites=("east",), pacs_site="east").pacs_site == "east"


def test_a_token_for_a_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OVERREAD_STATE", str(tmp_path))
    monkeypatch.setenv("OVERREAD_SITES", "east")
    with pytest.raises(Refusal) as caught:
        token(["--name", "ct", "--role", "device", "--site", "west"])
    assert caught.value.code == "unknown_site"
    assert token(["--name", "ct", "--role", "device", "--site", "east"]) == 0
    (caller,) = Access.read(tmp_path / "tokens.json").callers.values()
    assert caller == Caller("ct", "device", "east")
    assert capsys.readouterr().out.startswith("ovr_")


def test_what_each_site_saw(make_site: Any, connect: Any) -> None:
    site = make_site(**NONE | {"keep_random_share": 1.0}, sites=("east", "west"))
    reader = Reader(connect(site))
    for seed, where in ((1, "east"), (2, "east"), (3, "west"), (4, "east")):
        assert reader.send(scan(seed), f"?site={where}").status_code == 200
    yesterday = f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d %H:%M:%S.%f}"
    ask(site, "UPDATE verdicts SET created_at = ? WHERE id = 4", yesterday)
    ask(site, "UPDATE verdicts SET verdict = 'review' WHERE id = 2")
    ask(
        site,
        "UPDATE results SET predicted_loss = CASE id WHEN (SELECT result_id FROM verdicts WHERE id = 1) THEN 0.2 ELSE 0.6 END",
    )
    ask(
        site,
        "UPDATE results SET domain_percentile = CASE id WHEN (SELECT result_id FROM verdicts WHERE id = 1) THEN 10 ELSE 40 END",
    )
    ask(site, "UPDATE items SET origin = 'doubt' WHERE id = 2")
    for number, (item, right, replaces) in enumerate([(1, False, None), (1, True, "l0"), (2, False, None)]):
        ask(
            site,
            "INSERT INTO labels (label_id, item_id, result_id, image_sha256, model_sha256, reader, standing, kind, document,"
            " model_was_right, source, replaces, created_at) SELECT ?, id, result_id, image_sha256, model_sha256, 'anna',"
            " 'reader', 'classes', '{}', ?, 'api', ?, '2026-01-01 00:00:00' FROM items WHERE id = ?",
            f"l{number}",
            right,
            replaces,
            item,
        )
    response = reader.get("/v1/sites?days=2")
    check(response, "GET", "/v1/sites")
    answer = response.json()
    assert answer["sites"] == ["east", "west"]
    names = ("site", "n", "accept", "review", "refuse", "labelled", "agreement", "random_labelled", "random_agreement")
    assert [tuple(day[name] for name in names) for day in answer["days"]] == [
        ("east", 2, 1, 1, 0, 2, 0.5, 1, 1.0),  # one of two was confirmed, and that is the one of the random share
        ("west", 1, 1, 0, 0, 0, None, 0, None),
        ("east", 1, 1, 0, 0, 0, None, 0, None),
    ]
    assert [day["mean_predicted_loss"] for day in answer["days"]] == pytest.approx([0.4, 0.6, 0.6])
    assert [day["mean_domain_percentile"] for day in answer["days"]] == pytest.approx([25, 40, 40])
    assert answer["days"][0]["day"] > answer["days"][2]["day"]
    assert len(reader.get("/v1/sites?days=1").json()["days"]) == 2
    ask(site, "UPDATE verdicts SET scored_again = true WHERE id IN (1, 2)")
    assert [day["site"] for day in reader.get("/v1/sites?days=1").json()["days"]] == ["west"], "the worklist's are no scans"
