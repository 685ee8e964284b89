# SPDX-License-Identifier: Apache-2.0
"""Licences of everything that is pinned and installed, and known vulnerabilities of all that is pinned.

    .venv/bin/python scripts/audit.py .venv              # `make audit`

Licences come from the packages' own metadata; a licence that is not on the list below, or none, ends with status 1.
Vulnerabilities come from pip-audit, which is installed beside the environment; a line tells if it reaches no database.
SECURITY.md has the known ones, and our protection from them.
"""
from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Parts of the names and classifiers of licences that allow use and redistribution with notices alone, and of weaker
# copyleft for files that we neither change nor ship.
ALLOWED = (r"apache|\bbsd|\bmit\b|\bisc\b|python software foundation|\bpsf|mpl[ -]2|mozilla|hpnd|zlib|unlicense|\bcc0|"
           r"public domain|lgpl")
UNSAID = {  # whose metadata name no licence, by their own files
    "atheris": "Apache-2.0",
    "cmake": "BSD-3-Clause",  # is in the environment while Horovod is built, and not after
}
CUDA = re.compile(r"nvidia-|mxnet-cu|cuda-|triton$")  # NVIDIA's own licence, which users of GPUs accept


def pinned() -> dict[str, str]:
    """The names and versions in the file of pins for the Python that runs this."""
    path = ROOT / "requirements" / "{}.{}.txt".format(*sys.version_info)
    lines = (line.split()[0] for line in path.read_text().splitlines() if "==" in line and not line.startswith("#"))
    return dict(line.split("==") for line in lines)


def licence_of(name: str) -> str:
    """The licence in the metadata of an installed package; '' if there is none."""
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return UNSAID.get(name, "")
    classifiers = metadata.get_all("Classifier", [])
    classified = [text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License")]
    expression, licence = ((metadata.get_all(key) or [""])[0] for key in ("License-Expression", "License"))
    said = expression or "; ".join(classified) or licence.strip()
    return UNSAID.get(name, "") if said in ("", "UNKNOWN", "OSI Approved") else said.splitlines()[0][:80]


def licences(names: dict[str, str]) -> list[str]:
    """Print a line for each package; returns the names of those whose licence is not allowed or not known."""
    bad = []
    for name, version in sorted(names.items()):
        if CUDA.match(name):
            continue
        said = licence_of(name)
        fine = bool(re.search(ALLOWED, said, re.IGNORECASE))
        print(f"{name:28}{version:18}{said or 'not installed, or no licence said'}{'' if fine else '   <--'}")
        bad += [] if fine else [name]
    return bad


def vulnerabilities(names: dict[str, str]) -> str:
    """The finds of pip-audit, or the reason why it could not look."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "pins.txt"
        wanted.write_text("".join(f"{name}=={version}\n" for name, version in names.items() if not CUDA.match(name)))
        subprocess.run([sys.executable, "-m", "venv", f"{folder}/venv"], check=True)
        subprocess.run([f"{folder}/venv/bin/python", "-m", "pip", "install", "--quiet", "pip-audit"], check=True)
        done = subprocess.run([f"{folder}/venv/bin/pip-audit", "--no-deps", "--disable-pip", "-r", str(wanted)],
                              capture_output=True, text=True)
    unseen = done.stdout.count("could not be audited")
    if unseen:
        seen = [line for line in done.stdout.splitlines() if "could not be audited" not in line]
        return "\n".join([f"pip-audit's database knows nothing of {unseen} of {len(names)} packages", *seen])
    return done.stdout + done.stderr


def main() -> int:
    names = pinned()
    bad = licences(names)
    print(f"\n{vulnerabilities(names)}")
    if bad:
        print(f"licences to look at: {', '.join(bad)}", file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
