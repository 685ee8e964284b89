# SPDX-License-Identifier: Apache-2.0
"""Images a second of a run on several hosts, from the pace of one device and the speed of the hosts' network."""
from __future__ import annotations

from typing import NamedTuple


class Network(NamedTuple):
    """The network between hosts, in a ring of processes of which neighbours are on the same host where they can be."""

    hosts: int
    gigabits: float  # a second, of a host's link, in each direction


class Pace(NamedTuple):
    """Images a second of all devices together."""

    least: float  # if a process computes, and then exchanges
    most: float  # if it does both at once, as far as the slower of them lets it


def pace(devices: int, images: int, measured: float, sent: int, network: Network) -> Pace:
    """The pace of a run.

    In a ring each process sends ``sent`` bytes to its neighbour, so a host's link carries those of the one process
    whose neighbour is on the next host. What goes between devices of a host is in ``measured``.

    :param images: of a device and step; ``measured``: images a second of one device, in a run on one host;
    :param sent: bytes of a process and step.
    """
    computing = images / measured
    exchanging = sent * 8 / (network.gigabits * 1e9) if network.hosts > 1 else 0.0
    return Pace(devices * images / (computing + exchanging), devices * images / max(computing, exchanging))
