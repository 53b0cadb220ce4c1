"""The page's files: static, the same for everyone, all of them from this repository."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from models.errors import Refusal

WEB = Path(__file__).parent / "web"
INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Ending of a name -> media type; files with another ending are not served."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page runs its own scripts and styles, none that stand in it, and speaks with this service alone."""
HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-cache",  # kept, and asked for each time whether it is still the same
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class PageFile:
    """A file of the page: its bytes, its media type and the digest by which a browser knows whether it has them."""

    content: bytes
    media_type: str
    tag: str


@lru_cache(maxsize=1)
def page_files() -> dict[str, PageFile]:
    """Return the page's files by their names, which are unique over all folders."""
    files: dict[str, PageFile] = {}
    for path in sorted(WEB.rglob("*")):
        if path.suffix in TYPES:
            assert path.name not in files, path.name
            content = path.read_bytes()
            files[path.name] = PageFile(content, TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return files


def page_response(request: Request, name: str) -> Response:
    """Return a file of the page, or that the browser has it.

    Raises
    ------
    Refusal
        ``not_found``.
    """
    file = page_files().get(name)
    if file is None:
        raise Refusal("not_found")
    headers = HEADERS | {"etag": file.tag}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers | {"content-type": file.media_type})
