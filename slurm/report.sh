#!/usr/bin/env bash
# The last job of a sweep: one report of the runs that a file lists.
#
#   sbatch slurm/report.sh FILE_OF_RUN_FOLDERS REPORT.md
#SBATCH --nodes=1
#SBATCH --ntasks=1
set -euo pipefail
project=${SLURM_SUBMIT_DIR:-$PWD} # this file is a copy of itself in SLURM's spool
cd "$project"
scripts=${DCR_DS_SCRIPTS:-slurm}
# shellcheck source=slurm/common.sh
source "$scripts/common.sh"
[[ -n ${SLURM_JOB_ID:-} ]] || fail "not in a job; slurm/sweep.sh submits it"
activate
SLURM_NTASKS_PER_NODE=1
describe_job
runs=()
while read -r run; do
    if [[ -f $run/report/report.md ]]; then
        runs+=("$run")
    else
        say "$run: not done, so it is not in the table"
    fi
done <"$1"
((${#runs[@]} > 0)) || fail "none of the runs in $1 is done" 1
code=0
(ranks -- "$python" -m dcr_ds report "${runs[@]}" --out "$2") || code=$?
cat "$DCR_DS_ATTEMPT"/*.log
exit "$code"
