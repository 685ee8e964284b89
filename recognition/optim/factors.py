# SPDX-License-Identifier: Apache-2.0
"""Factors of the learning rate for single parameters, and frozen parameters: for fine-tuning."""
from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from recognition.config.types import nearest
from recognition.errors import UserError


class LearningRateFactors:
    """Factors of the learning rate by patterns of parameter names, with a shell's ``*``, ``?`` and ``[...]``. They are
    a function of the step alone, so a resumed run has the same."""

    def __init__(self, names: Sequence[str], freeze: Sequence[str] = (), freeze_steps: int = 0,
                 factors: Sequence[tuple[str, float]] = (), needed: bool = False,
                 by_layer: Mapping[str, float] | None = None, tables: Collection[str] = ()) -> None:
        """:param freeze: patterns of parameters that do not change, by updates or decay, for ``freeze_steps`` steps; 0:
            for the whole run.
        :param factors: (pattern, factor); if several match a name, the last counts.
        :param by_layer: further factors, by name, which are multiplied with these.
        :param tables: names that never move.
        :param needed: True if nothing else learns in this run.
        :raises UserError: if a pattern matches no name, or if ``needed`` parameters would never learn.
        """
        frozen = set().union(*(_matches(pattern, names, "freeze") for pattern in freeze))
        by_name = {name: factor for pattern, factor in factors for name in _matches(pattern, names, "lr_factor")}
        self._always = {name: by_name.get(name, 1.0) * (by_layer[name] if by_layer else 1.0)
                        for name in names if name not in tables}
        self._at_first = {name: factor for name, factor in self._always.items() if name not in frozen}
        self._steps = freeze_steps or float("inf")
        if needed and not any((self._always if freeze_steps else self._at_first).values()):
            raise UserError("freeze, lr_factor: found that no parameter would ever move, and no class centres that "
                            "learn; expected --freeze-steps, or patterns that leave some free")

    def __call__(self, step: int) -> dict[str, float]:
        """The factor of each parameter that is not frozen in ``step`` (from 0), in the order of the names."""
        return self._at_first if step < self._steps else self._always


def _matches(pattern: str, names: Sequence[str], key: str) -> list[str]:
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        if pattern.startswith("fc7"):
            raise UserError(f"{key}: found {pattern!r}, but the class centres have factors of their own: fc7_lr_mult, "
                            "fc7_wd_mult in config.py")
        raise UserError(f"{key}: found {pattern!r}, which no parameter of the network matches, expected a pattern of "
                        f"names such as {names[0]} and {names[-1]}{nearest(pattern, names)}")
    return found
