#!/usr/bin/env bash
# One job: refine, align and evaluate on the nodes it is given; it goes on by itself after whatever stops it.
#
#   sbatch slurm/dcr.sh [RECIPE] [overrides…]
#   sbatch --nodes=4 --gpus-per-node=8 --time=12:00:00 slurm/dcr.sh recipes/qwen2.5-72b.yaml --refine.layer 40
#
# From the project's folder. Settings of a cluster: source slurm/settings.sh first. How to: docs/cluster.md.
#SBATCH --job-name=dcr-ds
#SBATCH --nodes=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
set -euo pipefail

project=${SLURM_SUBMIT_DIR:-$PWD} # this file is a copy of itself in SLURM's spool
if [[ -z ${DCR_DS_SCRIPTS:-} && (! -f $project/train.py || ! -f $project/slurm/common.sh) ]]; then
    echo "error: $project is not the project's folder; cd there, then sbatch slurm/dcr.sh" >&2
    exit 2
fi
cd "$project"
scripts=${DCR_DS_SCRIPTS:-slurm}
# shellcheck source=slurm/common.sh
source "$scripts/common.sh"
[[ -n ${SLURM_JOB_ID:-} ]] || fail "not in a job; submit it: sbatch slurm/dcr.sh $*"

stopping='' again='' step=''
# USR1 comes to this script alone, and srun passes it on; TERM SLURM has sent to the ranks itself, and twice is too often
trap 'stopping=yes again=yes; [[ -z $step ]] || kill -USR1 "$step" 2>/dev/null || true' USR1
trap 'stopping=yes again=yes' TERM

activate
describe_job
if [[ -n ${DCR_DS_POINTS:-} ]]; then # an element of slurm/sweep.sh: its line of the file of points
    IFS=$'\t' read -ra point < <(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$DCR_DS_POINTS")
    set -- "$@" "${point[@]}"
fi
say "job $job, attempt $attempt, $ranks_per_node ranks on each of ${nodes[*]}; their output: $DCR_DS_ATTEMPT"
say "python ${train[*]} $*"
srun_log=$DCR_DS_ATTEMPT/srun.log
tail -q -n +1 -F --pid=$$ "$DCR_DS_ATTEMPT/${nodes[0]}.log" "$srun_log" 2>/dev/null & # rank 0 and srun speak here, too
trap 'sleep 1' EXIT                                                                  # and are heard to their end

seconds=${DCR_DS_PREFLIGHT_SECONDS:-180}
if ((seconds > 0)); then
    verdict=$DCR_DS_ATTEMPT/preflight left=$((3 * seconds))
    ranks --kill-on-bad-exit=0 -- "$python" -u -m dcr_ds.run.preflight --verdict "$verdict" \
        --seconds "$seconds" --free-gib "${DCR_DS_FREE_GIB:-5}" "$@" &
    step=$!
    while kill -0 "$step" 2>/dev/null && ((left-- > 0)); do
        sleep 1
        [[ ! -f $verdict ]] || left=$((left < 10 ? left : 10)) # who hangs has no say, and is ended
    done
    kill "$step" 2>/dev/null || true
    wait "$step" || true
    step=''
    [[ -z $stopping ]] || requeue "told to stop before the start"
    if [[ ! -f $verdict ]]; then
        printf 'bad\nbad %s\n' "${nodes[0]}" >"$verdict"
        say "preflight: ${nodes[0]}, the first node, gave no verdict"
    fi
    mapfile -t bad < <(sed -n 's/^bad //p' "$verdict")
    case $(head -n 1 "$verdict") in
    good) ;;
    user) exit 2 ;;
    *) requeue_fault "preflight failed" 1 "${bad[@]}" ;;
    esac
fi

ranks --kill-on-bad-exit=1 -- "$python" "${train[@]}" "$@" 2>"$srun_log" &
step=$!
again=yes
while [[ -n $again ]]; do # a signal ends a wait too early
    again='' code=0
    wait "$step" || code=$?
done

# srun's code is the largest: that of ranks it terminated hides what the first one ended with, after all had agreed on it
for agreed in 75 2; do
    ! grep -q "exit code $agreed\$" "$srun_log" || code=$agreed
done
case $code in
0) say "done" ;;
2) exit 2 ;;
75) requeue "stopped and saved" ;;
138) requeue "stopped by USR1 where there was nothing to save" ;;
*)
    [[ -z $stopping ]] || requeue "told to stop, and ended with code $code"
    grep -h '^error:' "$DCR_DS_ATTEMPT"/*.log | sort -u | tee "$DCR_DS_ATTEMPT/errors" || true
    if [[ -s $DCR_DS_ATTEMPT/errors ]] && cmp -s "$DCR_DS_ATTEMPT/errors" "$logs/attempt-$((attempt - 1))/errors"; then
        fail "the same as in the attempt before, so it would come again; not requeued" "$code" # a loss that diverges
    fi
    requeue_fault "a rank failed (code $code; srun names it above)" "$code"
    ;;
esac
