#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Verify a checkpoint: EVALSET is a set's file FOLDER/lfw.bin or a folder of such files, CKPT is PREFIX,EPOCH, PREFIX or a
# folder; further options are those of common.verification.
#   scripts/run_eval.sh datasets/faces_emore/lfw.bin models/r50-arcface-emore/model,1
# PYTHON names the interpreter; without it that of .venv, else python3.
set -euo pipefail
if [[ $# -lt 2 || $1 == -* || $2 == -* ]]; then
    echo "error: found '$*', expected: $0 EVALSET CKPT [options of common.verification]" >&2
    exit 2
fi
if [[ -d $1 ]]; then
    folder=$(realpath -- "$1") targets=
    for file in "$folder"/*.bin; do
        [[ ! -f $file ]] || targets+=${targets:+,}$(basename -- "$file" .bin)
    done
elif [[ -f $1 && $1 == *.bin ]]; then
    file=$(realpath -- "$1")
    folder=$(dirname -- "$file") targets=$(basename -- "$file" .bin)
else
    folder='' targets=''
fi
if [[ -z $targets ]]; then
    echo "error: $1: found no verification set, expected FOLDER/TARGET.bin or a folder of such files" >&2
    exit 2
fi
model=$(realpath -m -- "$2")
shift 2
cd "$(dirname "$0")/.."
default=python3
[[ ! -x .venv/bin/python ]] || default=.venv/bin/python
exec "${PYTHON:-$default}" -m common.verification --model "$model" --data "$folder" --targets "$targets" "$@"
