"""Ports that nothing listens on."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

# Below what systems hand out to whoever asks for any port, and above Ray's ports of workers: a port that is found free
# here is not another's by the time it is used.
PORTS = range(20_000, 32_000)


def free_ports(count: int) -> list[int]:
    found: list[int] = []
    with ExitStack() as open_sockets:
        for port in random.sample(PORTS, len(PORTS)):
            try:
                open_sockets.enter_context(socket.create_server(("", port)))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise RuntimeError(f"no {count} free ports")
