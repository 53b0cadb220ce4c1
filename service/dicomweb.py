"""The archive: the only outbound HTTP. Orthanc's changes, QIDO-RS, WADO-RS and STOW-RS, to the hosts that the settings allow.

No redirect is followed, no proxy is used, and no URL comes from an answer: each is built here from the configured one.
"""

from __future__ import annotations

import json
import logging
import re
import ssl
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import httpx

from models.errors import Refusal
from service.access import is_loopback
from service.places import Header, Place, answered, flat, path_of
from service.related import RELATED, RelatedParts
from service.settings import Settings
from service.wall import media_type_of

DICOM_JSON = "application/dicom+json"
MAX_JSON_BYTES = 32 * 1024 * 1024
PAGE = 200
"""Changes asked for at once."""
AWAY = frozenset({401, 403, 408, 429, 502, 503, 504})
"""Statuses that may say something about the archive or our credentials rather than about one object; so may each redirect."""
_IDENTIFIER = re.compile("[!-~]{1,64}")
"""Orthanc's have 44 characters; the database keeps 64 at most."""
_KEEP_ALIVE_SECONDS = 0.5  # Orthanc closes after one; a request on a connection that closes meanwhile would fail


@dataclass(frozen=True)
class Changes:
    """A page of Orthanc's log.

    Attributes
    ----------
    arrived : tuple of (int, str)
        Sequence number and identifier of each new instance.
    last : int
        Sequence number that the page reaches; of an empty one, the last in the log.
    anchor : str
        Identifier of the resource of that entry; empty where the page has none.
    done : bool
        Whether there is no more now.
    """

    arrived: tuple[tuple[int, str], ...]
    last: int
    anchor: str
    done: bool


def _unavailable(detail: str) -> Refusal:
    return Refusal("archive_unavailable", detail)


def _refused(detail: str) -> Refusal:
    return Refusal("archive_refused", detail)


def check_url(url: str, hosts: Sequence[str], secret: bool) -> None:
    """Check an archive's URL before anything is sent to it.

    Raises
    ------
    Refusal
        ``config_invalid`` for another scheme than http and https, a user or query in the URL, a host outside the list, or
        secrets that would go over a network in the clear.
    """
    parts = urlsplit(url)
    try:
        host = parts.hostname or ""
        parts.port  # noqa: B018  (raises for one that is no number)
    except ValueError as error:
        raise Refusal("config_invalid", "The archive's URL is malformed.") from error
    if parts.scheme not in {"http", "https"} or not host or "@" in parts.netloc or parts.query or parts.fragment:
        raise Refusal(
            "config_invalid", "The archive's URL must be http(s)://HOST[:PORT][/PATH]; credentials have their settings."
        )
    if host not in hosts and not is_loopback(host):
        raise Refusal("config_invalid", "The archive's host is not in OVERREAD_PACS_HOSTS.")
    if secret and parts.scheme == "http" and not is_loopback(host):
        raise Refusal("config_invalid", "Credentials go to another machine over https only.")


class Archive:
    """A DICOMweb archive; with ``settings.pacs_orthanc_url`` an Orthanc, whose log of changes is read. Thread-safe.

    Every method raises :class:`Refusal`: ``archive_unavailable`` where all requests may fail for now (:meth:`probe` tells),
    ``archive_refused`` where this one did, ``not_found`` where the archive does not have (or no longer has) what was asked for.
    """

    def __init__(self, settings: Settings) -> None:
        user, token = settings.pacs_user, settings.secret("pacs_token_file")
        self._web = (settings.pacs_url or "").rstrip("/")
        self._orthanc = (settings.pacs_orthanc_url or "").rstrip("/")
        self._limit = settings.max_body_bytes
        self._seconds = settings.pacs_timeout_seconds
        for url in filter(None, (self._web, self._orthanc)):
            check_url(url, settings.pacs_hosts, bool(user or token or settings.pacs_certificate_file))
        if not self._web:
            raise Refusal("config_invalid", "OVERREAD_PACS_URL must be set: the archive's DICOMweb address.")
        for name in ("httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)  # below it they log every URL, and UIDs are in those
        self._client = httpx.Client(
            auth=httpx.BasicAuth(user, settings.secret("pacs_password_file")) if user else None,
            headers={"accept-encoding": "identity"} | ({"authorization": f"Bearer {token}"} if token else {}),
            timeout=self._seconds,
            follow_redirects=False,
            trust_env=False,  # neither proxies nor a .netrc
            verify=_tls(settings),
            limits=httpx.Limits(keepalive_expiry=_KEEP_ALIVE_SECONDS),
        )

    @property
    def has_log(self) -> bool:
        """Whether the archive has a log of changes; otherwise it is asked what it holds."""
        return bool(self._orthanc)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _send(
        self, method: str, url: str, limit: int, content: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, str, bytes]:
        """Return status, Content-Type and body; the body never grows beyond ``limit``, the time beyond ten time-outs."""
        end = time.monotonic() + 10 * self._seconds
        chunks: list[bytes] = []
        size = 0
        try:
            with self._client.stream(method, url, content=content, headers=headers) as response:
                for chunk in response.iter_bytes():
                    chunks.append(chunk)
                    size += len(chunk)
                    if size > limit:
                        raise Refusal("too_large", f"The archive's answer has more than {limit} bytes.")
                    if time.monotonic() > end:
                        raise _unavailable("The archive answers too slowly.")
                status, kind = response.status_code, response.headers.get("content-type", "")
        except (httpx.HTTPError, httpx.InvalidURL) as error:  # their messages hold the URL
            raise _unavailable(f"The archive cannot be reached ({type(error).__name__}).") from None
        if 300 <= status < 400 or status in AWAY:
            raise _unavailable(f"The archive answered {status}.")
        return status, kind, b"".join(chunks)

    def _json(self, url: str) -> Any:
        status, _, content = self._send("GET", url, MAX_JSON_BYTES, headers={"accept": f"{DICOM_JSON}, application/json"})
        if status in {404, 410}:
            raise Refusal("not_found", "The archive does not have it.")
        if status == 204:
            return []
        if status != 200:
            raise _refused(f"The archive answered {status}.")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise _refused("The archive's answer is not JSON.") from None

    def changes(self, since: int, limit: int = PAGE) -> Changes:
        """Return what Orthanc's log holds after a sequence number."""
        return _page(self._json(f"{self._orthanc}/changes?since={since}&limit={limit}"))

    def last_change(self) -> Changes:
        """Return the last entry of Orthanc's log."""
        return _page(self._json(f"{self._orthanc}/changes?last"))

    def probe(self) -> None:
        """Ask each address for something cheap: only where the archive as a whole is away does it raise ``archive_unavailable``.

        Any answer to that will do but a redirect, a fault of the server's (5xx) or a refusal of our credentials.
        """
        urls = [f"{self._web}/studies?limit=1"]
        if self._orthanc:
            urls.append(f"{self._orthanc}/changes?last")
        for url in urls:
            try:
                status, _, _ = self._send("GET", url, MAX_JSON_BYTES, headers={"accept": f"{DICOM_JSON}, application/json"})
            except Refusal as refusal:
                if refusal.code == "archive_unavailable":
                    raise
                continue  # more than was asked for is an answer
            if status >= 500:
                raise _unavailable(f"The archive answered {status}.")

    def query(self, resource: str, parameters: Mapping[str, str]) -> list[Header]:
        """Return one page of what a search by QIDO-RS finds; it is empty where there is no match.

        Parameters
        ----------
        resource : str
            Path of a search resource, such as ``/studies``.
        parameters : mapping of str to str
            Attributes to match, ``limit``, ``offset``.
        """
        found = self._json(f"{self._web}{resource}?{urlencode(parameters, quote_via=quote)}")
        if not isinstance(found, list):
            raise _refused("The archive's list is malformed.")
        return [flat(item) for item in found]

    def header(self, place: Place) -> Header:
        """Return what the archive knows of an instance without its pixels."""
        if self._orthanc:
            tags = self._json(f"{self._orthanc}/instances/{quote(place.reference, safe='')}/simplified-tags")
            if not isinstance(tags, dict):
                raise _refused("The archive's header is malformed.")
            return {str(name): value.strip() for name, value in tags.items() if isinstance(value, str)}
        found = self._json(f"{self._web}{path_of(place)}/metadata")
        if not isinstance(found, list) or len(found) != 1:
            raise _refused("The archive's header is malformed.")
        return flat(found[0])

    def retrieve(self, place: Place) -> bytes:
        """Return an instance's file as the archive keeps it, by WADO-RS."""
        accept = f'{RELATED}; type="application/dicom"; transfer-syntax=*'
        status, kind, content = self._send("GET", self._web + path_of(place), self._limit + 65536, headers={"accept": accept})
        if status in {404, 410}:
            raise Refusal("not_found", "The archive does not have the instance any more.")
        if status != 200:
            raise _refused(f"The archive answered {status}.")
        media_type, options = media_type_of(kind)
        if media_type == "application/dicom":
            return content
        if media_type != RELATED or not options.get(b"boundary"):
            raise _refused("The archive's answer is no DICOM instance.")
        try:
            parts = RelatedParts(options[b"boundary"], self._limit, 1).write(content)
        except Refusal as refusal:
            raise refusal if refusal.code == "too_large" else _refused("The archive's answer is malformed.") from refusal
        if len(parts) != 1:
            raise _refused("The archive's answer is malformed.")
        return parts[0][1]

    def store(self, objects: Mapping[str, bytes]) -> None:
        """Store objects (SOP Instance UID -> file) by STOW-RS. What the archive holds already counts as stored.

        200 may have failures inside, and its payload may be lost on the way: of an object that the answer does not name, the
        archive is asked whether it has it.

        Raises
        ------
        Refusal
            ``archive_refused`` unless the archive has said of each object that it is stored.
        """
        boundary = uuid.uuid4().hex
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = b"".join(head + content + b"\r\n" for content in objects.values()) + f"--{boundary}--\r\n".encode()
        headers = {"content-type": f'{RELATED}; type="application/dicom"; boundary={boundary}', "accept": DICOM_JSON}
        status, _, content = self._send("POST", f"{self._web}/studies", MAX_JSON_BYTES, body, headers)
        if status not in {200, 202, 409}:
            raise _refused(f"The archive answered {status} to a result.")
        stored, reasons = answered(content)
        if reasons:
            raise _refused(f"The archive did not store a result (reason {', '.join(f'{each:04X}' for each in reasons)}).")
        if not all(self._holds(uid) for uid in objects.keys() - stored):
            raise _refused("The archive does not say that a result is stored, and does not find it.")

    def _holds(self, uid: str) -> bool:
        try:
            found = self.query("/instances", {"SOPInstanceUID": uid, "limit": "1"})
        except Refusal as refusal:
            if refusal.code == "not_found":  # some archives say so of a search without a match
                return False
            raise
        return uid in {header.get("SOPInstanceUID") for header in found}


def _tls(settings: Settings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(settings.pacs_ca_file) if settings.pacs_ca_file else None)
        if settings.pacs_certificate_file:
            context.load_cert_chain(settings.pacs_certificate_file)
    except (OSError, ssl.SSLError):
        raise Refusal("config_invalid", "The certificates for the archive cannot be read.") from None
    return context


def _page(document: Any) -> Changes:
    try:
        entries = [(int(item["Seq"]), str(item["ID"]), item["ChangeType"]) for item in document["Changes"]]
        arrived = tuple((number, identifier) for number, identifier, kind in entries if kind == "NewInstance")
        last, done = int(document["Last"]), bool(document["Done"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise _refused("The archive's log is malformed.") from None
    numbers = [last, *(number for number, _, _ in entries)]
    if not all(_IDENTIFIER.fullmatch(identifier) for _, identifier, _ in entries) or not all(0 <= n < 2**63 for n in numbers):
        raise _refused("The archive's log is malformed.")
    if entries:
        return Changes(arrived, entries[-1][0], entries[-1][1], done)
    return Changes((), last, "", True)
