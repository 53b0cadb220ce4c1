"""Ports for servers that a test starts: kept from everybody else on this machine while the tests run."""

from __future__ import annotations

import socket

_kept: list[socket.socket] = []


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nothing listens on, and that the system gives to nobody who asks for any port.

    A socket that does not listen stays bound to it: who names the port can listen on it all the same, if it sets SO_REUSEADDR or
    SO_REUSEPORT, as every server here does; who connects before that is refused.
    """
    keeper = socket.socket()
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        keeper.setsockopt(socket.SOL_SOCKET, option, 1)
    keeper.bind(("127.0.0.1", 0))
    _kept.append(keeper)
    return int(keeper.getsockname()[1])
