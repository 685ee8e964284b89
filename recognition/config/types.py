# SPDX-License-Identifier: Apache-2.0
"""The types of options: each reads a value from a flag, a config.py or a saved configuration, and describes the valid
values for an error."""
from __future__ import annotations

import difflib
import functools
import math
import numbers
import operator
import os
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable

from recognition.config.devices import parse_devices
from recognition.config.engines import ENGINES
from recognition.errors import UserError


def nearest(word: Any, candidates: Iterable[Any]) -> str:
    """A hint, ``"; the nearest is 'r50'"``, with the candidate that is most similar to ``word``; empty if none is."""
    cutoff = 0.5 if len(str(word)) <= 3 else 0.6  # low enough for one wrong letter in two: y3 for y2
    match = difflib.get_close_matches(str(word), [str(candidate) for candidate in candidates], n=1, cutoff=cutoff)
    return f"; the nearest is {match[0]!r}" if match else ""


@dataclass(frozen=True)
class OptionType:
    """A type with its valid values. ``read`` gives the typed value or raises ValueError, TypeError or OverflowError;
    ``expected`` describes the valid values."""

    read: Callable[[Any], Any]
    expected: str
    choices: tuple[Any, ...] = ()

    def check(self, value: Any, where: str) -> Any:
        """The typed value.

        :raises UserError: beginning with ``where``, if ``value`` is not valid.
        """
        try:
            return self.read(value)
        except (ValueError, TypeError, OverflowError):
            found, hint = reprlib.repr(value).replace("\n", " "), nearest(value, self.choices)
            raise UserError(f"{where}: found {found}, expected {self.expected}{hint}") from None


def _valid(condition: bool) -> None:
    if not condition:
        raise ValueError


def _integer(value: Any) -> int:
    """An int from a whole number of any type (people write 2e3), or from its digits in a flag."""
    number = int(value)
    _valid(isinstance(value, str) or (isinstance(value, numbers.Real) and value == number))
    return number


def _side(value: Any) -> int:
    _valid(str(value) != "True")  # which is the whole number 1 in Python and NumPy
    side = _integer(value)
    _valid(side >= 0)
    return side


def _real(value: Any) -> float:
    _valid(isinstance(value, (str, numbers.Real)) and not isinstance(value, bool) and math.isfinite(float(value)))
    return float(value)


BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "least": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "most": (operator.le, "at most"),
    "below": (operator.lt, "below"),
}


def _bounded(read: Callable[[Any], Any], noun: str, **bounds: float) -> OptionType:
    """The type of numbers within ``bounds``, by the names in BOUNDS."""

    def read_within(value: Any) -> Any:
        number = read(value)
        _valid(all(BOUNDS[name][0](number, bound) for name, bound in bounds.items()))
        return number

    limits = " and ".join(f"{BOUNDS[name][1]} {bound:.10g}" for name, bound in bounds.items())
    return OptionType(read_within, f"{noun} {limits}".strip())


integer = functools.partial(_bounded, _integer, "a whole number")
real = functools.partial(_bounded, _real, "a number")


def rising(example: str, **bounds: float) -> OptionType:
    """The type of two numbers within ``bounds``, the first below the second."""
    each = real(**bounds)

    def read(value: Any) -> tuple[float, float]:
        low, high = (each.read(item) for item in _items(value))
        _valid(low < high)
        return low, high

    limits = each.expected.partition("number ")[2]
    return OptionType(read, f"two numbers {limits} in ascending order, such as {example!r}")


def choice(*values: Any) -> OptionType:
    """The type of ``values``. A value gets the type that it has there: 1 becomes True."""
    return OptionType(lambda value: values[values.index(value)], "one of " + ", ".join(map(repr, values)), values)


def _text(value: Any) -> str:
    _valid(isinstance(value, (str, os.PathLike)) and "\0" not in str(value))
    return str(value)


def _filled(value: Any) -> str:
    _valid(bool(_text(value).strip()))
    return str(value)


def _folder_part(value: Any) -> str:
    _valid(not set(_text(value)) & set("/\\\r\n"))
    return str(value)


def _items(value: Any) -> Sequence[Any]:
    """The items of a list, a tuple or a comma-separated text."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",")] if value.strip() else []
    _valid(isinstance(value, (list, tuple)))
    return value


def _positive_integers(value: Any) -> tuple[int, ...]:
    found = tuple(_integer(item) for item in _items(value))
    _valid(all(number >= 1 for number in found))
    return found


def _span(value: Any) -> int | str:
    """A number of batches, or of epochs in the form '2.5e'."""
    match = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,3})?)\s*(?:e|epochs?)\s*", value) if isinstance(value, str) else None
    if match and float(match[1]):
        return f"{float(match[1]):.10g}e"
    batches = 0 if match else _integer(value)
    _valid(batches >= 0)
    return batches


def _spans(value: Any) -> tuple[int | str, ...]:
    found = tuple(_span(item) for item in _items(value))
    numbers = [float(str(span).rstrip("e")) for span in found]
    _valid(len({type(span) for span in found}) <= 1 and all(a < b for a, b in zip([0.0, *numbers], numbers)))
    return found


def _four(value: Any) -> tuple[int, ...]:
    blocks = _positive_integers(value)
    _valid(len(blocks) == 4)
    return blocks


def _image_shape(value: Any) -> tuple[int, int, int]:
    height, width, channels = _positive_integers(value)
    _valid(height == width and channels == 3)
    return height, width, channels


def _factors(value: Any) -> tuple[tuple[str, float], ...]:
    if isinstance(value, str):
        value = [item.rsplit("=", 1) for item in _items(value)]
    pairs = value.items() if isinstance(value, Mapping) else value
    found = tuple((_filled(pattern), _real(factor)) for pattern, factor in pairs)
    _valid(all(factor >= 0 for _, factor in found))
    return found


def _places(value: Any) -> str | tuple[str, ...]:
    """One place as text, or several as a tuple; a list of one is that one."""
    if isinstance(value, (str, os.PathLike)):
        return _text(value)
    _valid(isinstance(value, (list, tuple)) and len(value) > 0)
    found = tuple(_filled(item) for item in value)
    return found[0] if len(found) == 1 else found


def _weights(value: Any) -> tuple[float, ...]:
    found = tuple(_real(item) for item in _items(value))
    _valid(all(0 < weight <= 100 for weight in found))
    return found


def _project(value: Any) -> str:
    _valid(_text(value) == "" or bool(re.fullmatch(r"([^/\\#?%:]+/)?[^/\\#?%:]{1,128}", str(value))))
    return str(value)


def _pairs(value: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((_filled(key), item) for key, item in (value.items() if isinstance(value, Mapping) else value))


_losses = choice("softmax", "margin_softmax", "triplet", "atriplet")
_MARGINS = ("nsoftmax", "arcface", "cosface", "combined")  # margin losses under their names in the first recipes

CENTRES_FROM = ("checkpoint", "embeddings", "random")  # beside the names of files

boolean = choice(False, True)
centres = OptionType(_filled, "one of " + ", ".join(map(repr, CENTRES_FROM)) + ", or a file")
engine = replace(choice("auto", *ENGINES), expected=f"auto, {' or '.join(ENGINES)}")
loss_name = replace(_losses, read=lambda value: "margin_softmax" if value in _MARGINS else _losses.read(value))
places = OptionType(_places, "a text, or a list of texts that are not empty")
weights = OptionType(_weights, "numbers above 0, at most 100, such as '1,0.5'")
project = OptionType(_project, "PROJECT or ENTITY/PROJECT, without any of \\ # ? % :")
pairs = OptionType(_pairs, "keys with their values")
side = OptionType(_side, "a side in pixels, 0 or False for none")
text = OptionType(_text, "a text")
filled_text = OptionType(_filled, "a text that is not empty")
folder_part = OptionType(_folder_part, "a text of one line without slashes")
names = OptionType(lambda value: tuple(_filled(item) for item in _items(value)), "names, such as 'lfw,cfp_fp'")
factors = OptionType(_factors, "patterns of names with numbers from 0 on, such as 'stage1*=0.1,pre_fc1*=10'")
span = OptionType(_span, "a whole number of batches, such as 500, or epochs, such as '2e'")
spans = OptionType(_spans, "whole numbers of batches above 0 in ascending order, such as '100000,160000,220000', or "
                   "epochs, such as '10e,18e,22e'")
four_counts = OptionType(_four, "four whole numbers above 0")
square_rgb = OptionType(_image_shape, "(height, width, 3) with the height equal to the width")
devices = OptionType(parse_devices, "cpu, cpu:N (N devices on the CPU), gpu or gpu:I,J (those GPUs, each once)")
