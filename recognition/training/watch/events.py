# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's event files, with the numbers of ``history.jsonl`` as scalars, and histograms. tensorboardX encodes
them.

A file is a sequence of records (TFRecord): length, checksum of the length, an ``Event``, its checksum.
"""
from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from recognition.errors import UserError
from recognition.io.files import write_whole, writing
from recognition.training.watch.scalars import DEGREES, named

FOLDER = "tensorboard"  # beside the checkpoints
HEADER, FOOTER = struct.Struct("<QI"), struct.Struct("<I")


class EventFile:
    """A new event file in ``folder``. A run that resumes from step n removes the events after n from older files.

    Events are in the file when the call returns, so a state that is saved later has no events that a kill could lose.
    """

    def __init__(self, folder: Path, step: int) -> None:
        """:param step: the step that the run resumes from; with 0 no event of older files is kept."""
        self._event = _load("proto.event_pb2").Event
        self._summary = _load("summary")
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            older = sorted(folder.glob("events.out.tfevents.*"))
            for path in older:
                cut_after(path, step)
            # Readers sort files by name. The clock may have been set back, so the name must be later than older ones.
            seconds = max([int(time.time()), *(int(path.name.split(".")[3]) + 1 for path in older)])
            name = f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}"
            self._path = folder / name
            self._file = _load("record_writer").RecordWriter(os.path.abspath(self._path))
        self._add(file_version="brain.Event:2")
        if step:  # tells a running TensorBoard to drop the events that were removed
            self._add(step=step + 1, session_log=_load("proto.event_pb2").SessionLog(status=1))  # START
        self._flush()

    def write(self, kind: str, step: int, **values: Any) -> None:
        for name, value in named(kind, values).items():
            self._add(step=step, summary=self._summary.scalar(name, value))
        self._flush()

    def histogram(self, tag: str, step: int, degrees: np.ndarray) -> None:
        self._add(step=step, summary=self._summary.histogram(tag, degrees, DEGREES))
        self._flush()

    def _add(self, **fields: Any) -> None:
        event = self._event(wall_time=time.time(), **fields)
        with writing(self._path):
            self._file.write(event.SerializeToString())

    def _flush(self) -> None:
        with writing(self._path):
            self._file.flush()

    def close(self, status: int = 0) -> None:
        with writing(self._path):
            self._file.close()


def require_tensorboard() -> None:
    """Import tensorboardX.

    :raises UserError: if it is not installed.
    """
    _load("record_writer")


def _load(name: str) -> Any:
    """Import a module of tensorboardX, which is needed with ``--tensorboard`` alone."""
    try:
        return import_module(f"tensorboardX.{name}")
    except ImportError as error:
        needs = "it needs tensorboardX: pip install 'tensorboardX>=2.6.2.2'"
        raise UserError(f"--tensorboard: {error}; {needs}") from error


def cut_after(path: Path, step: int) -> None:
    """Cut an event file, whose steps ascend, before the first event after ``step`` or the first broken record.

    A file that then holds no step is removed.
    """
    content, end, kept = path.read_bytes(), 0, False
    for start, stop in _records(content):
        event = _parse(content[start:stop])
        if event is None or (event.HasField("summary") and event.step > step):
            break
        end, kept = stop + FOOTER.size, kept or event.HasField("summary")
    if not kept:
        path.unlink()
    elif end < len(content):  # not cut in place: a copy of the run's folder may have the file by a link
        write_whole(path, content[:end])


def _records(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield the range of bytes of the data of each whole record."""
    checksum = _load("record_writer").masked_crc32c
    start = HEADER.size
    while start <= len(content):
        length, expected = HEADER.unpack_from(content, start - HEADER.size)
        stop = start + length
        if checksum(content[start - HEADER.size : start - 4]) != expected or stop + FOOTER.size > len(content):
            return
        yield start, stop
        start = stop + FOOTER.size + HEADER.size


def _parse(data: bytes) -> Any:
    """The event in ``data``; None if it holds none."""
    try:
        return _load("proto.event_pb2").Event.FromString(data)
    except import_module("google.protobuf.message").DecodeError:
        return None
