#!/usr/bin/env bash
# Become a rank: what srun says of this task, as torch wants it; then the command, in this very process, so that signals
# reach it and its exit code is the task's. It runs on the task's own node: nothing is expanded too early.
set -euo pipefail
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
exec >>"$DCR_DS_ATTEMPT/$SLURMD_NODENAME.log" 2>&1 # a file a node: with many, one file for all cannot be read
exec "$@"
