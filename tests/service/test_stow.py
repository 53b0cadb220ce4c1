"""STOW-RS in: part by part, each with its own outcome, in the standard's response dataset."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from models.errors import Refusal
from service import stow
from service.stow import FAILURES, Outcome, answer, meta_uids, status_of
from tests.conftest import ROOT
from tests.models.dicom_files import dicom, ramp

URL = "/v1/dicomweb/studies"
RELATED = 'multipart/related; type="application/dicom"; boundary=edge'
STORED, FAILED, OTHERS = "00081199", "00081198", "0008119A"


def chest(number: int, **attributes: Any) -> bytes:
    data = dicom(ramp(64, 80), 12, SOPInstanceUID=f"2.25.{number}", WindowCenter=2000 + number, WindowWidth=3000, **attributes)
    return data


def body(*parts: bytes, media_type: str = "application/dicom", end: bytes = b"--edge--\r\n") -> bytes:
    head = f"--edge\r\nContent-Type: {media_type}\r\n\r\n".encode()
    return b"".join(head + part + b"\r\n" for part in parts) + end


def send(client: Any, content: Any, media_type: str = RELATED, query: str = "", **headers: str) -> Any:
    return client.request("POST", URL + query, content=content, headers={"content-type": media_type} | headers)


def value(item: dict[str, Any], tag: str) -> Any:
    return item[tag]["Value"][0]


def test_each_instance_is_committed_and_named(client: Any) -> None:
    response = send(client, body(chest(1), chest(2)))
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/dicom+json"
    document = response.json()
    assert set(document) == {"00081190", STORED}
    items = document[STORED]["Value"]
    assert [value(item, "00081155") for item in items] == ["2.25.1", "2.25.2"]
    assert {value(item, "00081150") for item in items} == {"1.2.840.10008.5.1.4.1.1.1.1"}
    for item in items:
        assert value(item, "00090010") == "OVERREAD"
        stored = client.get(f"/v1/results/{value(item, '00091001')}").json()
        assert stored["verdict"] == value(item, "00091002")
        assert stored["sop_instance_uid"] == value(item, "00081155")


def test_twenty_times_is_one_result(make_site: Any, connect: Any) -> None:
    site = make_site()
    answers = [send(connect(site), body(*[chest(1)] * 10)).json() for _ in range(2)]
    ids = {value(item, "00091001") for document in answers for item in document[STORED]["Value"]}
    assert len(ids) == 1
    assert sum(len(document[STORED]["Value"]) for document in answers) == 20


def test_a_part_is_refused_and_the_others_are_not(client: Any) -> None:
    cut = chest(3)[:-100]
    report = dicom(ramp(64, 80), 12, SOPInstanceUID="2.25.4", PixelData=None)
    response = send(client, body(chest(1), cut, report, b"no DICOM at all", chest(2, Modality="CT")))
    assert response.status_code == 202
    document = response.json()
    assert [value(item, "00081155") for item in document[STORED]["Value"]] == ["2.25.1"]
    reasons = {value(item, "00091003"): value(item, "00081197") for item in document[FAILED]["Value"]}
    assert reasons == {"not_decodable": 0xC000, "no_pixel_data": 0x0122, "modality_not_accepted": 0x0110}
    (other,) = document[OTHERS]["Value"]
    assert (value(other, "00081197"), value(other, "00091003")) == (0xC000, "not_decodable")
    assert "00081155" not in other


def test_where_nothing_was_committed(client: Any) -> None:
    response = send(client, body(chest(1, Modality="CT")))
    assert response.status_code == 409
    assert STORED not in response.json()


def test_a_part_of_another_type_is_no_instance(client: Any) -> None:
    response = send(client, body(chest(1), media_type="image/jpeg"))
    assert response.status_code == 409
    (item,) = response.json()[FAILED]["Value"]
    assert value(item, "00091003") == "unsupported_media_type"


def test_the_body_is_never_held(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed before the next part has been sent cannot have waited for the end of the body."""
    seen: list[int] = []
    real = stow._one

    async def counted(*arguments: Any) -> Outcome:
        outcome = await real(*arguments)
        seen.append(len(seen))
        return outcome

    monkeypatch.setattr(stow, "_one", counted)

    async def stream() -> AsyncIterator[bytes]:
        for number in range(5):
            yield body(chest(number), end=b"")
            # A part ends where the next boundary begins, so all but the last sent are complete; one thread works.
            for _ in range(500):
                if len(seen) >= number - 1:
                    break
                await asyncio.sleep(0.02)
            assert len(seen) >= number - 1
        yield b"--edge--\r\n"

    response = send(client, stream())
    assert len(response.json()[STORED]["Value"]) == 5


def test_our_own_picture_is_not_analysed_again(client: Any) -> None:
    header = {"Manufacturer": "Overread", "ManufacturerModelName": "Overread results"}
    response = send(client, body(chest(1, **header)))
    assert response.status_code == 409
    (item,) = response.json()[FAILED]["Value"]
    assert value(item, "00091003") == "own_output"
    refused = client.predict(chest(1, **header), "application/dicom")
    assert (refused.status_code, refused.json()["code"]) == (422, "own_output")
    assert client.predict(chest(1, Manufacturer="Overread"), "application/dicom").status_code == 200


@pytest.mark.parametrize(
    ("content", "media_type", "status", "code"),
    [
        (b"", RELATED, 400, "empty_body"),
        (b"--edge--\r\n", RELATED, 400, "empty_body"),
        (body(b"x", end=b""), RELATED, 400, "bad_request"),
        (b"no boundary", RELATED, 400, "bad_request"),
        (body(b"x"), 'multipart/related; type="application/dicom"', 400, "bad_request"),
        (body(b"x"), 'multipart/related; type="application/dicom+json"; boundary=edge', 415, "unsupported_media_type"),
        (body(b"x"), "multipart/form-data; boundary=edge", 415, "unsupported_media_type"),
        (body(b"x"), "application/dicom", 415, "unsupported_media_type"),
        (body(*[b""] * 1001), RELATED, 400, "bad_request"),
    ],
)
def test_requests_that_are_refused_as_a_whole(client: Any, content: bytes, media_type: str, status: int, code: str) -> None:
    response = send(client, content, media_type)
    assert (response.status_code, response.json()["code"]) == (status, code)


def test_other_refusals_of_a_request(client: Any) -> None:
    good = body(chest(1))
    assert send(client, good, query="?model=none").json()["code"] == "unknown_model"
    assert send(client, good, query="?StudyInstanceUID=1.2").json()["code"] == "bad_request"
    assert send(client, good, accept="application/dicom+xml").json()["code"] == "not_acceptable"
    assert send(client, good, **{"content-encoding": "gzip"}).json()["code"] == "unsupported_media_type"
    assert send(client, good, accept="application/dicom+json", query="?model=tiny").status_code == 200


def test_an_instance_beyond_the_limit(make_site: Any, connect: Any) -> None:
    site = make_site(max_body_bytes=12_000)
    client = connect(site)
    small = chest(1)
    assert 10_000 < len(small) < 12_000
    assert send(client, body(small, small, small)).status_code == 200, "the limit is a part's, not the body's"
    response = send(client, body(small, dicom(ramp(80, 80), 12)))
    assert (response.status_code, response.json()["code"]) == (413, "too_large")


def test_a_slow_sender(make_site: Any, connect: Any) -> None:
    client = connect(make_site(body_timeout_seconds=0.5))

    async def stream() -> AsyncIterator[bytes]:
        yield body(chest(1), end=b"")
        await asyncio.sleep(30)

    response = send(client, stream())
    assert (response.status_code, response.json()["code"]) == (408, "request_timeout")


def test_a_busy_service_is_asked_again(client: Any, make_site: Any, connect: Any) -> None:
    site = make_site(threads=1, queue=0)

    def full() -> Any:
        raise Refusal("overloaded")

    async def refuse(*_: Callable[[], Any]) -> Any:
        return full()

    site.engine.run_and_commit = refuse
    response = send(connect(site), body(chest(1), chest(2)))
    assert response.status_code == 503
    assert response.headers["retry-after"]


def test_statuses() -> None:
    good, bad, busy = (
        Outcome("1", "2"),
        Outcome("1", "2", refusal=Refusal("too_small")),
        Outcome("1", "2", refusal=Refusal("overloaded")),
    )
    assert [status_of(list(case)) for case in ((good,), (good, bad), (good, busy), (bad,), (bad, busy))] == [
        200,
        202,
        202,
        409,
        409,
    ]
    with pytest.raises(Refusal) as caught:
        status_of([busy, busy])
    assert caught.value.code == "overloaded"


def test_a_response_names_no_uid_that_is_none() -> None:
    document = answer([Outcome(None, None, refusal=Refusal("not_decodable"))])
    assert set(document) == {"00081190", OTHERS}


def test_uids_come_from_the_meta_header() -> None:
    assert meta_uids(chest(7)) == ("1.2.840.10008.5.1.4.1.1.1.1", "2.25.7")
    for broken in (b"", b"x" * 400, chest(7)[:140], chest(7).replace(b"2.25.7", b"CANARY")):
        assert meta_uids(broken) == (None, None)


def test_failure_reasons_are_the_documented_ones() -> None:
    table = (ROOT / "docs" / "http.md").read_text().partition("| Failure Reason |")[2].partition("\n\n")[0]
    documented: dict[str, int] = {}
    for line in table.splitlines():
        if number := re.match(r"\| ([0-9A-F]{4}) \((\d+)\)", line):
            assert int(number[1], 16) == int(number[2])
            documented |= dict.fromkeys(re.findall(r"`(\w+)`", line), int(number[2]))
    assert documented == FAILURES
