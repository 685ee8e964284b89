# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the package ``easydict``, from which every config.py takes EasyDict, where that is not installed."""
from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any


class EasyDict(dict):  # type: ignore[type-arg]
    """A dict whose keys are attributes, too; so are those of dicts in it, and in lists and tuples in it."""

    def __init__(self, values: Any = None, **more: Any) -> None:
        super().__init__()
        self.update(values or {}, **more)

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, _easy(value))

    def update(self, values: Any = (), **more: Any) -> None:  # type: ignore[override]
        for key, value in dict(values, **more).items():
            self[key] = value


def _easy(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_easy, value)) if type(value) in (list, tuple) else value
    return EasyDict(value) if type(value) is dict else value


def offer() -> None:
    """Let ``from easydict import EasyDict`` find the one above, unless the package is installed."""
    if sys.modules.get("easydict") is None and importlib.util.find_spec("easydict") is None:
        module = ModuleType("easydict", __doc__)
        module.EasyDict = EasyDict  # type: ignore[attr-defined]
        sys.modules["easydict"] = module
