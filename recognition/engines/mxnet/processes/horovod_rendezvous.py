# SPDX-License-Identifier: Apache-2.0
"""The server through which Horovod's processes find each other."""
from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from recognition.errors import UserError


@contextlib.contextmanager
def rendezvous(places: Sequence[Any], address: str, interface: str | None) -> Iterator[dict[str, str]]:
    """Run the server; yields the variables that hold its address.

    :param places: tuples of a worker's host name and numbers, by the names that Horovod uses.
    :param address: of this host, to listen on; ``interface``: of the network, for the workers.
    :raises UserError: if Horovod is not installed.
    """
    try:
        from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer, RendezvousServer
    except ImportError as error:
        raise UserError(f"several workers need Horovod, or servers with --kvstore dist_sync: {error}") from None
    server = RendezvousServer()
    # Not server.start(), which listens on all addresses: anybody who reaches this host may write what workers read.
    server._httpd = RendezvousHTTPServer((address, 0), RendezvousHandler, 0)
    port = server._httpd.server_address[1]
    server._listen_thread = threading.Thread(target=server._httpd.serve_forever, daemon=True)
    server._listen_thread.start()
    server.init(list(places))
    variables = {"HOROVOD_GLOO_RENDEZVOUS_ADDR": address, "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
                 "HOROVOD_CONTROLLER": "gloo", "HOROVOD_CPU_OPERATIONS": "gloo"}
    if interface:
        variables.update(HOROVOD_GLOO_IFACE=interface, NCCL_SOCKET_IFNAME=interface)
    try:
        yield variables
    finally:
        server.stop()
