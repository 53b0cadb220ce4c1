"""Scans for the tests of the worklist: drawn DICOM files of chosen patients, sent to a site in this process."""

from __future__ import annotations

import warnings
from io import BytesIO
from typing import Any

import httpx

from service.analysis import Site
from service.wall import Upload
from service.wanted import Wanted
from tests.e2e.conftest import dicom

LEASE = "/v1/worklist/lease"
ALL = {"review_loss_percentile": 0.0}
"""Settings under which every scan is for review."""
NONE = {"review_loss_percentile": 100.0, "review_domain_percentile": 100.0, "keep_random_share": 0.0}
"""Settings under which no scan becomes an item."""


def scan(seed: int, patient: str | None = None, **attributes: Any) -> bytes:
    """Draw a DICOM file unlike any other seed's; each seed is a patient, where none is named."""
    identity = {"PatientID": f"P{seed}" if patient is None else patient}
    stream = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dicom(seed, **(identity | attributes)).save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def take(installed: Site, body: bytes, media_type: str = "application/dicom", **wanted: Any) -> Any:
    """Analyse and commit one scan, as the routes do; return the reply."""
    return installed.conclude(installed.analyse(Upload(body, media_type), Wanted(**wanted)))


def ask(site: Site, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """Ask a site's database."""
    if site.store.dialect == "postgresql":
        sql = sql.replace("%", "%%").replace("?", "%s")
    with site.store.reading() if sql.startswith("SELECT") else site.store.writing() as connection:
        done = connection.exec_driver_sql(sql, values)
        return [tuple(row) for row in done] if done.returns_rows else []


class Reader:
    """Calls the routes as one person."""

    def __init__(self, caller: Any, token: str | None = None) -> None:
        self._caller = caller
        self._headers = {"authorization": f"Bearer {token}"} if token else {}

    def get(self, url: str) -> httpx.Response:
        return self._caller.get(url, headers=self._headers)

    def post(self, url: str, document: Any = None) -> httpx.Response:
        options = {} if document is None else {"json": document}
        return self._caller.request("POST", url, headers=self._headers, **options)

    def send(self, body: bytes, query: str = "") -> httpx.Response:
        return self._caller.predict(body, "application/dicom", query, **self._headers)

    def lease(self, **wanted: Any) -> httpx.Response:
        return self.post(LEASE, wanted)


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]
