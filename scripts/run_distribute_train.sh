#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Train on several processes of this machine: RANK_SIZE processes, the data set DATASET, options for train_parall.py.
#   scripts/run_distribute_train.sh 2 emore --network r50 --loss arcface
# PYTHON names the interpreter; without it that of .venv, else python3. Other machines: python -m recognition.launch --help
set -euo pipefail
if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ || $2 == -* ]]; then
    echo "error: found '$*', expected: $0 RANK_SIZE DATASET [options of train_parall.py]" >&2
    exit 2
fi
dataset=$2
[[ ! -d $dataset ]] || dataset=$(realpath -- "$dataset")
cd "$(dirname "$0")/.."
default=python3
[[ ! -x .venv/bin/python ]] || default=.venv/bin/python
readonly python=${PYTHON:-$default} size=$1
shift 2
exec "$python" -m recognition.launch -np "$size" -- "$python" -u train_parall.py --dataset "$dataset" "$@"
