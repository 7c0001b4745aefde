#!/usr/bin/env bash
# Run a command as one rank: export srun's description of this task as torch expects it, then replace this process by the
# command, so that signals reach it and its exit code is the task's. Variables are expanded on the node of the task.
set -euo pipefail
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
exec >>"$DCR_DS_ATTEMPT/$SLURMD_NODENAME.log" 2>&1 # one file per node: with many nodes, a shared one would be unreadable
exec "$@"
