#!/usr/bin/env bash
# Run a command as one rank: export what torch expects, then replace this process by the command, so that it gets the
# signals and its exit code is that of the task. Runs on the node of the task.
set -euo pipefail
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
mkdir -p "$DCR_DS_ATTEMPT" # exists already if the nodes share it
exec >>"$DCR_DS_ATTEMPT/$SLURMD_NODENAME.log" 2>&1 # one file per node
exec "$@"
