# SPDX-License-Identifier: Apache-2.0
"""Make a virtual environment and install extras of pyproject.toml into it, once; a second call finds it done.

    python scripts/environment.py .venv cpu plot onnx test horovod
    python scripts/environment.py .venv-torch torch plot

The environment is for the interpreter that runs this file, and gets what requirements/<version>.txt pins, checked
against the hashes there (scripts/lock.py makes these files). A stamp per extra, written when all of it is installed,
holds a hash of what it was installed from; a changed pyproject.toml or pin, or a set-up that was stopped, has no valid
stamp. ``--oldest`` before all takes the lower bounds of pyproject.toml, under the oldest Python alone.
"""
from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ROOT / "pyproject.toml"
LOCKS = ROOT / "requirements"
OLDEST_PYTHON = (3, 9)
BUILD_TOOLS = ["pip>=22.3", "setuptools>=77,<81", "wheel"]
# Horovod's setup.py fetches these by itself, as eggs, unless they are there.
HOROVOD_BUILD_TOOLS = ["cloudpickle", "packaging", "psutil", "pyyaml"]
CMAKE = "cmake>=3.21,<4"
HOROVOD_OPTIONS = {
    "HOROVOD_WITH_MXNET": "1",
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_PYTORCH": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITHOUT_MPI": "1",
}
HOROVOD_WORKS = """
import importlib.metadata, sys
assert importlib.metadata.version("horovod") == sys.argv[1]
import horovod.mxnet
"""
# Horovod imports MXNet by itself, when it is built and in horovodrun: it gets a copy of this file, which says why.
NUMPY_NAMES = ROOT / "recognition" / "engines" / "mxnet" / "numpy_names.py"
# What `make` and the user's shell set for themselves, and pip or a compiler would take for theirs.
FOREIGN = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "PIP_PREFIX")


class SetupError(Exception):
    """The set-up cannot go on; the message is one line about what is missing."""


def say(line: str) -> None:
    print(f"set-up: {line}", file=sys.stderr, flush=True)


class Environment:
    """A virtual environment, its stamps and its log."""

    def __init__(self, venv: Path, lock: Path) -> None:
        self.venv = venv
        self.lock = lock
        self.label = os.path.relpath(venv)
        self.python = venv / "bin" / "python"
        self.notes = venv / ".setup"
        self.log = self.notes / "install.log"
        self.identity = self.notes / "identity"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the environment for this process alone."""
        self.venv.parent.mkdir(parents=True, exist_ok=True)
        with open(self.venv.with_name(self.venv.name + ".lock"), "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"waiting for another set-up of {self.label}")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def run(self, *arguments: str, python: Path | None = None, shown: bool = True, **variables: str) -> None:
        """Run the environment's Python; its output goes to the log, whose end is ``shown`` when it fails."""
        kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        with open(self.log, "a") as log:
            status = subprocess.call(
                [str(python or self.python), *arguments], cwd=ROOT, env={**kept, **variables},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )
        if status:
            if shown:
                sys.stderr.writelines(f"    {line[:200]}\n" for line in self.log.read_text().splitlines()[-15:])
            raise SetupError(f"{' '.join(arguments[:3])} ended with status {status}: see above and {self.log}")

    def pip(self, *arguments: str, python: Path | None = None, shown: bool = True, **variables: str) -> None:
        self.run("-m", "pip", *arguments, "--disable-pip-version-check", "--no-input", python=python, shown=shown,
                 **variables)

    def make_for(self, identity: str) -> None:
        """Make a new environment: there is none, or it has another Python, another MXNet or another place."""
        if self.venv.exists() and not self.notes.is_dir():
            raise SetupError(f"{self.label} is there and was not made by this set-up: move it away")
        shutil.rmtree(self.venv, ignore_errors=True)
        self.notes.mkdir(parents=True)
        say(f"making {self.label} for Python {platform.python_version()}")
        self.run("-m", "venv", str(self.venv), python=base_interpreter())
        self.install_pins("build")
        self.identity.write_text(identity)

    def serves(self, identity: str) -> bool:
        return self.identity.is_file() and self.identity.read_text() == identity

    def missing(self, extras: Sequence[str]) -> list[str]:
        """The extras without a valid stamp."""
        stamps = {extra: self.notes / f"{extra}.stamp" for extra in extras}
        return [extra for extra, stamp in stamps.items()
                if not stamp.is_file() or stamp.read_text() != digest(extra, self.lock)]

    def install(self, extras: Sequence[str]) -> None:
        """Install the project, editable, with these extras, and stamp them."""
        say(f"installing {', '.join(extras)} into {self.label}: a few minutes; the log is {self.log}")
        self.install_project([extra for extra in extras if extra != "horovod"])
        if "horovod" in extras:
            self.install_horovod()
            self.install_project(extras)
        for extra in extras:
            (self.notes / f"{extra}.stamp").write_text(digest(extra, self.lock))

    def install_project(self, extras: Sequence[str]) -> None:
        self.install_pins("core", *extras)
        if "torch" in extras:
            self.install_torch()
        self.pip("install", "--no-build-isolation", "--no-deps", "-e", ".")

    def install_torch(self) -> None:
        """Install PyTorch for CPUs where pip finds that, else the registry's, with NVIDIA's libraries."""
        if pins(["torch-cpu"], self.lock):
            with contextlib.suppress(SetupError):
                self.install_pins("torch-cpu", shown=False)
                return
        say("pip finds no PyTorch for CPUs: it takes the one for NVIDIA's GPUs with its libraries, about 5 GB")
        self.install_pins("torch-cuda")

    def install_pins(self, *groups: str, command: Sequence[str] = ("install",), shown: bool = True) -> None:
        """Run pip, by default its install, on the pins of requirements/ for any of the groups."""
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("\n".join(pins(groups, self.lock)))
            file.flush()
            self.pip(*command, "--require-hashes", "--no-deps", "-r", file.name, shown=shown)

    def install_horovod(self) -> None:
        """Build Horovod against the installed MXNet, unless an installed Horovod works."""
        version = horovod_version()
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run(
                [str(self.python), "-c", HOROVOD_WORKS, version], cwd=ROOT, check=True, capture_output=True
            )
            return
        say(f"building Horovod {version} with MXNet and Gloo: about two minutes on two cores")
        self.install_pins("horovod")
        with tempfile.TemporaryDirectory(dir=space_free_folder()) as folder:
            wheel = self.build_horovod(version, Path(folder))
            self.pip("install", "--force-reinstall", "--no-deps", str(wheel))
        self.run("-c", HOROVOD_WORKS, version)

    def build_horovod(self, version: str, folder: Path) -> Path:
        """Build a wheel in ``folder``, whose path must hold no space: Horovod's CMake files cannot take one.

        They get MXNet's folder from the Python that runs them, hence the link.
        """
        link = folder / "venv"
        link.symlink_to(self.venv)
        self.install_pins("cmake", command=("install", "--target", str(folder / "tools")))
        self.install_pins("source", command=("download", "--no-build-isolation", "--no-binary", "horovod", "--dest",
                                             str(folder)))
        source = folder / f"horovod-{version}"
        shutil.unpack_archive(f"{source}.tar.gz", folder)
        shutil.copy(NUMPY_NAMES, source / "horovod" / "numpy_names.py")
        with open(source / "horovod" / "__init__.py", "a") as file:
            file.write("\nfrom horovod.numpy_names import answer_mxnet\nanswer_mxnet()\n")
        (folder / "sitecustomize.py").write_text(f"{NUMPY_NAMES.read_text()}\n\nanswer_mxnet()\n")
        # Where it runs, MXNet is loaded before: it must not look for it in this folder, which anyone could make again.
        (folder / "toolchain.cmake").write_text('set(CMAKE_SKIP_RPATH TRUE CACHE BOOL "")\n')
        self.pip(
            "wheel", "--no-deps", "--no-build-isolation", "--verbose", "--wheel-dir", str(folder), str(source),
            python=link / "bin" / "python", shown=True,
            PYTHONPATH=str(folder), TMPDIR=str(folder), MAKEFLAGS=f"-j{len(os.sched_getaffinity(0))}",
            HOROVOD_CMAKE=str(folder / "tools" / "cmake" / "data" / "bin" / "cmake"),
            CMAKE_TOOLCHAIN_FILE=str(folder / "toolchain.cmake"), **HOROVOD_OPTIONS,  # type: ignore[arg-type]
        )
        return next(folder.glob("horovod-*.whl"))


def base_interpreter() -> Path:
    """The interpreter outside any virtual environment."""
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def identity(venv: Path, extras: Sequence[str]) -> str:
    """The facts that cannot change in an environment: its place, its Python, and its MXNet."""
    mxnet = next((extra for extra in extras if extra in ("cpu", "cu112")), "none")
    return "\n".join([str(venv), str(base_interpreter()), "{}.{}".format(*sys.version_info), mxnet])


def digest(extra: str, lock: Path) -> str:
    """A hash of everything that decides what is installed for an extra."""
    parts = [PROJECT.read_bytes(), lock.read_bytes(), Path(__file__).read_bytes(), extra.encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def lock_path(oldest: bool = False) -> Path:
    """The file of pins for the Python that runs this, the newest or the oldest that pyproject.toml allows."""
    return LOCKS / "{}.{}{}.txt".format(*sys.version_info[:2], "-oldest" if oldest else "")


def pins(groups: Sequence[str], lock: Path) -> list[str]:
    """The lines of the file of pins that name one of the groups behind the package."""
    try:
        lines = lock.read_text().splitlines()
    except OSError as error:
        raise SetupError(f"{lock}: cannot be read: {error.strerror}; `make lock` makes it") from None
    return [line for line in lines if set(line.partition("  # ")[2].split()) & set(groups)]


def horovod_version() -> str:
    found = re.search(r'"horovod==([\w.]+)"', PROJECT.read_text())
    if not found:
        raise SetupError(f"{PROJECT} names no exact version of horovod")
    return found.group(1)


def without_torch(extras: Sequence[str], lock: Path) -> Sequence[str]:
    """The extras, without PyTorch where there is none for this Python and MXNet is wanted beside it.

    :raises SetupError: if there is none, and PyTorch is the engine.
    """
    if "torch" not in extras or pins(["torch"], lock):
        return extras
    none = f"no PyTorch for Python {platform.python_version()}"
    if not set(extras) & {"cpu", "cu112"}:
        raise SetupError(f"{none}: name a CPython 3.10 to 3.14 with PYTHON=")
    say(f"{none}: MXNet alone")
    return [extra for extra in extras if extra not in ("torch", "triton")]


def require_compiler() -> None:
    """Check for a compiler before anything is downloaded: Horovod is built from source.

    :raises SetupError: if there is none.
    """
    for tool in (os.environ.get("CXX", "c++"), "make"):
        if not shutil.which(tool):
            raise SetupError(f"no {tool}, which builds Horovod (on Debian and Ubuntu: apt install g++ make)")


def space_free_folder() -> str | None:
    """A place for temporary folders without a space in its path; None stands for Python's own choice."""
    return "/tmp" if re.search(r"\s", tempfile.gettempdir()) else None


def ensure(environment: Environment, extras: Sequence[str]) -> None:
    """Make the environment and install the extras, unless that is done already."""
    start, extras = time.monotonic(), without_torch(extras, environment.lock)
    wanted = identity(environment.venv, extras)
    with environment.locked():
        made = environment.serves(wanted)
        missing = environment.missing(extras) if made else extras
        if not missing:
            return
        if "horovod" in missing:
            require_compiler()
        if not made:
            environment.make_for(wanted)
        environment.install(extras)
        say(f"{environment.label} is ready after {time.monotonic() - start:.0f} s")


def main(arguments: Sequence[str]) -> int:
    oldest = arguments[0] == "--oldest"
    venv, *extras = arguments[oldest:]
    try:
        ensure(Environment(Path(venv).absolute(), lock_path(oldest)), extras)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
