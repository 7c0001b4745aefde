#!/usr/bin/env bash
# An array of jobs, one per combination of values, and a report of all runs at the end.
#
#   slurm/sweep.sh [--dry-run] RECIPE --FIELD VALUE,VALUE… [--FIELD VALUE,VALUE…]… [-- --FIELD VALUE …]
#   slurm/sweep.sh recipes/smollm2-135m.yaml --seed 0,1,2 --refine.loss circle,supcon -- --align.epochs 0.5
#   A comma in brackets belongs to its value: --stages [align],[refine,align]
#   fields that are often swept: seed, refine.layer, refine.loss, refine.retain_weight, align.safe_ratio
#
# Run it from the project's folder. Size of each job: DCR_DS_SBATCH_SWEEP (slurm/settings.sh). The runs, named after
# their values, and report.md with report.html are in runs/sweep-<recipe>, or in the folder of --output after the --.
set -euo pipefail
scripts=${DCR_DS_SCRIPTS:-slurm}
if [[ -z ${DCR_DS_SCRIPTS:-} && (! -f train.py || ! -f slurm/common.sh) ]]; then
    echo "error: $PWD is not the project's folder; cd there first" >&2
    exit 2
fi
# shellcheck source=slurm/common.sh
source "$scripts/common.sh"

split_values() { # field, its values: sets `values`; a comma in brackets belongs to its value
    local part value='' opened closed
    values=()
    while IFS= read -r -d , part; do
        [[ -n $part ]] || fail "slurm/sweep.sh: $1 $2: a value is empty; write null for none"
        value+=${value:+,}$part
        opened=${value//[^\[\{]/} closed=${value//[^\]\}]/}
        ((${#opened} == ${#closed})) || continue
        values+=("$value")
        value=''
    done <<<"$2,"
    [[ -z $value ]] || fail "slurm/sweep.sh: $1 $2: a bracket is not closed"
}

dry_run=''
if [[ ${1:-} == --dry-run ]]; then
    dry_run=yes
    shift
fi
recipe=${1:-}
[[ -n $recipe && $recipe != -* ]] || fail "slurm/sweep.sh: a recipe first, then what to sweep"
shift
stem=$(basename "$recipe" .yaml)
points=('') names=("$stem")
while (($# > 0)) && [[ $1 != -- ]]; do
    [[ $1 == --* && -n ${2:-} ]] || fail "slurm/sweep.sh: $1: use --FIELD VALUE,VALUE…; fields of all runs follow after --"
    [[ $1 != --name && $1 != --output ]] || fail "slurm/sweep.sh: $1: each run has a name of its own in one folder"
    [[ ${points[0]} != *"$1"$'\t'* ]] || fail "slurm/sweep.sh: $1 is given twice; write all of its values in one list"
    split_values "$1" "$2"
    crossed=() crossed_names=()
    for i in "${!points[@]}"; do
        for value in "${values[@]}"; do
            crossed+=("${points[i]}$1"$'\t'"$value"$'\t')
            crossed_names+=("${names[i]}-${1##*[.-]}${value//[^A-Za-z0-9._]/_}")
        done
    done
    points=("${crossed[@]}") names=("${crossed_names[@]}")
    shift 2
done
((${#points[@]} > 1)) || fail "slurm/sweep.sh: nothing to sweep; e.g. --seed 0,1,2"
twice=$(printf '%s\n' "${names[@]}" | sort | uniq -d)
[[ -z $twice ]] || fail "slurm/sweep.sh: several runs would be named ${twice//$'\n'/, }; leave out equal values, and values \
that differ in special characters only"
shift $(($# > 0 ? 1 : 0)) # the --
output=runs/sweep-$stem
for ((i = 1; i <= $#; i++)); do
    following=$((i + 1))
    [[ ${!i} != --output ]] || output=${!following:-}
    [[ ${!i} != --output=* ]] || output=${!i#--output=}
    [[ ${!i} != --name && ${!i} != --name=* ]] || fail "slurm/sweep.sh: --name: each run is named after its values"
done

if [[ -n $dry_run ]]; then
    sweep=$(mktemp -d)
    trap 'rm -rf "$sweep"' EXIT
else
    trap cancel_on_failure EXIT
    sweep=$log_folder/sweep-$stem-$(date +%Y%m%d-%H%M%S)-$$
    mkdir -p "$sweep"
fi
for i in "${!points[@]}"; do # one line per element of the array, with its arguments separated by tabs
    printf -- '%s--name\t%s\t--output\t%s\n' "${points[i]}" "${names[i]}" "$output" >>"$sweep/points"
    echo "$output/${names[i]}" | tee -a "$sweep/runs"
done
activate
if "$python" -c 'import dcr_ds' 2>/dev/null; then # a mistake is found before a job is queued
    "$python" -m dcr_ds slurm --check-points "$sweep/points" "$recipe" "$@" || exit 2
fi
read_options DCR_DS_SBATCH_SWEEP
array=0-$((${#points[@]} - 1))${DCR_DS_SWEEP_AT_ONCE:+%$DCR_DS_SWEEP_AT_ONCE}
submit --job-name="dcr-ds-sweep" --array="$array" --export=ALL "${options[@]}" "$scripts/dcr.sh" \
    --points "$sweep/points" "$recipe" "$@"
echo "sweep of ${#points[@]} runs: job $submitted"
unset SBATCH_GPUS_PER_NODE SBATCH_CPUS_PER_GPU SBATCH_MEM_PER_GPU SBATCH_EXCLUSIVE # a report needs one core
DCR_DS_SBATCH='' read_options DCR_DS_SBATCH_REPORT
depend_on afterany:"$submitted" # since the report of the runs that are done is wanted even if others failed
submit --job-name="dcr-ds-report" "${options[@]}" "$scripts/report.sh" "$sweep/runs" "$output/report.md"
echo "table: job $submitted, $output/report.md"
