"""The BentoML service. BentoML brings the process manager, the workers and the build; our own ASGI application answers.

A middleware hands every request to :class:`service.api.Api` before BentoML's own routes, which accept bodies without a limit,
fetch URLs they are told to, and use paths as metric labels (docs/adr/0001).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time

import bentoml
from starlette.types import ASGIApp, Receive, Scope, Send

from models.errors import Refusal
from service.access import check_bind
from service.analysis import Site
from service.api import Api
from service.heads import bound_heads
from service.settings import drop_proxies, read_settings
from service.upkeep import Upkeep

api = Api()


class Front:
    """Answers every request itself; only the life of the worker goes on to BentoML."""

    def __init__(self, app: ASGIApp) -> None:
        self.bento = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the lifespan on."""
        await (self.bento if scope["type"] == "lifespan" else api)(scope, receive, send)


def _end_with_parent() -> None:
    """Stop in an orderly way when the parent is gone: a worker left behind would go on serving, unseen, beside the next start."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _check_worker_socket(site: Site) -> None:
    """Check the bind where ``bentoml serve`` was called by hand: the worker is told the number of its socket."""
    if "--fd" in sys.argv:
        with socket.socket(fileno=os.dup(int(sys.argv[sys.argv.index("--fd") + 1]))) as listening:
            check_bind(str(listening.getsockname()[0]), site.access)


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
        drop_proxies()
        try:
            site = Site(read_settings())
            _check_worker_socket(site)
        except Refusal as refusal:
            print(f"overread: {refusal}", file=sys.stderr, flush=True)
            if "--worker-id" in sys.argv:
                # BentoML starts a failed worker again, for ever; what is wrong here only a person can mend.
                os.kill(os.getppid(), signal.SIGTERM)
            raise
        if "--worker-id" in sys.argv:
            _end_with_parent()
        self.upkeep = Upkeep(site)
        self.upkeep.start()
        api.site = site

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def close(self) -> None:
        """Stop taking images, finish those admitted, close the store."""
        site, api.site = api.site, None
        if site is not None:
            self.upkeep.close()
            site.close()


bound_heads()  # here, because uvicorn chooses its protocol before a worker's service is made
Overread.add_asgi_middleware(Front)  # type: ignore[attr-defined]
