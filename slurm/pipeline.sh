#!/usr/bin/env bash
# One job per stage of the recipe, each of its own size. A stage starts when the one before it is done.
#
#   slurm/pipeline.sh [--dry-run] [RECIPE] [--FIELD VALUE …]
#
# Run it from the project's folder. Sizes are options of sbatch in DCR_DS_SBATCH_REFINE, …_ALIGN and …_EVALUATE
# (slurm/settings.sh), or in DCR_DS_SBATCH for those that are not set.
set -euo pipefail
scripts=${DCR_DS_SCRIPTS:-slurm}
if [[ -z ${DCR_DS_SCRIPTS:-} && (! -f train.py || ! -f slurm/common.sh) ]]; then
    echo "error: $PWD is not the project's folder; cd there first" >&2
    exit 2
fi
# shellcheck source=slurm/common.sh
source "$scripts/common.sh"
trap cancel_on_failure EXIT

dry_run=''
if [[ ${1:-} == --dry-run ]]; then
    dry_run=yes
    shift
fi
activate
if [[ -z ${DCR_DS_STAGES:-} ]]; then # read from the recipe, so that a mistake in it is found before a job is queued
    DCR_DS_STAGES=$("$python" -m dcr_ds slurm --print-stages "$@") ||
        fail "no stages to submit; if this node has no Python with dcr_ds, name them in DCR_DS_STAGES"
fi
for stage in $DCR_DS_STAGES; do # all of them before the first job
    [[ $stage =~ ^(refine|align|evaluate)$ ]] ||
        fail "DCR_DS_STAGES=$DCR_DS_STAGES: $stage is no stage; stages are refine, align and evaluate, separated by spaces"
done
submitted=''
for stage in $DCR_DS_STAGES; do
    read_options "DCR_DS_SBATCH_${stage^^}"
    [[ -z $submitted ]] || depend_on afterok:"$submitted"
    submit --job-name="dcr-ds-$stage" "${options[@]}" "$scripts/dcr.sh" "$@" --stages "[$stage]"
    echo "$stage: job $submitted"
done
