#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run the whole suite under each CPython 3.9 to 3.12 of this machine: test_all.sh cpu|cu112 [pytest's options]
set -euo pipefail
cd "$(dirname "$0")/.."
mxnet=$1
shift

pythons=$(scripts/choose_python.sh --all)
passed=() failed=()
while IFS= read -r python; do
    version=$("$python" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "--- Python $version"
    if "$python" -I scripts/environment.py ".venvs/$version" "$mxnet" plot onnx test horovod </dev/null &&
        REQUIRE_HOROVOD=1 ".venvs/$version/bin/python" -m pytest "$@" </dev/null; then
        passed+=("$version")
    else
        failed+=("$version")
    fi
done <<<"$pythons"
echo "--- passed under Python: ${passed[*]:-none}; failed under: ${failed[*]:-none}"
[[ ${#failed[@]} == 0 ]]
