# SPDX-License-Identifier: Apache-2.0
"""The set-up chooses a Python that can make an environment, installs once, and says in one line what is missing."""
from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHOOSE = ROOT / "scripts" / "choose_python.sh"
SETUP = ROOT / "scripts" / "environment.py"
VERSION = "{}.{}".format(*sys.version_info)
TOOLS = ("bash", "env", "timeout", "uname", "sort", "cat")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The only folder on PATH, with the tools that the scripts use and no Python."""
    folder = tmp_path / "machine with a space"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to(shutil.which(tool) or tool)
    return folder


def script(path: Path, lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{lines}\n")
    path.chmod(0o755)
    return path


def interpreter(path: Path) -> Path:
    return script(path, f'exec "{sys.executable}" "$@"')


def choose(machine: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(machine), "HOME": str(machine), **variables}
    return subprocess.run([str(CHOOSE), *arguments], env=environment, capture_output=True, text=True, timeout=300)


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr


def test_says_what_it_chose(machine: Path) -> None:
    interpreter(machine / "python3")
    done = choose(machine)
    assert (done.returncode, done.stdout) == (0, f"{sys.executable}\n")
    assert done.stderr == f"Python {'.'.join(map(str, sys.version_info[:3]))}: {sys.executable}\n"


def test_nothing_fits(machine: Path) -> None:
    assert_refused(choose(machine), "no CPython 3.9 to 3.14 on PATH")


def test_a_shim_that_does_not_run_is_passed_over(machine: Path) -> None:
    script(machine / f"python{VERSION}", "echo 'command not found' >&2; exit 127")
    assert_refused(choose(machine), "no CPython 3.9 to 3.14")
    pyenv = machine / "py env" / "versions" / f"{VERSION}.1" / "bin" / "python3"
    interpreter(pyenv)
    done = choose(machine, PYENV_ROOT=str(machine / "py env"))
    assert (done.returncode, done.stdout) == (0, f"{sys.executable}\n")


def test_a_python_that_cannot_make_an_environment(machine: Path) -> None:
    block = "import sys; sys.modules['ensurepip'] = None"
    script(machine / "python3", f'{{ echo "{block}"; cat; }} | "{sys.executable}" "$@"')
    assert_refused(choose(machine), "no module ensurepip", f"python{VERSION}-venv")


def test_a_python_of_another_version(machine: Path) -> None:
    block = "import sys; sys.version_info = (3, 8, 18)"
    script(machine / "python3", f'{{ echo "{block}"; cat; }} | "{sys.executable}" "$@"')
    assert_refused(choose(machine, PYTHON=str(machine / "python3")), "is Python 3.8, not 3.9 to 3.14")
    assert_refused(choose(machine))


@pytest.mark.parametrize("name", ["/nonexistent", "python3.9-that-is-not-here"])
def test_the_named_python_is_the_only_one(machine: Path, name: str) -> None:
    interpreter(machine / "python3")
    assert_refused(choose(machine, PYTHON=name), f"PYTHON={name} does not run")


def test_another_platform(machine: Path) -> None:
    (machine / "uname").unlink()
    script(machine / "uname", "[[ $1 == -s ]] && echo Linux || echo aarch64")
    assert_refused(choose(machine), "Linux on x86-64 only", "aarch64")


def test_an_environment_that_works_is_kept(machine: Path, tmp_path: Path) -> None:
    venv_python = interpreter(tmp_path / "venv" / "bin" / "python")
    assert choose(machine, str(tmp_path / "venv")).stdout == f"{venv_python}\n"
    script(venv_python, "exit 127")
    assert_refused(choose(machine, str(tmp_path / "venv")))


def test_all_names_each_version_once(machine: Path) -> None:
    interpreter(machine / "python3")
    interpreter(machine / f"python{VERSION}")
    assert choose(machine, "--all").stdout == f"{sys.executable}\n"


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """scripts/environment.py, for a project file of its own."""
    spec = importlib.util.spec_from_file_location("environment", SETUP)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    project = tmp_path / "pyproject.toml"
    project.write_text('horovod = ["horovod==0.28.1"]\n')
    monkeypatch.setattr(module, "PROJECT", project)
    return module


def test_stamps_hold_until_the_project_changes(setup: ModuleType, tmp_path: Path) -> None:
    environment = setup.Environment(tmp_path / "venv", setup.lock_path())
    environment.notes.mkdir(parents=True)
    assert environment.missing(["cpu", "plot"]) == ["cpu", "plot"]
    (environment.notes / "cpu.stamp").write_text(setup.digest("cpu", setup.lock_path()))
    assert environment.missing(["cpu", "plot"]) == ["plot"]
    setup.PROJECT.write_text('horovod = ["horovod==0.28.2"]\n')
    assert environment.missing(["cpu", "plot"]) == ["cpu", "plot"]
    assert setup.horovod_version() == "0.28.2"


def test_a_second_run_installs_nothing(setup: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    environment = setup.Environment(tmp_path / "venv", setup.lock_path())
    environment.notes.mkdir(parents=True)
    environment.identity.write_text(setup.identity(environment.venv, ["cpu", "test"]))
    for extra in ("cpu", "test"):
        (environment.notes / f"{extra}.stamp").write_text(setup.digest(extra, setup.lock_path()))
    assert setup.main([str(environment.venv), "cpu", "test"]) == 0
    assert capfd.readouterr() == ("", "")
    assert not environment.log.exists() and not environment.python.exists()


def test_a_failed_install_leaves_no_stamp(tmp_path: Path) -> None:
    """pip may look nowhere: the environment is made, and what it lacks is said."""
    venv = tmp_path / "with a space" / "venv"
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    done = subprocess.run(
        [sys.executable, str(SETUP), str(venv), "cpu"], env={**variables, "PIP_NO_INDEX": "1"},
        capture_output=True, text=True, timeout=120,
    )
    assert done.returncode == 2
    assert "No matching distribution found for " in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: -m pip install")
    assert not [*venv.glob(".setup/*.stamp"), *venv.glob(".setup/identity")]


def test_a_folder_of_someone_else_is_left_alone(
    setup: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    assert setup.main([str(tmp_path / "venv"), "cpu"]) == 2
    assert "was not made by this set-up" in capsys.readouterr().err
    assert (tmp_path / "venv" / "bin").is_dir()


def test_no_compiler_for_horovod(setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(setup.SetupError, match=r"^no c\+\+, which builds Horovod"):
        setup.ensure(setup.Environment(tmp_path / "venv", setup.lock_path()), ["cpu", "horovod"])
    assert not (tmp_path / "venv").exists()


def test_horovod_is_built_where_no_path_has_a_space(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.tempfile, "tempdir", "/some where")
    assert setup.space_free_folder() == "/tmp"
    monkeypatch.setattr(setup.tempfile, "tempdir", "/somewhere")
    assert setup.space_free_folder() is None


def test_a_python_without_torch(setup: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside MXNet it is left out, said in a line; alone it is missing."""
    lock = tmp_path / "3.9.txt"
    lock.write_text("filelock==1 --hash=sha256:0  # core\n")
    assert setup.without_torch(["cpu", "torch", "plot"], lock) == ["cpu", "plot"]
    assert capsys.readouterr().err.endswith(": MXNet alone\n")
    with pytest.raises(setup.SetupError, match=r"^no PyTorch for Python .*: name a CPython 3.10 to 3.14 with PYTHON=$"):
        setup.without_torch(["torch", "plot"], lock)
    assert setup.without_torch(["cpu", "plot"], lock) == ["cpu", "plot"]


@pytest.mark.parametrize("found, groups", [(True, ["torch-cpu"]), (False, ["torch-cpu", "torch-cuda"])])
def test_torch_for_cpus_is_taken_where_pip_finds_it(setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    found: bool, groups: list[str]) -> None:
    asked = []

    def install_pins(group: str, shown: bool = True) -> None:
        asked.append(group)
        if not found and group == "torch-cpu":
            raise setup.SetupError("no such wheel")

    environment = setup.Environment(tmp_path / "venv", ROOT / "requirements" / "3.11.txt")
    monkeypatch.setattr(environment, "install_pins", install_pins)
    environment.install_torch()
    assert asked == groups


def test_two_set_ups_take_turns(setup: ModuleType, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "of someone else").mkdir(parents=True)
    with setup.Environment(venv, setup.lock_path()).locked():
        other = subprocess.Popen(
            [sys.executable, str(SETUP), str(venv), "cpu"], stderr=subprocess.PIPE, text=True,
        )
        assert other.stderr
        assert other.stderr.readline() == f"set-up: waiting for another set-up of {os.path.relpath(venv)}\n"
        time.sleep(0.2)
        assert other.poll() is None
    assert other.communicate(timeout=300)[1].startswith("error: ")
    assert other.returncode == 2
