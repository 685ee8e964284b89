#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Print the path of a CPython 3.9 to 3.14 that can hold MXNet, and say on stderr which it is.
#
#   choose_python.sh [VENV]   the interpreter of the virtual environment VENV if it works, else the best on this machine
#   choose_python.sh --all    one of each version on this machine, a line each
#
# PYTHON=... names the only one to try. When none fits: one line that says what is missing, and status 2.
set -euo pipefail

# The most used first; 3.10 and 3.9 get few new wheels.
readonly versions=(3.11 3.12 3.13 3.14 3.10 3.9)
readonly pyenv_versions=${PYENV_ROOT:-$HOME/.pyenv}/versions

fail() { echo "error: $*" >&2; exit 2; }

# Run an interpreter (a pyenv shim on PATH may well refuse) and print "fits|VERSION|PATH" or "no|VERSION|REASON".
probe() {
    timeout 30 "$1" -I - 2>/dev/null <<'PROBE' || echo "no||does not run"
import os, platform, sys

def lacks():
    if platform.python_implementation() != "CPython":
        return "is %s, not CPython" % platform.python_implementation()
    if not (3, 9) <= sys.version_info[:2] <= (3, 14):
        return "is Python %d.%d, not 3.9 to 3.14" % sys.version_info[:2]
    if sys.maxsize < 2**32:
        return "is a 32-bit build"
    try:
        os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError):
        return "is not built for glibc, and MXNet has no other wheels"
    for module in ("venv", "ensurepip"):
        try:
            __import__(module)
        except ImportError:
            return "has no module %s (on Debian and Ubuntu: apt install python%d.%d-venv)" % ((module,) + sys.version_info[:2])

reason = lacks()
print("|".join(["no" if reason else "fits", platform.python_version(), reason or sys.executable]))
PROBE
}

# All interpreters that may be a Python of the version $1, one a line: on PATH, then pyenv's, newest first.
candidates() {
    type -aP "python$1" python3 || true
    { compgen -G "$pyenv_versions/$1.*/bin/python3" || true; } | sort -rV
}

# Set found to "VERSION|PATH" of the first candidate for the version $1 that fits; keep the reasons of near misses.
find_version() {
    local candidate fits version rest
    while IFS= read -r candidate; do
        IFS='|' read -r fits version rest <<<"$(probe "$candidate")"
        [[ $version == "$1".* ]] || continue
        [[ $fits == fits ]] && { found="$version|$rest"; return 0; }
        misses+=("$candidate $rest")
    done < <(candidates "$1")
    return 1
}

choose() { # VERSION|PATH
    echo "Python ${1%%|*}: ${1#*|}" >&2
    echo "${1#*|}"
}

[[ "$(uname -s) $(uname -m)" == "Linux x86_64" ]] ||
    fail "MXNet 1.9.1 has wheels for Linux on x86-64 only, and this is $(uname -s) on $(uname -m)"

if [[ -n ${PYTHON:-} ]]; then
    IFS='|' read -r fits version rest <<<"$(probe "$PYTHON")"
    [[ $fits == fits ]] || fail "PYTHON=$PYTHON $rest: name a CPython 3.9 to 3.14"
    choose "$version|$rest"
    exit 0
fi

venv=${1:-}
if [[ -n $venv && $venv != --all && -x $venv/bin/python ]]; then
    IFS='|' read -r fits version rest <<<"$(probe "$venv/bin/python")"
    [[ $fits == fits ]] && { choose "$version|$venv/bin/python"; exit 0; }
fi

found="" misses=()
for version in "${versions[@]}"; do
    find_version "$version" || continue
    choose "$found"
    [[ $venv == --all ]] || exit 0
done
[[ -n $found ]] && exit 0
[[ ${#misses[@]} == 0 ]] || fail "no Python fits: ${misses[0]}"
fail "no CPython 3.9 to 3.14 on PATH or in $pyenv_versions: install one, or name it with PYTHON="
