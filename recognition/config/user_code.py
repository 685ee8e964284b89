# SPDX-License-Identifier: Apache-2.0
"""Python files of the user: a config.py, a network of their own. Such a file is code and is run."""
from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType

from recognition.config import easy_dict
from recognition.errors import UserError

TIMM = "timm:"  # how a net_name begins that names a model of the package timm


class _SourceLoader(SourceFileLoader):
    """A loader without Python's cache, which misses an edit within one second that keeps the size."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def run_file(path: Path, name: str) -> ModuleType:
    """Run a file and return its module, which is not entered in ``sys.modules``. ``name`` is its name in messages.

    :raises UserError: if there is no such file, or if its code raises anything.
    """
    if not path.is_file():
        raise UserError(f"{name}: no such file")
    loader = _SourceLoader("recognition_user_" + path.stem, str(path))
    spec = spec_from_file_location(loader.name, path, loader=loader)
    assert spec is not None
    module = module_from_spec(spec)
    easy_dict.offer()
    with errors_in_one_line(path, name):
        loader.exec_module(module)
    return module


def is_symbol_file(net_name: str) -> bool:
    """True if ``net_name`` is the path of a ``-symbol.json``, which is data and runs no code."""
    return net_name.endswith(".json")


def is_timm(net_name: str) -> bool:
    """True if ``net_name`` names a model of timm, ``timm:resnet18``."""
    return net_name.startswith(TIMM)


def find_network(net_name: str, config_file: str) -> Path | None:
    """The file of a user's own network; None if there is none. If ``net_name`` ends in ``.py`` or ``.json`` it is a
    path relative to the folder of the config file; else the file is ``<net_name>.py`` in that folder, or in ``symbol``
    there, as in the public recipes."""
    folder = Path(config_file).parent
    paths = [folder / net_name] if net_name.endswith((".py", ".json")) else [
        folder / f"{net_name}.py", folder / "symbol" / f"{net_name}.py"]
    return next((path for path in paths if path.is_file()), None)


def words_of(path: Path) -> set[str]:
    """All words of a Python file, and of the files beside it that it mentions, such as symbol_utils.py."""
    found = set(re.findall(r"\w+", path.read_text(encoding="utf-8", errors="replace")))
    beside = [other for other in path.parent.glob("*.py") if other.stem in found - {"config", path.stem}]
    texts = [other.read_text(encoding="utf-8", errors="replace") for other in beside]
    return found.union(*(re.findall(r"\w+", text) for text in texts))


@contextlib.contextmanager
def errors_in_one_line(path: Path, name: str) -> Iterator[None]:
    """Turn any error of the file's code into a UserError with the line of the file."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        if isinstance(error, SyntaxError) and error.filename == str(path):
            lines.append(error.lineno)
        at = f", line {lines[-1]}" if lines else ""
        reason = " ".join(traceback.format_exception_only(type(error), error)[-1].split())
        raise UserError(f"{name}{at}: {reason}") from error
