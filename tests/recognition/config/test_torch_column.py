# SPDX-License-Identifier: Apache-2.0
"""docs/options.md, the column of PyTorch: each option that reaches an engine has a test that runs with PyTorch.

What reaches an engine is read from the sources: the options that the makers of its parts read, those that are handed to
it by name, and those of networks. The loop calls the engine for some more. The others end before any engine.
"""
from __future__ import annotations

import ast
import inspect
from functools import lru_cache
from pathlib import Path

import pytest

from recognition.config.command_line import british
from recognition.config.options import OPTIONS, option_key
from recognition.config.presets import ROOT
from recognition.networks import FAMILIES

# What the loop asks of a backbone for an option: see recognition/training/trainer.py.
THROUGH_THE_LOOP = {"val_targets": "embed", "resume": "load", "state_every": "state", "ckpt_embedding": "parameters",
                    "tensorboard_every": "gradient_norm", "centers_from": "embed"}
# Read by a maker of an engine's parts, but not for the engine.
FOR_NO_ENGINE = {"triplet_alpha": "a triplet loss is computed by NumPy", "count_flops": "a line about the graph",
                 **dict.fromkeys(("models_root", "loss", "extra_model_name"), "a part of the name of a run's folder")}
REFUSED = {"flip_noise_prob"}


@lru_cache
def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def functions(path: str) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef)}


PARTS, CHOOSE, CONFIGURED, RUN, CONFIG = (f"recognition/{name}.py" for name in (
    "training/parts", "engines/choose", "engines/configured", "training/run", "config/options"))


def read_of(node: ast.AST, owner: str = "config") -> set[str]:
    """The options that a piece of source reads as ``config.KEY``; a property of Config counts as what it reads."""
    properties, found = functions(CONFIG), set()
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == owner:
            found |= {part.attr} if part.attr in OPTIONS else (
                read_of(properties[part.attr], "self") if part.attr in properties else set())
    return found


def parameters(function: ast.FunctionDef) -> set[str]:
    return {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}


def reaching() -> set[str]:
    """The options that reach an engine."""
    known = {**functions(PARTS), **functions(CHOOSE), **functions(CONFIGURED)}
    makers = [function for function in known.values() if {"config", "engine"} <= parameters(function)]
    assert {maker.name for maker in makers} == {"make_backbone", "make_head", "make_teacher"}
    called = {part.func.id for maker in makers for part in ast.walk(maker)
              if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id in known
              and any(isinstance(argument, ast.Name) and argument.id == "config" for argument in part.args)}
    assert {"computing_of", "adamw_of", "margin_of"} <= called
    found = set().union(*(read_of(node) for node in (*makers, *(known[name] for name in called), known["decide_for"])))
    for call in ast.walk(tree(RUN)):  # engine.communicator(config.kvstore); Timeline(folder, config.profile, engine...)
        if isinstance(call, ast.Call) and any(of_engine(part) for part in (call, *call.args)):
            found |= set().union(*(read_of(argument) for argument in call.args))
        if isinstance(call, ast.IfExp) and of_engine(call.body):
            found |= read_of(call.test)
    assert {"kvstore", "profile", "devices", "deterministic"} <= found
    found |= {name for family in FAMILIES.values() for name in inspect.signature(family.get_symbol).parameters}
    return (found | set(map(option_key, THROUGH_THE_LOOP))) - FOR_NO_ENGINE.keys()


def of_engine(node: ast.AST) -> bool:
    """True for ``engine.METHOD(...)``."""
    return (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name) and node.func.value.id == "engine")


def runs_with_torch(test: str) -> bool:
    """True if one of a test's runs is by PyTorch, by its file, its name, its parameters or its fixtures."""
    path, _, name = test.partition("::")
    function = functions(path)[name]
    told = [path, name, *map(ast.unparse, function.decorator_list)]
    fixtures = [functions(path)[argument] for argument in parameters(function) if argument in functions(path)]
    told += [ast.unparse(decorator) for fixture in fixtures for decorator in fixture.decorator_list]
    return any("torch" in text for text in told) or bool(parameters(function) & {"engine", "replicated"})


ROWS = {option_key(cells[0].strip("`")): cells for cells in (
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in Path(ROOT / "docs" / "options.md").read_text().splitlines() if line.startswith("| `"))}


@pytest.mark.parametrize("key", sorted(reaching()))
def test_what_reaches_an_engine_is_tested_with_torch(key: str) -> None:
    tests = [named.strip("`") for named in ROWS[key][-1].split(", ")]
    assert any(map(runs_with_torch, tests)), f"{british(key)}: none of {tests} runs with PyTorch"


def test_the_column_of_torch_says_yes_but_to_what_is_refused() -> None:
    """What an engine does not read the column cannot deny, and what all refuse it cannot grant."""
    assert {key for key, cells in ROWS.items() if cells[6].startswith("no") or cells[5].startswith("no")} == REFUSED
    assert {key for key, cells in ROWS.items() if cells[6] != cells[5]} <= reaching()


def test_no_option_is_read_inside_the_torch_engine_itself() -> None:
    """It gets values, not the configuration; but a network of the user's own is code, which may ask for any option."""
    for path in sorted((ROOT / "recognition" / "engines" / "torch").glob("*.py")):
        assert read_of(ast.parse(path.read_text())) <= {"image_shape"}, path.name
