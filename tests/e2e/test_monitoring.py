"""A scanner swap replayed from real X-rays, seen by a real Prometheus with the rules and the dashboard that ship."""

from __future__ import annotations

import csv
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from models.card import DEFAULT_MODEL, read_package
from models.drift import REFERENCE, replay
from service.arrivals import Arrivals, Position
from service.promotion import Desk
from service.settings import Settings
from service.store import Store
from tests.conftest import ROOT, require
from tests.ports import free_port
from tests.service.packages import write
from training.config import RunConfig
from training.data import split_of

HOME, OTHER = "kermany_guangzhou", "nih_chestxray"
BEFORE = REFERENCE + 40
MOST = 200
SAME_HOSPITAL = 5000


def held_out(root: Path, domain: str) -> list[Path]:
    """One X-ray of each patient of a hospital that was not trained on, in a random order."""
    card = read_package(DEFAULT_MODEL)[0]
    config = RunConfig.model_validate(card.training.config)
    patients: dict[str, Path] = {}
    with (root / "cxr" / "manifest.csv").open() as file:
        for row in csv.DictReader(file):
            if row["domain"] == domain and split_of(row["patient"], config) == "test":
                patients.setdefault(row["patient"], root / "cxr" / row["image"])
    order = np.random.default_rng(0).permutation(sorted(patients))
    return [patients[name] for name in order]


def wait(check: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end, what
        time.sleep(0.3)
    return found


class Prometheus:
    """A Prometheus of the configuration that ships, but quicker, and at another address."""

    def __init__(self, folder: Path, target: str) -> None:
        shipped = ROOT / "deploy" / "prometheus"
        text = (shipped / "prometheus.yml").read_text().replace("127.0.0.1:3000", target.removeprefix("http://"))
        text = text.replace("interval: 15s", "interval: 1s").replace("[overread", f"[{shipped}/overread")
        (folder / "prometheus.yml").write_text(text)
        port = free_port()
        self._url = f"http://127.0.0.1:{port}/api/v1"
        options = (f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={folder}/data")
        command = ["prometheus", f"--config.file={folder}/prometheus.yml", *options]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def series(self, query: str) -> list[dict[str, Any]]:
        try:
            answer = httpx.get(f"{self._url}/query", params={"query": query}, timeout=60)
        except httpx.TransportError:  # it has not started yet
            return []
        if answer.status_code == 503:
            return []
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    def firing(self) -> set[tuple[str, str]]:
        """Return alert and site of what fires."""
        alerts = httpx.get(f"{self._url}/alerts", timeout=60).json()["data"]["alerts"]
        return {(each["labels"]["alertname"], each["labels"].get("site", "")) for each in alerts if each["state"] == "firing"}


@pytest.fixture(scope="module")
def watched(start_server: Any, package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Prometheus]]:
    """A server of the shipped X-ray model, and of a tiny one with a candidate beside it; and its Prometheus."""
    require("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    state = folder / "state"
    settings = Settings.model_validate({"state": state, "models": (DEFAULT_MODEL, package)})
    store = Store(settings.database)
    Desk(settings, store).try_beside(write(folder / "second", "1.1.0"), "")
    Arrivals(store).note([], Position(0, ""))  # a watch was here
    store.close()
    names = {"OVERREAD_SITES": "east,west", "OVERREAD_STATIONS": "east=CT1", "OVERREAD_KEEP_RANDOM_SHARE": "0"}
    server = start_server(DEFAULT_MODEL, package, state=state, **names)
    prometheus = Prometheus(folder, server.url)
    yield server, prometheus
    prometheus.process.terminate()
    prometheus.process.wait(60)


def seen(prometheus: Prometheus, site: str) -> float:
    found = prometheus.series(f'overread_drift_scans{{site="{site}",model="cxr-pneumonia"}}')
    return float(found[0]["value"][1]) if found else 0.0


def send(server: Any, files: list[Path], site: str) -> None:
    with httpx.Client(timeout=60) as client:
        for file in files:
            url = f"{server.url}/v1/predict?site={site}"
            answer = client.post(url, content=file.read_bytes(), headers={"content-type": "image/jpeg"})
            assert answer.status_code == 200, answer.text


@pytest.fixture(scope="module")
def swapped(watched: tuple[Any, Prometheus], data_root: Path) -> int:
    """Replay the swap; return after how many X-rays of the other hospital the alert was there, at most."""
    server, prometheus = watched
    home, other = held_out(data_root, HOME), held_out(data_root, OTHER)
    send(server, home[:BEFORE], "east")
    wait(lambda: seen(prometheus, "east") == BEFORE, "the reference was counted")
    assert ("OverreadSiteDrift", "east") not in prometheus.firing(), "the control: the same hospital raises nothing"
    for start in range(0, min(MOST, len(other)), 20):
        send(server, other[start : start + 20], "east")
        sent = start + len(other[start : start + 20])
        wait(lambda sent=sent: seen(prometheus, "east") == BEFORE + sent, "the scans were counted")  # type: ignore[misc]
        time.sleep(1.5)  # the rules are evaluated every second
        if ("OverreadSiteDrift", "east") in prometheus.firing():
            return sent
    pytest.fail("no alert")


def test_a_swap_of_the_scanner_raises_the_alert(swapped: int, watched: tuple[Any, Prometheus]) -> None:
    assert swapped <= MOST
    assert ("OverreadSiteDrift", "west") not in watched[1].firing()


def test_the_same_hospital_raises_none_in_5000_images(swapped: int, watched: tuple[Any, Prometheus], ask: Any) -> None:
    """What the server stored of the hospital's held-out X-rays, drawn again and again, through the statistic's own code."""
    assert swapped
    rows = ask(watched[0].state, f"SELECT loss_score, domain_distance FROM results ORDER BY created_at LIMIT {BEFORE}")
    scores = np.array(rows)
    calibration = read_package(DEFAULT_MODEL)[0].calibration
    for seed in range(3):
        drawn = scores[np.random.default_rng(seed).integers(0, len(scores), SAME_HOSPITAL)]
        assert replay(calibration, drawn, seed).alarm_at is None


def test_every_panel_of_the_dashboard_has_series(
    swapped: int, watched: tuple[Any, Prometheus], draw: Any, draw_dicom: Any
) -> None:
    assert swapped
    server, prometheus = watched
    headers = {"content-type": "image/png"}
    assert httpx.post(f"{server.url}/v1/predict?model=tiny", content=draw(1), headers=headers, timeout=60).status_code == 200
    url, headers = f"{server.url}/v1/predict?model=tiny&site=east", {"content-type": "application/dicom"}
    for seed, name in enumerate(("CT1", "CANARY")):
        assert httpx.post(url, content=draw_dicom(seed, StationName=name), headers=headers, timeout=60).status_code == 200
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "overread.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in panels:
        for target in panel["targets"]:
            wait(lambda query=target["expr"]: prometheus.series(query), f"{panel['title']} shows nothing")  # type: ignore[misc]
    assert prometheus.series("overread_such_a_metric_is_not") == []
    assert {found["metric"]["station"] for found in prometheus.series("overread_station_drift_alarm")} == {"CT1"}
