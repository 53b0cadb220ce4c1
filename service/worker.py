"""What one worker runs: the models and everything else of a site behind our ASGI application, from its start to its end."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time

from models.errors import Refusal
from service.access import check_bind
from service.analysis import Site
from service.api import Api
from service.settings import drop_proxies, read_settings
from service.upkeep import Upkeep

api = Api()


def _end_with_parent() -> None:
    """Stop in an orderly way when the parent is gone: a worker left behind would go on serving, unseen, beside the next start."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _check_socket(site: Site) -> None:
    """Check the bind where ``bentoml serve`` was called by hand: the worker is told the number of its socket."""
    if "--fd" in sys.argv:
        with socket.socket(fileno=os.dup(int(sys.argv[sys.argv.index("--fd") + 1]))) as listening:
            check_bind(str(listening.getsockname()[0]), site.access)


class Worker:
    """Loads the models, and lets :data:`api` answer.

    Raises
    ------
    Refusal
        As :class:`service.analysis.Site` says, once it is written down and the parent was told to end.
    """

    def __init__(self) -> None:
        drop_proxies()
        try:
            site = Site(read_settings())
            _check_socket(site)
        except Refusal as refusal:
            print(f"overread: {refusal}", file=sys.stderr, flush=True)
            if "--worker-id" in sys.argv:
                # BentoML starts a failed worker again, for ever; what is wrong here only a person can mend.
                os.kill(os.getppid(), signal.SIGTERM)
            raise
        if "--worker-id" in sys.argv:
            _end_with_parent()
        self._upkeep = Upkeep(site)
        self._upkeep.start()
        api.site = site

    def close(self) -> None:
        """Stop taking images, finish those admitted, close the store."""
        site, api.site = api.site, None
        if site is not None:
            self._upkeep.close()
            site.close()
