#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run the whole suite under each CPython 3.9 to 3.14 of this machine, and under 3.9 with the oldest dependencies, too:
#
#   test_all.sh cpu|cu112 [pytest's options]
#
# ENGINE=torch has PyTorch beside MXNet where there is one for the Python.
set -euo pipefail
cd "$(dirname "$0")/.."
mxnet=$1
shift
options=("$@") torch=()
[[ ${ENGINE:-mxnet} != torch ]] || torch=(torch triton)
passed=() failed=()

# Run the suite in an environment of its own: NAME PYTHON MXNET [--oldest]
suite() {
    local name=$1 python=$2 mxnet=$3
    echo "--- Python $name"
    if "$python" -I scripts/environment.py ${4:+"$4"} ".venvs/$name" "$mxnet" plot onnx test horovod "${torch[@]}" </dev/null &&
        REQUIRE_HOROVOD=1 REQUIRE_TORCH="${torch[*]}" ".venvs/$name/bin/python" -m pytest "${options[@]}" </dev/null; then
        passed+=("$name")
    else
        failed+=("$name")
    fi
}

pythons=$(scripts/choose_python.sh --all)
while IFS= read -r python; do
    version=$("$python" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    suite "$version" "$python" "$mxnet"
    [[ $version != 3.9 ]] || suite 3.9-oldest "$python" cpu --oldest
done <<<"$pythons"
echo "--- passed under Python: ${passed[*]:-none}; failed under: ${failed[*]:-none}"
[[ ${#failed[@]} == 0 ]]
