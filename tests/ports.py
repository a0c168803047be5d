"""Ports for the servers of tests, outside the range that the kernel uses for outgoing connections."""

import itertools
import os
import socket

FIRST, LAST = 20_000, 32_000
_next = itertools.count(os.getpid() * 97 % (LAST - FIRST))


def free_port() -> int:
    """Return a port on which nobody listens now; each call returns another port."""
    while True:
        port = FIRST + next(_next) % (LAST - FIRST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
