"""Labels of a running server: killed at any moment nothing is lost or doubled, and real images come back as training data."""

from __future__ import annotations

import csv
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.card import ZOO, read_package
from models.label_package import read_label_package
from tests.conftest import ROOT
from tests.killed import kill_worker, killed_opening
from training import classifier
from training.config import read_json

KILLS = max(3, int(os.environ.get("OVERREAD_KILLS", "20")) // 8)
ITEMS = {"OVERREAD_REVIEW_LOSS_PERCENTILE": "0"}
"""Every image becomes an item."""


def send(step: Callable[[], httpx.Response]) -> httpx.Response:
    """Send a request until it is answered with success, as a patient client does."""
    until = time.monotonic() + 180
    while True:
        try:
            response = step()
            if response.status_code < 400:
                return response
            assert response.status_code == 503, response.text
        except httpx.TransportError:
            pass
        assert time.monotonic() < until, "no answer any more"
        time.sleep(0.05)


def label(url: str, result: dict[str, Any], says: str, key: str) -> httpx.Response:
    shown = {"image_sha256": result["image_sha256"], "model_sha256": result["model"]["sha256"], "result_id": result["result_id"]}
    body = shown | {"classes": {says: True}, "model_was_right": False}
    return httpx.post(f"{url}/v1/labels", json=body, headers={"idempotency-key": key}, timeout=10)


def predicted(url: str, body: bytes, query: str = "") -> httpx.Response:
    kind = "image/png" if body.startswith(b"\x89PNG") else "image/jpeg"
    return httpx.post(f"{url}/v1/predict{query}", content=body, headers={"content-type": kind}, timeout=30)


def check(database: Path, acknowledged: dict[str, str]) -> None:
    """Compare what readers were told with what is stored; raises AssertionError."""
    connection = sqlite3.connect(database, timeout=30)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("SELECT label_id, result_id, item_id FROM labels").fetchall()
        states = dict(connection.execute("SELECT id, state FROM items").fetchall())
    finally:
        connection.close()
    assert set(acknowledged) <= {row[0] for row in rows}, "an acknowledged label is lost"
    assert len({row[1] for row in rows}) == len(rows), "an image is labelled twice"
    labelled = {row[2] for row in rows}
    assert {number: state for number, state in states.items() if (state == "done") != (number in labelled)} == {}
    for label_id, result_id, _ in rows:
        assert acknowledged.get(label_id, result_id) == result_id


def test_killed_at_any_moment_no_label_is_lost_or_doubled(
    start_server: Callable[..., Any], package: Path, tmp_path: Path, draw: Any
) -> None:
    state, end, acknowledged = tmp_path / "state", threading.Event(), {}
    server = start_server(package, workers=2, state=state, OVERREAD_THREADS="1", **ITEMS)

    def read(first: int) -> None:
        seed = first
        while not end.is_set():
            seed += 2
            body = draw(seed, 40)
            result = send(lambda body=body: predicted(server.url, body)).json()  # type: ignore[misc]
            for _ in range(2):
                answer = send(lambda result=result, key=f"key-{seed}": label(server.url, result, "normal", key))  # type: ignore[misc]
                acknowledged[answer.json()["label_id"]] = result["result_id"]

    threads = [threading.Thread(target=read, args=(first,)) for first in (0, 1)]
    for thread in threads:
        thread.start()
    try:
        for number in range(KILLS):
            before, until = len(acknowledged), time.monotonic() + 180
            while len(acknowledged) < before + 2:
                assert time.monotonic() < until, "no work goes on"
                time.sleep(0.02)
            if number == KILLS - 1:  # all of it
                os.killpg(server.process.pid, signal.SIGKILL)
                server.process.wait(60)
                server = start_server(package, workers=2, state=state, OVERREAD_THREADS="1", **ITEMS)
            else:
                kill_worker(server)
        server.wait_ready()
    finally:
        end.set()
        for thread in threads:
            thread.join(190)
    assert server.stop() == 0
    database = state / "overread.sqlite3"
    check(database, acknowledged)
    for plant in (  # the check sees a label that is lost, one that is doubled, and an item that nobody closed
        f"DELETE FROM labels WHERE label_id = '{next(iter(acknowledged))}'",
        "INSERT INTO labels SELECT max(id) + 1, 'another', item_id, result_id, image_sha256, model_sha256, reader, standing, "
        "kind, document, model_was_right, source, replaces, seconds, created_at FROM labels",
        "UPDATE items SET state = 'open' WHERE id = (SELECT max(item_id) FROM labels)",
    ):
        copy = tmp_path / "copy.sqlite3"
        with sqlite3.connect(database) as source, sqlite3.connect(copy) as target:
            source.backup(target)
            target.execute(plant)
        with pytest.raises(AssertionError):
            check(copy, acknowledged)


def test_labels_of_real_scans_come_back_as_training_data(
    start_server: Callable[..., Any], data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "pseudonym.key").write_text("00" * 32 + "\n")  # splits by patient depend on it: always the same ones
    with (data_root / "cxr" / "manifest.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["domain"] == "nih_chestxray"]
    chosen = [row for name in ("normal", "pneumonia") for row in [each for each in rows if each["label"] == name][:16]]
    server = start_server(ZOO / "cxr-pneumonia", state=tmp_path / "state", OVERREAD_SITES="nih", **ITEMS)
    results = {}
    for row in chosen:
        body = (data_root / "cxr" / row["image"]).read_bytes()
        answer = predicted(server.url, body, "?site=nih").json()
        results[answer["image_sha256"]] = answer
        assert label(server.url, answer, row["label"], f"key-{len(results)}").status_code == 201
    server.stop()

    # An export that is killed leaves nothing that looks like a package, and the next one is whole
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OVERREAD_")}
    environment |= {"OVERREAD_STATE": str(tmp_path / "state")}
    command = ["labels", "export", "--out", str(tmp_path / "labels")]
    killed_opening(3, tmp_path / ".labels.part" / "images", command, environment)
    assert len(list((tmp_path / ".labels.part" / "images").iterdir())) == 3
    assert not (tmp_path / "labels").exists()
    again = [sys.executable, "-m", "models.cli", *command]
    subprocess.run(again, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True, timeout=240)
    package = read_label_package(tmp_path / "labels")
    assert not (tmp_path / ".labels.part").exists()
    assert {each.image_sha256 for each in package.labels.images} == set(results)
    assert package.labels.counts() == {"normal": 16, "pneumonia": 16}
    assert {each.domain for each in package.labels.images} == {"nih"}

    # From any of them to the image that was sent, the model that was shown, its card and who said so
    card, _, sha256 = read_package(ZOO / "cxr-pneumonia")
    for each in package.labels.images:
        (reading,) = each.readings
        assert reading.result_id == results[each.image_sha256]["result_id"]
        assert reading.model_sha256 == sha256
        assert package.labels.models[sha256].version == card.version
        assert re.fullmatch("[0-9a-f]{16}", reading.reader)

    small = {"steps_per_epoch": 5, "batch_size": 8, "widths": (8, 16, 32), "blocks": 1}
    make = classifier.make_config
    monkeypatch.setattr(classifier, "make_config", lambda **values: make(**(values | small)))
    words = ["--labels", str(tmp_path / "labels"), "--classes", "normal", "pneumonia", "--finding", "pneumonia"]
    words += ["--input", str(ROOT / "training" / "specs" / "chest_xray.json"), "--epochs", "1", "--out", str(tmp_path / "run")]
    assert classifier.main(words) == 0
    run = read_json(tmp_path / "run" / "run.json", "")
    assert (run["config"]["domains"], run["config"]["labels_sha256"]) == (["nih"], package.sha256)
