# SPDX-License-Identifier: Apache-2.0
"""The id that a service gave a run, in a small file of the run's folder: a run that goes on goes on there, too."""
from __future__ import annotations

import json
from pathlib import Path

from recognition.io.files import write_whole


def keep_id(path: Path, place: str, run: str) -> None:
    """Note that the run is ``run`` at ``place``, a project or an address."""
    write_whole(path, json.dumps({"place": place, "run": run}) + "\n")


def kept_id(path: Path, place: str) -> str:
    """The run's id at ``place``; empty if the file has none, or one at another place."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return str(found["run"]) if found["place"] == place else ""
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return ""
