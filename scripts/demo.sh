#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The demo: make a small set of drawn faces, train ArcFace on it in parallel on x and W, draw the run.
# Options go to train_parall.py. `make demo` makes the environment first. Stopped, it goes on when it is run again.
# ENGINE=torch trains with PyTorch, in an environment and into a folder of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly data=datasets/demo
python=.venv/bin/python model=models/demo-arcface-demo
if [[ ${ENGINE:-mxnet} == torch ]]; then
    python=.venv-torch/bin/python model+=-torch
    set -- --engine torch --extra-model-name torch "$@"
fi

[[ -f $data/property ]] || "$python" -m datasets.demo --output "$data"
"$python" -u train_parall.py --network demo --loss arcface --dataset demo --devices cpu:2 --per-batch-size 32 \
    --lr 0.1 --lr-steps 1000,1300 --max-steps 1500 --verbose 250 --frequent 50 --resume auto "$@"
echo
"$python" -m common.plot_run "$model"
echo "checkpoint: $model/model-0000.params"
