#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# A job of Slurm on several hosts. Copy it, set the lines with #SBATCH, and from this project's folder:
#
#     sbatch slurm_job.sh --network r100 --dataset emore --models-root /net/models ...
#
# PROCESSES=8 sbatch ... starts eight processes on each host, which share out the GPUs of --devices. The hosts see the
# project in the same folder; ssh is not needed. Three minutes before its time is over the job saves a state and stops;
# submitted again with --resume auto it goes on. If a process dies, all start again, three times at most.

#SBATCH --job-name=faces
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=B:TERM@180
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
# #SBATCH --gpus-per-node=8
# #SBATCH --time=24:00:00

set -euo pipefail
each=${PROCESSES:-1}
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
places=$(printf "%s:$each," "${hosts[@]}")
python=${PYTHON:-.venv/bin/python}

# exec, so that the signals of Slurm reach the launcher.
exec "$python" -m recognition.launch -np $((each * ${#hosts[@]})) --hosts "${places%,}" --ssh scripts/slurm_host.sh \
    --restarts 3 -- "$python" train_parall.py "$@"
