#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The command of the launcher's pod in launch_job.yaml: it starts the run on the pods of the operator's host file, which
# has lines such as "faces-launch-worker-0 slots=8". All pods have the project in the same folder.

set -euo pipefail
processes=0 places=
while read -r pod slots; do
    [[ $pod ]] || continue
    processes=$((processes + ${slots#slots=}))
    places+=$pod:${slots#slots=},
done < "${HOSTFILE:-/etc/mpi/hostfile}"
python=${PYTHON:-.venv/bin/python}

# exec, so that the signals of Kubernetes reach the launcher.
exec "$python" -m recognition.launch -np "$processes" --hosts "${places%,}" --address "$POD_IP" \
    --ssh scripts/kubernetes/exec_host.sh --restarts 3 -- "$python" train_parall.py "$@"
