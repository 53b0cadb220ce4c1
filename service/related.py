"""multipart/related, the form in which DICOMweb carries instances both ways; read part by part, so that no body is held."""

from __future__ import annotations

import logging
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from models.errors import Refusal

RELATED = "multipart/related"


def silent_parser(boundary: bytes, callbacks: Any) -> MultipartParser:
    """Return a parser of a multipart body that logs nothing: its lines quote the body, and a caller could cause any number.

    Raises
    ------
    FormParserError
        If the boundary cannot be one.
    """
    library = logging.getLogger("python_multipart")
    if library.level != logging.CRITICAL:  # setting a level empties every logger's cache
        library.setLevel(logging.CRITICAL)
    return MultipartParser(boundary, callbacks)


class RelatedParts:
    """Gives the parts of a body as they become complete.

    Parameters
    ----------
    boundary : bytes
    limit : int, bytes
        Of one part.
    most : int
        Parts at most.

    Attributes
    ----------
    begun : int
        Parts that have begun.
    ended : bool
        Whether the last boundary was met.
    size : int, bytes
        Held of the part that is not complete yet.

    Raises
    ------
    Refusal
        ``bad_request`` for a boundary that cannot be one; RFC 2046 allows 70 bytes, and 256 are taken.
    """

    def __init__(self, boundary: bytes, limit: int, most: int) -> None:
        self._complete: list[tuple[str, bytes]] = []
        self.ended = False
        self.begun = 0
        self._limit = limit
        self._most = most
        self._headers: dict[str, str] = {}
        self._field = self._value = b""
        self._chunks: list[bytes] = []
        self.size = 0
        callbacks: Any = {
            "on_part_begin": self._begin,
            "on_part_data": self._data,
            "on_part_end": self._end_part,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_end": self._end,
        }
        try:
            self._parser = silent_parser(boundary, callbacks)
        except FormParserError as error:
            raise Refusal("bad_request", "The boundary of the multipart body cannot be one.") from error

    def write(self, data: bytes) -> list[tuple[str, bytes]]:
        """Take more of the body; return the (Content-Type, content) of each part that is complete now.

        Raises
        ------
        Refusal
            ``bad_request`` for a broken body or too many parts, ``too_large`` for a part beyond the limit.
        """
        try:
            self._parser.write(data)
        except (FormParserError, ValueError) as error:
            raise Refusal("bad_request", "The multipart body is broken.") from error
        complete, self._complete = self._complete, []
        return complete

    def _begin(self) -> None:
        self.begun += 1
        if self.begun > self._most:
            raise Refusal("bad_request", f"A request may have {self._most} instances at most.")
        self._headers, self._chunks, self.size = {}, [], 0

    def _data(self, data: bytes, start: int, end: int) -> None:
        self.size += end - start
        if self.size > self._limit:
            raise Refusal("too_large", f"An instance may have {self._limit} bytes at most.")
        self._chunks.append(data[start:end])

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._field.decode("latin-1").lower()] = self._value.decode("latin-1")
        self._field = self._value = b""

    def _end_part(self) -> None:
        self._complete.append((self._headers.get("content-type", ""), b"".join(self._chunks)))
        self._chunks, self.size = [], 0

    def _end(self) -> None:
        self.ended = True
