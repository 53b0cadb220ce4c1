"""A C-STORE and C-ECHO server on pynetdicom, within limits that the library does not have: the only DIMSE associations.

The library reads a PDU of any length, holds a data set of any size, takes requests ahead of its answers, and lets a TLS handshake
hold up everybody else. Each of these is bounded here, so that memory is at most what the settings allow (PS3.7, PS3.8).
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from pydicom import uid
from pydicom.dataset import Dataset
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from models.dicom_syntaxes import SYNTAXES
from models.errors import Refusal
from service.dicom_results import make_uid
from service.settings import Settings

MAX_PDU_BYTES = 128 * 1024
"""Longest PDU that is agreed on; the one that asks for an association has no more either."""
MAX_COMMAND_BYTES = 64 * 1024
MAX_WAITING = 8
"""Requests without a data set that wait in an association."""
DISCARDED = 4
"""A data set beyond the limit is read to its end, and answered; beyond this many times the limit the association is aborted."""
SPARE_CONNECTIONS = 16
"""Connections beyond the associations, so that callers are told that there are too many; more are closed at once."""

SOP_CLASSES = (
    uid.ComputedRadiographyImageStorage,
    uid.DigitalXRayImageStorageForPresentation,
    uid.DigitalXRayImageStorageForProcessing,
    uid.DigitalMammographyXRayImageStorageForPresentation,
    uid.DigitalMammographyXRayImageStorageForProcessing,
    uid.DigitalIntraOralXRayImageStorageForPresentation,
    uid.DigitalIntraOralXRayImageStorageForProcessing,
    uid.CTImageStorage,
    uid.MRImageStorage,
    uid.UltrasoundImageStorage,
    uid.SecondaryCaptureImageStorage,
    uid.XRayAngiographicImageStorage,
    uid.XRayRadiofluoroscopicImageStorage,
    uid.PositronEmissionTomographyImageStorage,
    uid.VLEndoscopicImageStorage,
    uid.VLMicroscopicImageStorage,
    uid.VLSlideCoordinatesMicroscopicImageStorage,
    uid.VLPhotographicImageStorage,
    uid.VLWholeSlideMicroscopyImageStorage,
    uid.OphthalmicPhotography8BitImageStorage,
)
"""Classes that can hold one frame in the standard image module; all others are refused when the association is made."""

Answer = tuple[int, str]
"""Status (0000,0900) and Error Comment (0000,0902), which is empty where there is nothing to say."""
Receive = Callable[[bytes | None, str, str], Answer]
"""Called with a file, or None where it was too large, and the SOP Class and Instance UIDs of the request."""


class Server:
    """A server of the settings' address, title and callers, which is listening when it is made.

    Parameters
    ----------
    settings : Settings
    receive : callable
        Called for every C-STORE, in the association's own thread; what it returns is answered.

    Raises
    ------
    Refusal
        ``config_invalid`` if the address cannot be listened on, or the certificates cannot be read.
    """

    def __init__(self, settings: Settings, receive: Receive) -> None:
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)  # its lines hold UIDs and titles
        _config.LOG_HANDLER_LEVEL = "none"  # and would be made even so
        seconds = settings.dimse_timeout_seconds
        ae = AE(settings.dimse_title)
        ae.implementation_class_uid, ae.implementation_version_name = make_uid("implementation"), "OVERREAD"
        ae.maximum_pdu_size = MAX_PDU_BYTES
        ae.maximum_associations = settings.dimse_associations
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = seconds
        ae.require_called_aet, ae.require_calling_aet = True, list(settings.dimse_callers)
        ae.add_supported_context(Verification)
        for sop_class in SOP_CLASSES:
            ae.add_supported_context(sop_class, list(SYNTAXES))
        handlers = [(evt.EVT_C_STORE, lambda event: _answer(event, receive))]
        tls = _tls(settings)
        try:
            self._server = _Server(ae, settings, ae.supported_contexts, tls, handlers)
        except (OSError, OverflowError) as error:
            raise Refusal("config_invalid", "The address of OVERREAD_DIMSE_HOST and _PORT cannot be listened on.") from error
        self._ae = ae
        ae._servers.append(self._server)  # where the library's own start_server keeps it, and its shutdown looks for it
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="overread-dimse", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """TCP port that is listened on."""
        return int(self._server.server_address[1])

    def answered(self, seconds: float) -> bool:
        """Wait until whatever was decided is answered on its association, too; return whether it was."""
        end = time.monotonic() + seconds
        while any(cast(_Dimse, each.dimse).owes for each in self._ae.active_associations):
            if time.monotonic() >= end:
                return False
            time.sleep(0.01)
        return True

    def close(self) -> None:
        """Stop listening, and abort every association."""
        self._ae.shutdown()
        self._thread.join()


def _answer(event: evt.Event, receive: Receive) -> Dataset:
    request = cast(C_STORE, event.request)
    instance, sop_class = str(request.AffectedSOPInstanceUID), str(request.AffectedSOPClassUID)
    dimse = cast(_Dimse, event.assoc.dimse)
    answer, dimse.owes = Dataset(), True
    answer.Status, comment = receive(None if dimse.too_large else event.encoded_dataset(), sop_class, instance)
    if comment:
        answer.ErrorComment = comment
    return answer


class _Dimse(DIMSEServiceProvider):
    """Holds one request of an association at a time, and of its data set no more than the limit. For the thread that reads."""

    def __init__(self, assoc: Association, limit: int) -> None:
        super().__init__(assoc)
        self.too_large, self.owes = False, False
        self._limit, self._bytes, self._command_bytes, self._busy = limit, 0, 0, False

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take what a PDU holds, as far as it is within the limits."""
        fragments = primitive.presentation_data_value_list
        if self.message is None:
            self._bytes, self._command_bytes = 0, 0
        self._command_bytes += sum(len(data) for _, data in fragments if data and data[0] & 1)
        self._bytes += sum(len(data) - 1 for _, data in fragments if data and not data[0] & 1)
        if (
            not all(data for _, data in fragments)
            or self._busy  # no window for further requests was agreed on
            or self.msg_queue.qsize() > MAX_WAITING
            or self._command_bytes > MAX_COMMAND_BYTES
            or self._bytes > DISCARDED * self._limit
        ):
            self.dul.event_queue.put("Evt19")  # an invalid PDU: the association is aborted
            return
        self.too_large = self._bytes > self._limit
        if self.too_large:  # what is left says whether more follows
            left = [[context, data if data[0] & 1 else data[:1]] for context, data in fragments]
            cast(Any, primitive).presentation_data_value_list = left
        self._busy = any(data[0] & 3 == 2 for _, data in fragments)  # the data set's last fragment
        super().receive_primitive(primitive)

    def send_msg(self, primitive: Any, context_id: int) -> None:
        """Answer; whoever was answered may ask again."""
        self._busy = False
        super().send_msg(primitive, context_id)
        self.owes = False


class _Socket(AssociationSocket):
    def recv(self, nr_bytes: int) -> bytearray:
        """Read; a PDU that is longer than agreed on ends the connection before memory is taken for it."""
        if nr_bytes > MAX_PDU_BYTES:
            raise OSError("the PDU is too long")
        return super().recv(nr_bytes)


class _Handler(RequestHandler):
    def _create_association(self) -> Association:
        association = super()._create_association()
        cast(AssociationSocket, association.dul.socket).__class__ = _Socket  # the library has no way to name another
        association.dimse = _Dimse(association, cast(_Server, self.server).limit)
        return association


class _Server(ThreadedAssociationServer):
    daemon_threads = True

    def __init__(
        self, ae: AE, settings: Settings, contexts: list[PresentationContext], tls: ssl.SSLContext | None, handlers: list[Any]
    ) -> None:
        self.limit, self._seconds = settings.max_body_bytes, settings.dimse_timeout_seconds
        self._most, self._greeting = settings.dimse_associations + SPARE_CONNECTIONS, threading.Semaphore(SPARE_CONNECTIONS)
        address = (settings.dimse_host, settings.dimse_port)
        super().__init__(ae, address, settings.dimse_title, contexts, tls, handlers, request_handler=_Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; the handshake is done in a thread of its own, so that one who dawdles holds up nobody."""
        client, address = cast(socket.socket, self.socket).accept()
        client.settimeout(self._seconds)
        if self.ssl_context:
            client = self.ssl_context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        return client, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Tell whether there is room for a connection."""
        return len(self.active_associations) < self._most and self._greeting.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Greet, then let the association begin."""
        try:
            if isinstance(request, ssl.SSLSocket):
                request.do_handshake()
            super().process_request_thread(request, client_address)
        except OSError:
            self.shutdown_request(request)
        finally:
            self._greeting.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: the library would print the caller's address with a traceback."""


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.dimse_certificate_file is None:
        if settings.dimse_ca_file is not None:
            raise Refusal("config_invalid", "OVERREAD_DIMSE_CA_FILE needs OVERREAD_DIMSE_CERTIFICATE_FILE.")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.dimse_certificate_file)
        if settings.dimse_ca_file is not None:
            context.load_verify_locations(settings.dimse_ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError):
        raise Refusal("config_invalid", "The certificates of OVERREAD_DIMSE_* cannot be read.") from None
    return context
