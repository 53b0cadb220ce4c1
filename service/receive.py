"""``overread receive``: what comes by C-STORE is analysed, and its results are in the archive before the sender is answered.

The pixels are not kept. So success is answered once the result is committed and, where there is an archive, once that has the
objects; until then the instance is the sender's, who sends it again. UIDs of objects follow from their verdict, so nothing that
was done before a crash is there twice when it is done again.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING

from models.command import command_parser
from models.dicom import read_elements
from models.errors import Refusal
from models.imaging import DEFAULT_LIMITS, refusing
from service.access import is_loopback
from service.analysis import Site
from service.arrivals import DONE, FAILED, OUTSIDE, SKIPPED, Arrivals, Object
from service.dicom_results import Written, dicom_bytes
from service.dicomweb import Archive
from service.outgoing import analyse
from service.places import place_of
from service.settings import Settings, drop_proxies, read_settings
from service.single import only_one
from service.telemetry import log_fault, logger

if TYPE_CHECKING:
    from service.dimse import Answer

SUCCESS, OUT_OF_RESOURCES, NO_MATCH, CANNOT_UNDERSTAND, NOT_FOR_THE_MODEL = 0x0000, 0xA700, 0xA900, 0xC000, 0xC001
"""Statuses (PS3.4, B.2.3): stored; send again; the data set is not what the request says; refused; not an image for the model."""
AGAIN = frozenset({"overloaded", "deadline_exceeded", "not_ready", "storage_full", "storage_unavailable", "archive_unavailable"})
"""Codes that say nothing about the instance: the sender shall send it again."""
STOP_SECONDS = 30.0
ANSWER_SECONDS = 5.0
"""For the last answers to be handed to their associations, once everything that was under way is decided."""


class Receiver:
    """Takes instances for one site. Thread-safe."""

    def __init__(self, site: Site, archive: Archive | None) -> None:
        self._site, self._archive, self._settings = site, archive, site.settings
        self._arrivals = Arrivals(site.store)
        self._turns = threading.Semaphore(site.settings.threads)
        self._changed, self._under_way, self._stopping = threading.Condition(), 0, False
        site.predictor(site.settings.pacs_model)  # a model that is not there is no instance's fault
        if left := self._arrivals.abandon():
            logger().warning("received_unanswered", extra={"fields": {"number": left}})

    def stop(self, seconds: float = STOP_SECONDS) -> bool:
        """Refuse what comes from now on, and wait until all that is under way is answered; return whether it was."""
        with self._changed:
            self._stopping = True
            return self._changed.wait_for(lambda: not self._under_way, seconds)

    def __call__(self, data: bytes | None, sop_class_uid: str, sop_instance_uid: str) -> Answer:
        """Take one instance.

        Parameters
        ----------
        data : bytes or None
            The file; None is one that was too large to be held.
        sop_class_uid, sop_instance_uid : str
            As the request states them.

        Returns
        -------
        status : int
            :data:`SUCCESS` only when everything is committed.
        comment : str
            Error code, or empty.
        """
        with self._changed:
            if self._stopping:
                return OUT_OF_RESOURCES, "not_ready"
            self._under_way += 1
        try:
            return self._take(data, sop_class_uid, sop_instance_uid)
        except Refusal as refusal:  # not even its row could be written
            return _status(refusal.code), refusal.code
        # Whatever one instance can cause must not end the association without an answer
        except Exception as error:  # noqa: BLE001
            log_fault(error)
            return CANNOT_UNDERSTAND, "internal_error"
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def _take(self, data: bytes | None, sop_class_uid: str, sop_instance_uid: str) -> Answer:
        started = time.monotonic()
        number = self._arrivals.receive(sop_instance_uid)
        state, code, status = DONE, "", SUCCESS
        try:
            self._analyse(number, data, sop_class_uid, sop_instance_uid)
        except Refusal as refusal:
            state, code = SKIPPED if refusal.code in OUTSIDE else FAILED, refusal.code
            status = NO_MATCH if isinstance(refusal, _Mismatch) else _status(code)
        except Exception as error:  # noqa: BLE001
            log_fault(error)
            state, code, status = FAILED, "internal_error", CANNOT_UNDERSTAND
        if state != DONE:
            self._arrivals.settle(number, state, code)
        fields = {"row": number, "state": state, "code": code or "ok", "ms": round(1000 * (time.monotonic() - started), 1)}
        logger().info("received_instance", extra={"fields": fields})
        return status, code

    def _analyse(self, number: int, data: bytes | None, sop_class_uid: str, sop_instance_uid: str) -> None:
        if data is None:
            raise Refusal("too_large")
        with refusing():
            uids = read_elements(data, DEFAULT_LIMITS)
        stated = [uids.get(keyword, "") for keyword in ("SOPClassUID", "SOPInstanceUID")]
        if not any(stated):
            raise Refusal("not_decodable")
        if stated != [sop_class_uid, sop_instance_uid]:
            raise _Mismatch("inconsistent_image", "The data set is of another class or instance than the request says.")

        def earlier(modality: str, uid: str) -> Written | None:
            found = self._arrivals.latest(number, modality, uid)
            return Written(found.series_instance_uid, found.sop_instance_uid) if found else None

        if not self._turns.acquire(timeout=self._settings.deadline_seconds):
            raise Refusal("deadline_exceeded")
        try:
            reply, objects = analyse(self._site, data, earlier)
        finally:
            self._turns.release()
        if self._archive is None:  # the settings' default asks for a report, which has no place to go
            objects = []
        elif objects:
            self._archive.store({str(item.SOPInstanceUID): dicom_bytes(item) for item in objects})
        kept = [Object(str(item.Modality), str(item.SeriesInstanceUID), str(item.SOPInstanceUID)) for item in objects]
        self._arrivals.settle(number, DONE, "", reply.stored.result["id"], place_of("", uids), kept)


class _Mismatch(Refusal):
    """The data set is not the one that the request announced."""


def _status(code: str) -> int:
    if code in AGAIN:
        return OUT_OF_RESOURCES
    return NOT_FOR_THE_MODEL if code in OUTSIDE else CANNOT_UNDERSTAND


def check_settings(settings: Settings) -> None:
    """Check who may send, before anything is listened on.

    Raises
    ------
    Refusal
        ``config_invalid`` for another address than this machine's without OVERREAD_DIMSE_CALLERS.
    """
    if not is_loopback(settings.dimse_host) and not settings.dimse_callers:
        raise Refusal("config_invalid", "OVERREAD_DIMSE_CALLERS must name who may send, unless only this machine can.")


def main(argv: list[str]) -> int:
    """Run ``overread receive``."""
    parser = command_parser(
        "receive",
        "Take images by C-STORE, analyse them, and store the results in the archive of OVERREAD_PACS_URL, if there "
        "is one. docs/pacs.md says how to set it up; the settings begin with OVERREAD_DIMSE_.",
        "overread receive",
    )
    parser.parse_args(argv)
    from service.dimse import Server  # an extra, and only this verb needs it

    settings = read_settings()
    check_settings(settings)
    drop_proxies()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    archive = Archive(settings) if settings.pacs_url else None
    site = Site(settings)
    try:
        with only_one(site.store, "receive"):  # it gives up what another left unanswered
            receiver = Receiver(site, archive)
            server = Server(settings, receiver)
            logger().info("receive_ready", extra={"fields": {"port": server.port}})
            stop.wait()
            answered = receiver.stop() and server.answered(ANSWER_SECONDS)
            server.close()
    finally:
        site.close()
        if archive is not None:
            archive.close()
    return 0 if answered else 1
