"""Free ports of the loopback interface."""

import socket


def free_ports(n: int) -> list[int]:
    """n different ports that nobody listened on just now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports
