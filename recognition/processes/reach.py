# SPDX-License-Identifier: Apache-2.0
"""The way to another host: whether somebody answers there, and by which of this host's addresses."""
from __future__ import annotations

import socket
import struct
import sys
import time

_POLL_SECONDS = 0.1
_SIOCGIFADDR = 0x8915  # Linux's ioctl for the IPv4 address of an interface


def await_answer(host: str, port: int, patience: float) -> str:
    """Wait up to ``patience`` seconds until a program accepts connections; returns '' or why there is none."""
    end = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((host, port), timeout=max(1.0, end - time.monotonic())).close()
            return ""
        except (OSError, UnicodeError) as error:  # UnicodeError: no host can have this name
            if isinstance(error, (socket.gaierror, UnicodeError)) or time.monotonic() > end:
                return str(getattr(error, "strerror", "") or error)
        time.sleep(_POLL_SECONDS)


def address_towards(host: str) -> str:
    """This host's address as ``host`` sees it.

    :raises OSError: if there is no way to that host; UnicodeError if no host can have this name.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing
        return str(probe.getsockname()[0])


def address_of(interface: str) -> str:
    """The IPv4 address of a network interface of this host, on Linux.

    :raises OSError: if it has none.
    """
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        packed = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", interface.encode()))
    return socket.inet_ntoa(packed[20:24])


def interface_of(address: str) -> str:
    """The network interface with this IPv4 address; '' if it is not known, as on other systems than Linux."""
    for _, name in socket.if_nameindex() if sys.platform == "linux" else ():
        try:
            if address_of(name) == address:
                return name
        except OSError:  # it has no IPv4 address
            continue
    return ""
