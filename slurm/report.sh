#!/usr/bin/env bash
# The last job of a sweep: a report of the runs that are listed in a file.
#
#   sbatch slurm/report.sh FILE_OF_RUN_FOLDERS REPORT.md
#SBATCH --nodes=1
#SBATCH --ntasks=1
set -euo pipefail
project=${SLURM_SUBMIT_DIR:-$PWD} # SLURM runs a copy of this file in its spool folder
cd "$project"
scripts=${DCR_DS_SCRIPTS:-slurm}
# shellcheck source=slurm/common.sh
source "$scripts/common.sh"
# shellcheck source=slurm/job.sh
source "$scripts/job.sh"
[[ -n ${SLURM_JOB_ID:-} ]] || fail "not in a job; slurm/sweep.sh submits it"
activate
describe_job 1
mount_folders "" --output "$(dirname "$2")"
runs=()
while read -r run; do
    if [[ -f $run/report/report.md ]]; then
        runs+=("$run")
    else
        say "$run: not done, so it is not in the report"
    fi
done <"$1"
((${#runs[@]} > 0)) || fail "none of the runs in $1 is done" 1
choose_port
code=0
(ranks -- "$python" -m dcr_ds report "${runs[@]}" --out "$2") || code=$?
cat "$DCR_DS_ATTEMPT"/*.log
exit "$code"
