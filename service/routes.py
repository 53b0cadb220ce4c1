"""Paths to routes, and what a handler gets of a request."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from models.errors import Refusal
from service.access import ACCESS, Caller
from service.audit import Who
from service.bodies import Held
from service.wall import media_type_of, read_body

if TYPE_CHECKING:
    from service.analysis import Site

Document = TypeVar("Document", bound=BaseModel)

FORMS: dict[str, str] = {
    "result_id": "[0-9a-f]{64}",
    "image_sha256": "[0-9a-f]{64}",
    "item_id": "[1-9][0-9]{0,14}",
    "lease_id": "[0-9a-f]{32}",
    "file": "[a-z0-9-]+[.](?:css|js|svg)",
}
"""Parameter of a path -> its form, a regular expression; a path in which it has another form is no route."""
MAX_JSON_BYTES = 1024 * 1024
MAX_JSON_VALUES = 1_000_000
"""Of one document. Outlines of 12 corners of 10,000 objects have half as many."""


def _pattern(route: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", route)
    return re.compile("".join(re.escape(part) if i % 2 == 0 else f"(?P<{part}>{FORMS[part]})" for i, part in enumerate(parts)))


_PLAIN = frozenset(route for _, route in ACCESS if "{" not in route)
_PATTERNS = {route: _pattern(route) for _, route in ACCESS if "{" in route}


def match(path: str) -> tuple[str | None, dict[str, str]]:
    """Return the route of a path, or None, and its parameters."""
    if path in _PLAIN:
        return path, {}
    for route, pattern in _PATTERNS.items():
        if found := pattern.fullmatch(path):
            return route, found.groupdict()
    return None, {}


def check_values(body: bytes) -> None:
    """Refuse a document of so many values that parsing it would keep everybody else waiting, before it is parsed.

    The parser holds the interpreter's lock from beginning to end, so it stops the event loop from any thread; how long it takes
    depends on how many values there are, hardly on how long they are. What begins or parts values is counted, in texts too.

    Raises
    ------
    Refusal
        ``too_large``.
    """
    found = 0
    for start in range(0, len(body), 65536):
        found += sum(body.count(mark, start, start + 65536) for mark in (b"[", b"{", b","))
        if found > MAX_JSON_VALUES:
            raise Refusal("too_large", f"A document may have {MAX_JSON_VALUES} values at most.")


def allowed(route: str) -> str:
    """Return the methods that a route answers to, as the header ``Allow`` names them."""
    return ", ".join("GET, HEAD" if method == "GET" else method for method, known in ACCESS if known == route)


@dataclass(frozen=True)
class Call:
    """A request that may be made.

    Attributes
    ----------
    request : Request
    caller : Caller
        Who makes it.
    parameters : dict of str to str
        Of the path.
    held : Held
        What its body takes of the memory.
    """

    request: Request
    caller: Caller
    parameters: dict[str, str]
    held: Held

    def query(self, *names: str) -> dict[str, str]:
        """Return the query; an unknown or repeated parameter is refused rather than passed over.

        Raises
        ------
        Refusal
            ``bad_request``.
        """
        items = self.request.query_params.multi_items()
        query = dict(items)
        if len(query) < len(items) or not set(query) <= set(names):
            raise Refusal("bad_request", f"The query may hold {', '.join(sorted(names)) or 'nothing'}, each once.")
        return query

    def site(self, named: str | None, sites: Collection[str]) -> str:
        """Return the place that an image comes from: the one that is named, else the token's, else none (empty).

        Raises
        ------
        Refusal
            ``unknown_site`` for a name that is none of ``sites``, ``forbidden`` for another than the token's.
        """
        own = self.caller.site
        if named is None:
            return own
        if named not in sites:
            raise Refusal("unknown_site")
        if own and named != own:
            raise Refusal("forbidden", "The token is that of another site.")
        return named

    @property
    def who(self) -> Who:
        """Who makes it, for the audit."""
        return Who(self.caller.reader, self.caller.role)

    @property
    def accept(self) -> str:
        """The Accept header."""
        return ", ".join(self.request.headers.getlist("accept"))

    async def document(self, kind: type[Document], seconds: float, limit: int = MAX_JSON_BYTES) -> Document:
        """Read the body, a JSON document.

        Parameters
        ----------
        kind : type
            Its pydantic class.
        seconds : float
            For the whole body.
        limit : int, bytes

        Raises
        ------
        Refusal
            ``unsupported_media_type`` if it is not declared to be JSON, ``too_large``, ``request_timeout``, ``bad_request``
            if it is no such document; the message names the field, never its value.
        """
        media_type, _ = media_type_of(self.request.headers.get("content-type"))
        if media_type != "application/json" or self.request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal("unsupported_media_type", "Content-Type must be application/json, without a Content-Encoding.")
        body = await read_body(self.request, limit, seconds, self.held)
        check_values(body)
        try:
            return kind.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            # A name in the body is the caller's text too: only names that the class knows are repeated
            known = first["loc"][0] if first["loc"] and first["loc"][0] in kind.model_fields else "the document"
            raise Refusal("bad_request", f"The body is not as documented: {known} ({first['type']}).") from None


Handler = Callable[["Site", Call], Awaitable[Response]]
"""Answers a request to one route."""


def json_response(document: BaseModel, status: int = 200, media_type: str = "application/json") -> Response:
    """Return a document as a response."""
    # allow_nan=False: a value that is not a number must fail here, not become null.
    text = json.dumps(document.model_dump(mode="json", exclude_none=False), allow_nan=False)
    return Response(text, status, media_type=media_type)
