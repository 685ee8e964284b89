#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# scripts/slurm_host.sh HOST LINE: runs a shell line on another host of this job of Slurm, as ssh would: --ssh of
# recognition.launch. Its input goes to the line.
set -euo pipefail
host=$1
shift
exec srun --overlap --nodes=1 --ntasks=1 --nodelist="$host" --unbuffered --quiet bash -c "$*"
