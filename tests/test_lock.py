# SPDX-License-Identifier: Apache-2.0
"""The pins of the set-up: whole, with hashes, within the bounds of pyproject.toml, under licences we have looked at."""
from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("3.9", "3.9-oldest", "3.10", "3.11", "3.12", "3.13", "3.14")
LINE = re.compile(r"([a-z0-9][a-z0-9-]*)==([\w.+!]+) --hash=sha256:[0-9a-f]{64}  # ([a-z0-9-]+(?: [a-z0-9-]+)*)")
LEFT_OUT = ("horovod",)  # is built from source: its line has the group "source"
NOT_PINNED = ("wandb", "mlflow")  # no target of make installs them


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins(version: str) -> dict[str, tuple[str, set[str]]]:
    """Version and groups by package; every line has the form that pip's hash-checking mode takes."""
    head, *lines = (ROOT / "requirements" / f"{version}.txt").read_text().splitlines()
    assert head.startswith("# Made by scripts/lock.py")
    found = [LINE.fullmatch(line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found) if not match]
    return {match[1]: (match[2], set(match[3].split())) for match in found if match and "+" not in match[2]}


def requirements() -> list[tuple[str, str]]:
    """Each extra, or ``core``, with each requirement in pyproject.toml. Python 3.9 reads no TOML."""
    text = (ROOT / "pyproject.toml").read_text()
    core = re.search(r"^dependencies = \[(.*?)^\]", text, re.M | re.S)
    extras = re.search(r"^\[project\.optional-dependencies\](.*?)^\[", text, re.M | re.S)
    assert core and extras
    found = [("core", name) for name in re.findall(r'^ +"([^"]+)"', core[1], re.M)]
    for extra, listed in re.findall(r"^([\w-]+) = \[(.*?)\]$", extras[1], re.M | re.S):
        found += [(extra, name) for name in re.findall(r'"([^"]+)"', re.sub(r"#.*", "", listed))]
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_pins_are_within_the_bounds_and_none_is_missing(version: str) -> None:
    pinned = pins(version)
    assert len(requirements()) > 25
    for extra, text in requirements():
        requirement = Requirement(text)
        if extra in NOT_PINNED:
            continue
        if version.endswith("-oldest") and extra == "cu112":  # needs a GPU to be tried
            continue
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"python_version": version[:4].strip("-")}):
            continue
        assert name in pinned, f"{name} of {extra}: make lock"
        found, groups = pinned[name]
        assert requirement.specifier.contains(found, prereleases=True), f"{text}: {found} is pinned: make lock"
        group = "source" if name in LEFT_OUT else "torch-cuda" if name == "torch" else extra
        assert group in groups, f"{name} of {extra}: make lock"
    assert {"pip", "setuptools", "wheel"} <= {name for name, (_, groups) in pinned.items() if "build" in groups}


def test_no_pin_names_a_place() -> None:
    assert not [path for path in (ROOT / "requirements").iterdir() if "://" in path.read_text()]
    assert sorted(path.stem for path in (ROOT / "requirements").glob("*.txt")) == sorted(VERSIONS)


def test_the_set_up_takes_the_lines_of_its_extras() -> None:
    environment = script("environment")
    lines = environment.pins(["core", "plot"], environment.lock_path())
    names = {line.partition("==")[0] for line in lines}
    assert {"numpy", "matplotlib"} <= names and not {"mxnet", "pytest", "horovod"} & names
    assert [line.partition("==")[0] for line in environment.pins(["source"], environment.lock_path())] == ["horovod"]


def test_torch_is_one_version_with_the_libraries_of_gpus_apart() -> None:
    """The wheel for CPUs, which continuous integration has, needs none of them."""
    assert {pins(version)["torch"][0] for version in VERSIONS if not version.startswith("3.9")} == {"2.13.0"}
    environment = script("environment")
    lock = ROOT / "requirements" / "3.11.txt"
    (cpu,) = environment.pins(["torch-cpu"], lock)
    assert cpu.startswith("torch==2.13.0+cpu --hash=")
    for_gpus = [line.partition("==")[0] for line in environment.pins(["torch-cuda"], lock)]
    assert {"torch", "triton", "nvidia-cublas"} <= set(for_gpus)
    assert not [line for line in environment.pins(["core", "torch"], lock) if re.match("nvidia|cuda|tri|torch", line)]


def test_licences_of_what_is_installed() -> None:
    """Only those that make installs where the tests run: an environment of someone's own may lack some."""
    audit = script("audit")
    known = {name: audit.licence_of(name) for name in audit.pinned()}
    assert sum(bool(said) for said in known.values()) > 20
    assert {name: said for name, said in known.items()
            if said and not re.search(audit.ALLOWED, said, re.IGNORECASE) and not audit.CUDA.match(name)} == {}


def test_a_licence_that_is_not_listed_is_named(capsys: pytest.CaptureFixture[str],
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    audit = script("audit")
    monkeypatch.setattr(audit, "licence_of", lambda name: {"a": "GPL-3.0-only", "b": "MIT"}.get(name, ""))
    assert audit.licences({"a": "1", "b": "2", "c": "3", "nvidia-x": "4"}) == ["a", "c"]
    assert capsys.readouterr().out.count("<--") == 2
