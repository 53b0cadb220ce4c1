"""The BentoML service. BentoML brings the process manager, the workers and the build; our own ASGI application answers.

A middleware hands every request to :class:`service.api.Api` before BentoML's own routes, which accept bodies without a limit,
fetch URLs they are told to, and use paths as metric labels (docs/adr/0001).

The process manager imports this file before it starts a worker, only to learn how the service is run. What the service is made of
(:mod:`service.worker`) takes more than a second to import, and is left to the workers.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import bentoml

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from service.worker import Worker


class Front:
    """Answers every request itself; only the life of the worker goes on to BentoML."""

    def __init__(self, app: ASGIApp) -> None:
        from service.worker import api

        self.bento, self._api = app, api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the lifespan on."""
        await (self.bento if scope["type"] == "lifespan" else self._api)(scope, receive, send)


@bentoml.service(
    name="overread",
    workers=1,
    traffic={"timeout": 120},  # BentoML keeps a timer a request for as long; body, queue and work stay below it
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},  # a span for every chunk of a body, made and thrown away, costs milliseconds an image
)
class Overread:
    """Loads the models when a worker starts, and finishes what was admitted when it stops."""

    def __init__(self) -> None:
        from service.worker import Worker

        self.worker: Worker = Worker()

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def close(self) -> None:
        """Stop taking images, finish those admitted, close the store."""
        self.worker.close()


if "--worker-id" in sys.argv:  # here, because uvicorn chooses its protocol before a worker's service is made
    from service.heads import bound_heads

    bound_heads()
Overread.add_asgi_middleware(Front)  # type: ignore[attr-defined]
