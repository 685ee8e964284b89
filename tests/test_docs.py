# SPDX-License-Identifier: Apache-2.0
"""README, CONTRIBUTING, docs and the READMEs of rooms: links, names of files and modules, what a room imports."""
from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOPS = ("recognition", "common", "faults", "bench", "datasets", "scripts", "tests", "docs", "requirements")
PAGES = sorted([*(page for folder in (".", "datasets", "models") for page in (ROOT / folder).glob("*.md")),
                *(page for top in {*TOPS} - {"datasets"} for page in (ROOT / top).glob("**/*.md"))])
ROOMS = [*(path.parent for folder in ("*", "engines/*", "training/*")
           for path in (ROOT / "recognition").glob(f"{folder}/__init__.py")), ROOT / "common"]
PATH = re.compile(r"(?:[\w.-]+/)*(?:[\w.-]+\.(?:py|md|sh|c|png|json|md5))?")
MODULE = re.compile(rf"(?:{'|'.join(TOPS[:5])})(?:\.\w+)+")
EXAMPLE = re.compile(r".*NAME.*|.*\.X|config\.py")


def words(page: Path) -> list[str]:
    """What stands between backticks, but for blocks of code, whose files are examples; no tests behind their files."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [word.partition("::")[0] for word in re.findall(r"`([^`]+)`", text) if not EXAMPLE.fullmatch(word)]


def is_ours(word: str, page: Path) -> bool:
    """Whether a word names a file of the project: by its first folder, or by its ending; in a room any Python file."""
    if not PATH.fullmatch(word):
        return False
    return word.split("/")[0] in TOPS or word.endswith(".md") or (page.parent in ROOMS and word.endswith(".py"))


def bound(file: Path) -> Iterator[str]:
    """The names that a module defines or imports at its top."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            yield from (found.id for found in ast.walk(node) if isinstance(found, ast.Name))


def is_module(name: str) -> bool:
    """Whether a dotted name is a module, or a name at the top of one."""
    path, parts = ROOT, name.split(".")
    while parts and ((path / parts[0]).is_dir() or (path / f"{parts[0]}.py").is_file()):
        path /= parts.pop(0)
    sources = [file for file in (path.with_suffix(".py"), path / "__init__.py", path / "__main__.py") if file.is_file()]
    return not parts or any(parts[0] in bound(file) for file in sources)


def test_links_lead_somewhere() -> None:
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)\s#]+)", page.read_text(encoding="utf-8"))]
    assert [found for found in links if "://" not in found[1] and not (found[0].parent / found[1]).exists()] == []


def test_files_that_are_named_are_there() -> None:
    named = [(page, word) for page in PAGES for word in words(page) if is_ours(word, page)]
    assert [(page, word) for page, word in named
            if not any((folder / word).exists() for folder in (ROOT, page.parent))] == []


def test_modules_and_commands_that_are_named_are_there() -> None:
    named = {(page, word.partition("(")[0]) for page in PAGES for word in words(page)
             if MODULE.fullmatch(word.partition("(")[0])}
    named |= {(page, word) for page in PAGES for word in re.findall(r"python -m ([\w.]+)", page.read_text())
              if MODULE.fullmatch(word) and not EXAMPLE.fullmatch(word)}
    assert [(page, word) for page, word in sorted(named) if not is_module(word)] == []
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert {target for page in PAGES for target in re.findall(r"`make ([a-z-]+)", page.read_text())} <= set(targets)


def test_every_room_has_a_readme() -> None:
    folders = [*ROOMS, *(ROOT / name for name in ("recognition", "bench", "faults", "tests", "datasets",
                                                "models", "scripts", "requirements", "docs"))]
    assert [folder for folder in folders if not (folder / "README.md").is_file()] == []


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(ROOT)))
def test_a_room_imports_what_its_readme_names(room: Path) -> None:
    """What is imported together with the room's modules; within a function is later."""
    stated = re.search(r"^Imports: .*?\.$|^Imports: .*?\. ", (room / "README.md").read_text(), re.M | re.S)
    assert stated
    files = [path for path in room.glob("**/*.py") if not any(room in other.parents and other in path.parents
                                                              for other in ROOMS)]
    found = {module.split(".")[1] for path in files for module in imports(path) if module.startswith("recognition.")}
    everywhere = {"errors", "interrupts", "progress", *room.relative_to(ROOT).parts}
    assert found <= {*re.findall(r"`(\w+)`", stated[0]), *everywhere}
    assert room.name == "common" or not any(module.startswith("common") for path in files for module in imports(path))


def imports(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            yield f"{node.module}.{node.names[0].name}"
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
