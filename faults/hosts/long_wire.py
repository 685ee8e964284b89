# SPDX-License-Identifier: Apache-2.0
"""A long wire between two network cards: frames arrive later, some never. For kernels without netem; needs root.

    python long_wire.py CARD CARD DELAY JITTER LOSS      # seconds, seconds at most, share of the frames

It writes a line when frames pass, and ends by a signal. Frames stay in order; each way has its own chances. A frame
that is on its way when the program ends is lost.
"""
from __future__ import annotations

import contextlib
import random
import select
import socket
import sys
import time
from collections import deque

_ALL, _RCVBUFFORCE = 3, 33  # ETH_P_ALL of linux/if_ether.h, SO_RCVBUFFORCE; what follows is of linux/if_packet.h
_SOL_PACKET, _VNET_HEADER, _IGNORE_OUTGOING = 263, 15, 23
_LARGEST = 1 << 17  # bytes: the kernel hands on a stretch of a stream as one frame, to be cut later
_BUFFER = 1 << 23  # bytes, of frames that wait for this program on a busy machine


def _card(name: str) -> socket.socket:
    """All frames that come in at a card; what is sent goes out of it. Each begins with the kernel's note of which sums
    and cuts it has left to do, which goes on with the frame."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    for option in (_VNET_HEADER, _IGNORE_OUTGOING):
        found.setsockopt(_SOL_PACKET, option, 1)
    found.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _BUFFER)
    found.bind((name, _ALL))
    found.setblocking(False)
    return found


def main() -> None:
    ends = [_card(name) for name in sys.argv[1:3]]
    delay, jitter, loss = map(float, sys.argv[3:])
    ways: list[deque[tuple[float, bytes]]] = [deque(), deque()]  # when each frame from that end is to arrive
    print("ready", flush=True)
    while True:
        due = min((way[0][0] for way in ways if way), default=None)
        ready, _, _ = select.select(ends, [], [], None if due is None else max(0.0, due - time.monotonic()))
        for end in ready:
            way = ways[ends.index(end)]
            with contextlib.suppress(OSError):  # no more frames, or the card is off
                while True:
                    frame = end.recv(_LARGEST)
                    if random.random() >= loss:
                        arrives = time.monotonic() + delay + random.uniform(-jitter, jitter)
                        way.append((max(arrives, way[-1][0] if way else 0.0), frame))
        now = time.monotonic()
        for way, to in zip(ways, reversed(ends)):
            while way and way[0][0] <= now:
                with contextlib.suppress(OSError):  # the other card is off, or its queue is full: lost
                    to.send(way.popleft()[1])


if __name__ == "__main__":
    main()
