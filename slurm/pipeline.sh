#!/usr/bin/env bash
# A chain of jobs, one for each stage of the recipe, of its own size; a stage starts when the one before it is done.
#
#   slurm/pipeline.sh [--dry-run] [RECIPE] [overrides…]
#
# From the project's folder. Sizes are options of sbatch: DCR_DS_SBATCH_REFINE, …_ALIGN, …_EVALUATE (slurm/settings.sh).
set -euo pipefail
project=$PWD
scripts=${DCR_DS_SCRIPTS:-slurm}
if [[ -z ${DCR_DS_SCRIPTS:-} && (! -f train.py || ! -f slurm/common.sh) ]]; then
    echo "error: $PWD is not the project's folder; cd there first" >&2
    exit 2
fi
# shellcheck source=slurm/common.sh
source "$scripts/common.sh"

dry_run=''
if [[ ${1:-} == --dry-run ]]; then
    dry_run=yes
    shift
fi
activate
if [[ -z ${DCR_DS_STAGES:-} ]]; then # the recipe knows, and its mistakes are told before anything waits in a queue
    DCR_DS_STAGES=$("$python" -m dcr_ds slurm --print-stages "$@") ||
        fail "no stages to submit; where this node has no Python with dcr_ds, name them in DCR_DS_STAGES"
fi
submitted=''
for stage in $DCR_DS_STAGES; do
    size=DCR_DS_SBATCH_${stage^^}
    read -ra options <<<"${!size:-}"
    # a job whose turn can never come is cancelled; it would stay in the queue for ever
    [[ -z $submitted ]] || options+=(--dependency=afterok:"$submitted" --kill-on-invalid-dep=yes)
    submit --job-name="dcr-ds-$stage" "${options[@]}" "$scripts/dcr.sh" "$@" --stages "[$stage]"
    echo "$stage: job $submitted"
done
