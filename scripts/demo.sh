#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The demo: make a small set of drawn faces, train ArcFace on it in parallel on x and W, draw the run.
# Options go to train_parall.py. `make demo` makes the environment first.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly python=.venv/bin/python data=datasets/demo model=models/demo-arcface-demo

[[ -f $data/property ]] || "$python" -m datasets.demo --output "$data"
"$python" -u train_parall.py --network demo --loss arcface --dataset demo "$@"
"$python" -m common.plot_run "$model"
