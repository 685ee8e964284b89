# SPDX-License-Identifier: Apache-2.0
"""Pin what `make` installs: every package with its version and the hashes of its files, for the Python that runs this.

    python scripts/lock.py                  # `make lock` runs it under each CPython 3.9 to 3.14 of this machine

pyproject.toml says what may be installed; the newest of that which the registry has goes to
``requirements/<version>.txt``, in the form of pip's hash-checking mode. A comment behind each package names the extras
that need it, ``core`` being what all need and ``build`` the tools: scripts/environment.py installs those of the extras
that it is asked for. The files are for x86-64 Linux, as the published MXNet is.

Under the oldest CPython there is another file, ``requirements/<version>-oldest.txt``: the lower bounds themselves, for
`make test-all`.
"""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from environment import (  # type: ignore[import-not-found]
    BUILD_TOOLS,
    CMAKE,
    HOROVOD_BUILD_TOOLS,
    OLDEST_PYTHON,
    ROOT,
    horovod_version,
    lock_path,
)
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

LEFT_OUT = ("horovod",)  # built from source by itself
NOT_PINNED = ("wandb", "mlflow")  # extras that no target of make installs
# One PyTorch under all Pythons. The registry's wheels are for NVIDIA's GPUs: the group "torch-cuda", with what they
# need beside. PyTorch has others for CPUs, a twentieth of that, which pip must be told of: the group "torch-cpu".
TORCH = "torch==2.13.0"
CUDA = re.compile(r"(nvidia|cuda)-|(torch|triton)$")
CPU_TORCH = {"3.11": "sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"}
MXNET = ("mxnet", "mxnet-cu112")
GROUPS = {"build": BUILD_TOOLS, "horovod": HOROVOD_BUILD_TOOLS, "cmake": [CMAKE]}  # beside the extras
# Nothing but the registry: files of this machine, under the same names and versions, may have other hashes.
PLAIN = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": "", "PIP_NO_INDEX": ""}


def pip(*arguments: str, **variables: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"], check=True,
                   cwd=ROOT, env={**os.environ, **PLAIN, **variables})


def resolve(wanted: list[str]) -> list[dict[str, Any]]:
    """pip's report on what it would install for these requirements in an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip("install", "--dry-run", "--ignore-installed", "--only-binary", ":all:", "--report", str(report), *wanted)
        found: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    return found


def resolve_source(requirement: str) -> dict[str, Any]:
    """pip's report on a source archive, of which the metadata alone are made, with the build tools of the project."""
    with tempfile.TemporaryDirectory() as folder:
        report, tools = Path(folder) / "report.json", Path(folder) / "tools.txt"
        tools.write_text("\n".join(BUILD_TOOLS))
        pip("install", "--dry-run", "--ignore-installed", "--no-deps", "--no-binary", ":all:", "--report", str(report),
            requirement, PIP_CONSTRAINT=str(tools))
        (found,) = json.loads(report.read_text())["install"]
    return dict(found)


def needed_by(requirements: list[str], found: Mapping[str, dict[str, Any]]) -> set[str]:
    """The names of the packages that these requirements bring, those of their extras too."""
    names: set[tuple[str, str]] = set()
    ahead = [(Requirement(text), "") for text in requirements]
    while ahead:
        requirement, extra = ahead.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in ("", *requirement.extras):
            if (name, wanted) in names or name in LEFT_OUT:
                continue
            names.add((name, wanted))
            ahead += [(Requirement(text), wanted) for text in found[name]["metadata"].get("requires_dist", [])]
    return {name for name, _ in names}


def project_extras() -> dict[str, list[str]]:
    """The requirements of each extra, and of all as ``core``, as pyproject.toml has them. Python 3.9 reads no TOML, and
    pip does: it is asked for the project's metadata."""
    (project,) = resolve(["--no-deps", "."])
    extras: dict[str, list[str]] = {"core": []}
    for text in project["metadata"]["requires_dist"]:
        requirement, (head, _, marker) = Requirement(text), text.partition(";")
        found = re.search(r"""extra == ["']([\w-]+)["']""", marker)
        extra = found[1] if found else "core"
        texts = extras.setdefault(extra, [])
        if not requirement.marker or requirement.marker.evaluate({"extra": extra}):
            texts.append(TORCH if requirement.name == "torch" else head.strip())
    return extras


def line(item: dict[str, Any], groups: list[str]) -> str:
    """The line of a package in the file: version, hash, and the extras that need it."""
    ((kind, digest),) = item["download_info"]["archive_info"]["hashes"].items()
    metadata = item["metadata"]
    return f"{canonicalize_name(metadata['name'])}=={metadata['version']} --hash={kind}:{digest}  # {' '.join(groups)}"


def resolve_with_mxnet(wanted: list[str]) -> dict[str, dict[str, Any]]:
    """The packages to install, by name. MXNet's own metadata ask for a NumPy below 2, which it does not need: that
    bound is left out."""
    mxnets = [resolve(["--no-deps", text])[0] for text in wanted if name_of(text) in MXNET]
    others = [text for text in wanted if name_of(text) not in MXNET]
    others += [text for item in mxnets for text in item["metadata"]["requires_dist"] if name_of(text) != "numpy"]
    return {canonicalize_name(item["metadata"]["name"]): item for item in [*resolve(sorted(set(others))), *mxnets]}


def name_of(requirement: str) -> str:
    return canonicalize_name(Requirement(requirement).name)


def oldest(requirement: str) -> str:
    """The requirement with its lower bound as the only version."""
    return re.sub(r">=\s*([\w.]+)[^;]*", r"==\1", requirement)


def write(path: Path, extras: Mapping[str, list[str]]) -> None:
    """Pin what the extras, and the tools beside them, need."""
    groups = {name: [*extras.get(name, []), *GROUPS.get(name, [])] for name in {**extras, **GROUPS}}
    found = resolve_with_mxnet(sorted({text for texts in groups.values() for text in texts}))
    owners: dict[str, list[str]] = {name: [] for name in found}
    for group, texts in groups.items():
        for name in needed_by(texts, found):
            owners[name].append("torch-cuda" if group == "torch" and CUDA.match(name) else group)
    lines = [line(found[name], owners[name]) for name in sorted(found)]
    if digest := CPU_TORCH.get("{}.{}".format(*sys.version_info)):
        lines.append(f"{TORCH}+cpu --hash={digest}  # torch-cpu")
    lines.append(line(resolve_source(f"horovod=={horovod_version()}"), ["source"]))
    path.parent.mkdir(exist_ok=True)
    head = "# Made by scripts/lock.py (`make lock`) from pyproject.toml: not to be edited."
    path.write_text("\n".join([head, *lines, ""]))
    print(f"{path.relative_to(ROOT)}: {len(lines)} packages")


def main() -> int:
    extras = {name: [text for text in texts if name_of(text) not in LEFT_OUT]
              for name, texts in project_extras().items() if name not in NOT_PINNED}
    write(lock_path(), extras)
    if sys.version_info[:2] == OLDEST_PYTHON:
        write(lock_path(oldest=True), {name: [oldest(text) for text in texts]
                                       for name, texts in extras.items() if name != "cu112"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
