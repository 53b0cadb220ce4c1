"""The worklist of a running server: real X-rays of two hospitals, two readers, kill -9, and no identity anywhere."""

from __future__ import annotations

import csv
import io
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest

from models.card import DEFAULT_MODEL
from service.tokens import add_token
from tests.e2e.conftest import query
from tests.e2e.test_kills import wait_for
from tests.e2e.test_privacy import IDENTITY, MARK, found
from tests.killed import kill_worker
from tests.models.test_rendered import chunks

HOSPITALS = ("kermany_guangzhou", "nih_chestxray")
EVERYTHING = {"OVERREAD_REVIEW_LOSS_PERCENTILE": "0"}


def xrays(data_root: Path, domain: str, number: int) -> list[bytes]:
    with (data_root / "cxr" / "manifest.csv").open() as file:
        names = [row["image"] for row in csv.DictReader(file) if row["domain"] == domain]
    return [(data_root / "cxr" / name).read_bytes() for name in names[:: len(names) // number][:number]]


def post(url: str, route: str, token: str | None = None, document: Any = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    options = {} if document is None else {"json": document}
    return httpx.post(url + route, headers=headers, timeout=60, **options)


def get(url: str, route: str, token: str | None = None) -> httpx.Response:
    return httpx.get(url + route, headers={"authorization": f"Bearer {token}"} if token else {}, timeout=60)


@pytest.fixture(scope="module")
def hospital(
    start_server: Callable[..., Any], tmp_path_factory: Any, data_root: Path
) -> tuple[Any, dict[str, str], dict[str, Any]]:
    """A server of the shipped model that has seen real X-rays of two hospitals; tokens; image digest -> (site, file, answer)."""
    state = tmp_path_factory.mktemp("hospital")
    roles = {"anna": "annotator", "bert": "annotator", "olga": "operator", "router": "device"}
    tokens = {name: add_token(state / "tokens.json", name, role) for name, role in roles.items()}
    settings = {"OVERREAD_SITES": ",".join(HOSPITALS), "OVERREAD_KEEP_RANDOM_SHARE": "0.5", "OVERREAD_THREADS": "2"}
    server = start_server(DEFAULT_MODEL, state=state, **settings)
    sent: dict[str, Any] = {}
    headers = {"authorization": f"Bearer {tokens['router']}", "content-type": "image/jpeg"}
    for site in HOSPITALS:
        for body in xrays(data_root, site, 24):
            response = httpx.post(f"{server.url}/v1/predict?site={site}", content=body, headers=headers, timeout=60)
            assert response.status_code == 200, response.text
            sent[response.json()["image_sha256"]] = (site, body, response.json())
    return server, tokens, sent


def test_what_was_flagged_is_on_the_worklist(hospital: Any) -> None:
    server, tokens, sent = hospital
    answer = get(server.url, "/v1/worklist?budget=200", tokens["anna"]).json()
    items = {item["image_sha256"]: item for item in answer["items"]}
    flagged = {sha256 for sha256, (_, _, result) in sent.items() if result["verdict"] != "accept"}
    assert flagged, "or else there is nothing to see"
    assert flagged <= set(items) <= set(sent)
    drawn = {sha256 for sha256, item in items.items() if item["origin"] == "random"}
    assert drawn == set(items) - flagged
    assert {why["code"] for sha256 in drawn for why in items[sha256]["why"]} <= {"random_share"}
    for sha256, item in items.items():
        site, body, result = sent[sha256]
        assert (item["site"], item["result_id"], item["verdict"]) == (site, result["result_id"], result["verdict"])
        assert item["findings"] == result["findings"]
        png = get(server.url, f"/v1/images/{sha256}", tokens["bert"]).content
        shown, original = (np.asarray(PIL.Image.open(io.BytesIO(data)).convert("L")) for data in (png, body))
        assert np.array_equal(shown, original)
        assert set(chunks(png)) == {b"IHDR", b"IDAT", b"IEND"}
    sites = get(server.url, "/v1/sites", tokens["olga"]).json()
    assert {day["site"]: day["n"] for day in sites["days"]} == dict.fromkeys(HOSPITALS, 24)
    for day in sites["days"]:
        own = [result["predicted_loss"] for site, _, result in sent.values() if site == day["site"]]
        assert day["mean_predicted_loss"] == pytest.approx(np.mean(own))


def test_readers_side_by_side(hospital: Any) -> None:
    server, tokens, _ = hospital
    listed = get(server.url, "/v1/worklist?budget=200", tokens["anna"]).json()
    total = listed["open"]
    taken: list[tuple[str, dict[str, Any]]] = []

    def read(name: str) -> None:
        while (lease := post(server.url, "/v1/worklist/lease", tokens[name], {})).status_code == 200:
            taken.append((name, lease.json()))
        assert lease.json()["code"] == "worklist_empty"

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(read, name) for name in ("anna", "bert", "olga") * 2]:
            done.result(120)
    numbers = [lease["item"]["item_id"] for _, lease in taken]
    assert len(set(numbers)) == len(numbers) == total
    metrics = get(server.url, "/metrics", tokens["olga"]).text
    assert f"overread_leases {float(total)}" in metrics
    for name, lease in taken:
        others = [other for other in ("anna", "bert", "olga") if other != name]
        refused = post(server.url, f"/v1/worklist/lease/{lease['lease_id']}/return", tokens[others[0]])
        assert (refused.status_code, refused.json()["code"]) == (409, "lease_lost")
        assert post(server.url, f"/v1/worklist/lease/{lease['lease_id']}/return", tokens[name]).status_code == 200
    assert get(server.url, "/v1/worklist", tokens["anna"]).json()["leased"] == 0


def test_a_reader_who_vanishes_leaves_no_lease_behind(start_server: Any, package: Path, draw: Any) -> None:
    """Row 9: connections cut in the middle of taking a lease; each item is free again when the lease's time is over."""
    server = start_server(package, **EVERYTHING, OVERREAD_LEASE_MINUTES="0.05")
    for seed in range(4):
        httpx.post(f"{server.url}/v1/predict", content=draw(seed), headers={"content-type": "image/png"}, timeout=60)
    host, port = server.url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/worklist/lease HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"
    )
    for _ in range(12):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(head.encode() + b"{}")
    wait_for(lambda: query(server.state, "SELECT count(*) FROM leases") != [(0,)], "nobody who vanished had a lease")

    def free() -> bool:
        answer = httpx.get(f"{server.url}/v1/worklist", timeout=60).json()
        return bool((answer["leased"], len(answer["items"])) == (0, 4))

    wait_for(free, "a lease is left over")
    assert httpx.post(f"{server.url}/v1/worklist/lease", json={}, timeout=60).status_code == 200


def check_kept(state: Path, acknowledged: set[str]) -> None:
    """Compare what callers were told with the items, and those with the files; raises AssertionError."""
    database = sqlite3.connect(state / "overread.sqlite3", timeout=30)
    try:
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        items = [row[0] for row in database.execute("SELECT image_sha256 FROM items")]
        live = {
            row[0]: row[1] for row in database.execute("SELECT image_sha256, bytes FROM kept_images WHERE removed_at IS NULL")
        }
    finally:
        database.close()
    assert len(set(items)) == len(items)
    assert acknowledged <= set(items) <= set(live), "an answered scan has no item"
    sizes = {path.stem: path.stat().st_size for path in (state / "kept").rglob("*.png")}
    assert {sha256: sizes.get(sha256) for sha256 in live} == live, "a row names a file that is not there, or not whole"


def test_kill_9_between_the_steps(start_server: Any, package: Path, make_package: Any, tmp_path: Path, draw: Any) -> None:
    """Every answered scan has its item and its file after each kill; what was cut off is swept up, and scoring again goes on."""
    state = tmp_path / "state"
    settings = {"state": state, **EVERYTHING, "OVERREAD_THREADS": "2"}
    server = start_server(package, **settings)
    acknowledged: set[str] = set()
    url, end = [server.url], threading.Event()

    def send(seed: int) -> None:
        while not end.is_set():
            seed += 2
            try:
                headers = {"content-type": "image/png"}
                response = httpx.post(f"{url[0]}/v1/predict", content=draw(seed, 48), headers=headers, timeout=10)
            except httpx.TransportError:
                time.sleep(0.05)
                continue
            if response.status_code == 200:
                acknowledged.add(response.json()["image_sha256"])

    senders = [threading.Thread(target=send, args=(first,), daemon=True) for first in (0, 1)]
    for sender in senders:
        sender.start()
    for _ in range(4):
        before = len(acknowledged)
        wait_for(lambda before=before: len(acknowledged) > before + 2, "no work goes on")  # type: ignore[misc]
        kill_worker(server)
        check_kept(state, set())
    end.set()
    for sender in senders:
        sender.join(30)
    server.wait_ready()
    assert server.stop() == 0
    check_kept(state, acknowledged)
    with pytest.raises(AssertionError, match="no item"):
        check_kept(state, {*acknowledged, "0" * 64})
    # Another package of the same name: killed while it scores again, it goes on
    newer = make_package("tiny", poison=1.5)
    server = start_server(newer, **settings)
    total = get(server.url, "/v1/worklist").json()
    assert total["open"] + total["waiting_for_scores"] >= len(acknowledged)
    for _ in range(2):
        kill_worker(server)
        server.wait_ready()

    def scored() -> bool:
        try:
            answer = get(server.url, "/v1/worklist")
            return bool(answer.status_code == 200 and answer.json()["waiting_for_scores"] == 0)
        except httpx.TransportError:
            return False

    wait_for(scored, "items are not scored again")
    assert len(set(query(state, "SELECT model_sha256 FROM items"))) == 1
    check_kept(state, acknowledged)


@pytest.fixture(scope="module")
def identified(start_server: Any, package: Path, draw_dicom: Any) -> Any:
    """A server that keeps everything, and has seen scans full of canaries."""
    server = start_server(package, **EVERYTHING, OVERREAD_SITES="east")
    for seed in range(3):
        identity = {
            **IDENTITY,
            "PatientBirthDate": "19700101",
            "PatientID": f"CANARYID{seed}",
            "IssuerOfPatientID": "CANARYISSUER",
        }
        body = draw_dicom(seed, **identity | {"SOPInstanceUID": f"1.2.826.0.1.3680043.9.7777.1{seed}"})
        headers = {"content-type": "application/dicom"}
        assert httpx.post(f"{server.url}/v1/predict?site=east", content=body, headers=headers, timeout=60).status_code == 200
    return server


def test_no_identity_in_the_worklist(identified: Any) -> None:
    """Row 17 for these routes: answers, kept files, database, metrics, logs, names of files."""
    server = identified
    answers = [get(server.url, "/v1/worklist"), post(server.url, "/v1/worklist/lease", None, {}), get(server.url, "/v1/sites")]
    (lease,) = (answer.json() for answer in answers if "lease_id" in answer.json())
    items = answers[0].json()["items"]
    assert len(items) == 3
    answers += [get(server.url, f"/v1/images/{item['image_sha256']}") for item in items]
    route = f"/v1/worklist/lease/{lease['lease_id']}"
    for wrong in ({"reason": MARK}, {MARK: MARK}, MARK, [MARK]):
        answers.append(post(server.url, f"{route}/skip", None, wrong))
        answers.append(post(server.url, "/v1/worklist/lease", None, wrong))
    for path in (
        f"/v1/items/{MARK}",
        f"/v1/images/{MARK}",
        f"/v1/worklist?model={MARK}",
        f"/v1/sites?days={MARK}",
        f"/v1/worklist?{MARK}=1",
    ):
        answers.append(get(server.url, path))
    answers.append(
        httpx.post(f"{server.url}/v1/predict?site={MARK}", content=b"x", headers={"content-type": "image/png"}, timeout=60)
    )
    answers += [post(server.url, f"{route}/renew"), post(server.url, f"{route}/skip", None, {"reason": "other"})]
    assert {answer.status_code for answer in answers} == {200, 400, 404}
    for answer in answers:
        assert found(answer.content) == [], answer.content[:200]
    # An item's whole result names the instance, as the result itself does, and nothing else
    detail = get(server.url, f"/v1/items/{items[0]['item_id']}")
    assert detail.json()["result"]["sop_instance_uid"].startswith("1.2.826")
    assert found(detail.content) == []
    assert found(server.log.read_bytes()) == []
    assert found(get(server.url, "/metrics").content) == []
    for path in server.state.rglob("*"):
        assert found(str(path.relative_to(server.state)).encode()) == []
        if path.is_file():
            assert found(path.read_bytes()) == [], path.name
    kept = list((server.state / "kept").rglob("*.png"))
    assert len(kept) == 3
    assert all(set(chunks(path.read_bytes())) == {b"IHDR", b"IDAT", b"IEND"} for path in kept)
    assert found(b"x" + MARK.encode()), "the check would see one"
