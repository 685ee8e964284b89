# SPDX-License-Identifier: Apache-2.0
"""The seam between what trains and what computes: who imports an engine, and which way imports point."""
from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("mxnet", "torch", "triton", "numba", "horovod")
# The rooms of recognition from the door to the cellar: a room imports what stands below it, or beside it in its line.
ORDER = (
    ("__init__", "launch"),
    ("training",),
    ("plan",),
    ("evaluation",),
    ("engines",),
    ("head",),
    ("networks", "data"),
    ("processes", "optim"),
    ("config",),
    ("io",),
    ("errors",),
    ("interrupts", "progress"),
)
ENGINES = ("recognition.engines.mxnet", "recognition.engines.torch", "recognition.engines.cpu")
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
MOST_IN_ORDER = 8  # arguments
MOST_FILES = 20  # side by side


class Import(NamedTuple):
    """A module that another one imports, anywhere in it."""

    by: str
    line: int
    of: str
    for_types_alone: bool


def modules(*packages: str) -> dict[str, Path]:
    """Names and files of all modules of packages; a package's own file has the package's name."""
    found = {}
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules("recognition", "common")
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports() -> Iterator[Import]:
    for name, tree in TREES.items():
        hints = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.If)
                 and ast.unparse(node.test) == "TYPE_CHECKING" for inner in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(name, node.lineno, alias.name, id(node) in hints)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    yield Import(name, node.lineno, whole if whole in MODULES else str(node.module), id(node) in hints)


IMPORTS = list(imports())


def room(module: str) -> str:
    """The room of a module of recognition: the first folder, or the name of a file at the top."""
    return [*module.split("."), "__init__"][1]


def test_libraries_that_compute_are_imported_in_their_own_rooms_alone() -> None:
    """Each in the engine of its name; Numba in the shards of CPUs, and where MXNet calls back; Horovod in MXNet's."""
    rooms = {"mxnet": "recognition.engines.mxnet.", "horovod": "recognition.engines.mxnet.",
             "torch": "recognition.engines.torch.", "triton": "recognition.engines.torch.",
             "numba": "recognition.engines."}
    assert not [found for found in IMPORTS for library in LIBRARIES
                if found.of.split(".")[0] == library and not found.by.startswith(rooms[library])]


def test_engines_are_named_where_they_are_chosen_alone() -> None:
    """Beside their own rooms; where the parts of runs and plans are; and by launch, which starts the server at which
    processes meet."""
    allowed = (*ENGINES, *(f"recognition.engines.{name}" for name in ("choose", "shards", "maps")),
               "recognition.launch")
    assert not [found for found in IMPORTS if not found.by.startswith(allowed) and found.of.startswith(ENGINES)]


def test_imports_point_down() -> None:
    assert not [found for found in IMPORTS if found.by.startswith("recognition") and found.of.startswith("common")]
    assert {room(name) for name in MODULES if name.startswith("recognition")} <= set(LEVEL)
    assert not [found for found in IMPORTS if found.by.startswith("recognition") and found.of.startswith("recognition.")
                and LEVEL[room(found.by)] > LEVEL[room(found.of)]]


@pytest.mark.parametrize("package", ["recognition", "common"])
def test_no_imports_go_in_circles(package: str) -> None:
    """Neither of modules, nor of rooms. Hints of types do not count: nothing runs by them."""
    for grain in (None, 2):
        edges: dict[str, set[str]] = {}
        for found in IMPORTS:
            by, of = (".".join(name.split(".")[:grain]) for name in (found.by, found.of))
            within = by.startswith(package) and of.startswith(package) and package not in (by, of)
            if within and by != of and not found.for_types_alone:
                edges.setdefault(by, set()).add(of)
        while edges:
            free = [name for name, wanted in edges.items() if not wanted & edges.keys()]
            assert free, f"in circles: {edges}"
            for name in free:
                del edges[name]


# Each module in a child of its own, which has loaded none of ours before.
ASK = """
import importlib, os, sys
import cv2, numpy
libraries, *names = sys.argv[1:]
for name in names:
    if not os.fork():
        importlib.import_module(name)
        found = set(libraries.split()) & sys.modules.keys()
        print(f"{name} loads {sorted(found)}" if found else "", end="", file=sys.stderr, flush=True)
        os._exit(bool(found))
    if os.wait()[1]:
        sys.exit(f"{name} cannot be imported alone, or loads what it should not")
"""


def engine_free() -> list[str]:
    """The modules that must load no library that computes."""
    return [name for name in MODULES if name.startswith("recognition") and not name.endswith("__main__")
            and not name.startswith(ENGINES)]


def test_what_does_not_compute_loads_no_library_that_does() -> None:
    """A fresh interpreter imports each module alone; where that loads a library, the first one is named."""
    done = subprocess.run([sys.executable, "-c", ASK, " ".join(LIBRARIES), *engine_free()], cwd=ROOT,
                          capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words, elsewhere", [
    ({"cpu", "gpu", "cuda"}, ("recognition.config.devices", "recognition.plan")),
    ({"mxnet", "torch"}, ()),
])
def test_devices_and_engines_are_told_apart_where_the_engine_is_chosen_or_within_one(
        words: set[str], elsewhere: tuple[str, ...]) -> None:
    """Comparisons with their names. What a device's name means is said in config.devices, what each would take in
    plan; ``centers_on`` is a place, not a device."""
    allowed = ("recognition.engines", *elsewhere)
    assert not [(name, node.lineno, ast.unparse(node)) for name, tree in TREES.items() if not name.startswith(allowed)
                for node in ast.walk(tree) if isinstance(node, ast.Compare) and "centers_on" not in ast.unparse(node)
                and words & {item.value for item in ast.walk(node) if isinstance(item, ast.Constant)}]


def test_no_call_has_more_than_eight_arguments_in_order() -> None:
    """Numba's loops, which know no keywords, and lists of words apart."""
    loops = ("recognition.engines.cpu", "recognition.engines.mxnet.passes.winograd")
    assert not [(name, node.lineno, ast.unparse(node.func)) for name, tree in TREES.items()
                if not name.startswith(loops) for node in ast.walk(tree)
                if isinstance(node, ast.Call) and len(node.args) > MOST_IN_ORDER
                and not all(isinstance(item, ast.Constant) for item in node.args)]


def test_the_whole_configuration_is_seen_where_parts_are_made_alone() -> None:
    """All others take the few values that they read."""
    makers = ("recognition.config", "recognition.training.run", "recognition.training.parts",
              "recognition.training.checkpoints.matching", "recognition.engines.choose",
              "recognition.engines.configured", "recognition.plan")
    assert not [(name, node.name) for name, tree in TREES.items() if not name.startswith(makers)
                for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
                for item in (*node.args.args, *node.args.kwonlyargs)
                if ast.unparse(item.annotation or item) == "Config"]


def test_no_folder_holds_more_files_side_by_side_than_a_reader_takes_in() -> None:
    """But ``common``: its commands are all alike."""
    files = [path for top in ("recognition", "common", "bench", "faults", "scripts", "datasets")
             for path in (ROOT / top).rglob("*.py")]
    counts = Counter(path.parent.relative_to(ROOT).as_posix() for path in files)
    assert {folder for folder, count in counts.items() if count > MOST_FILES} <= {"common"}
