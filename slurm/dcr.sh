#!/usr/bin/env bash
# One job: refine, align and evaluate. It resumes by itself after a time limit, a preemption or a failure.
#
#   sbatch slurm/dcr.sh [RECIPE] [--FIELD VALUE …]
#   sbatch --nodes=4 --gpus-per-node=8 --time=12:00:00 slurm/dcr.sh recipes/qwen2.5-72b.yaml --refine.layer 40
#
# Submit it from the project's folder. Settings of the cluster: source slurm/settings.sh first. Guide: docs/cluster.md.
#SBATCH --job-name=dcr-ds
#SBATCH --nodes=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
set -euo pipefail

# This process only waits and takes signals: in bash 5.2, a signal with a trap that arrives during $(…) may end a script.
# `run` does the work in a subshell. It reads in the folder `state` whether the job was asked to stop, and writes there
# the process of srun. USR1 reaches this process alone, and srun passes it on to the ranks, which SLURM itself sends TERM.
state=/tmp/dcr-ds-${SLURM_JOB_ID:-0}-$$
# shellcheck disable=SC2329  # the trap calls it
ask_to_stop() {
    local step
    [[ -s $state/stop ]] || echo "$SECONDS" >"$state/stop"
    ! read -r step 2>/dev/null <"$state/step" || kill -USR1 "$step" 2>/dev/null || true
}
trap ask_to_stop USR1
trap 'echo >>"$state/term"' TERM
mkdir -m 700 "$state"

lead=300 # seconds before the time limit at which SLURM sends USR1: #SBATCH --signal above, or SBATCH_SIGNAL
[[ ${SBATCH_SIGNAL:-} != *@* ]] || lead=${SBATCH_SIGNAL##*@}

run() { # recipe and overrides …
    trap : TERM
    local process=$BASHPID
    project=${SLURM_SUBMIT_DIR:-$PWD} # SLURM runs a copy of this file in its spool folder
    if [[ -z ${DCR_DS_SCRIPTS:-} && (! -f $project/train.py || ! -f $project/slurm/common.sh) ]]; then
        echo "error: $project is not the project's folder; cd there, then sbatch slurm/dcr.sh" >&2
        exit 2
    fi
    cd "$project"
    scripts=${DCR_DS_SCRIPTS:-slurm}
    # shellcheck source=slurm/common.sh
    source "$scripts/common.sh"
    # shellcheck source=slurm/job.sh
    source "$scripts/job.sh"
    # shellcheck source=slurm/preflight.sh
    source "$scripts/preflight.sh"
    [[ -n ${SLURM_JOB_ID:-} ]] || fail "not in a job; submit it: sbatch slurm/dcr.sh $*"

    # before any work: bash would find them where the job is to be requeued
    check_numbers DCR_DS_PREFLIGHT_SECONDS DCR_DS_END_SECONDS DCR_DS_MAX_FAULTS DCR_DS_MAX_IDLE DCR_DS_MAX_REQUEUES

    activate
    describe_job
    if [[ ${1:-} == --points ]]; then # an element of slurm/sweep.sh: its line in the file of points
        IFS=$'\t' read -ra point < <(sed -n "$((element + 1))p" "$2") || fail "$2: has no line for element $element"
        set -- "${@:3}" "${point[@]}"
    fi
    mount_folders "$@"
    say "job $job, attempt $attempt, $ranks_per_node ranks on each of ${nodes[*]}; their output: $DCR_DS_ATTEMPT"
    say "python ${train[*]} $*"
    ((limit == 0 || limit > lead)) ||
        say "WARNING: the time limit of $limit s is not longer than the $lead s before it at which SLURM asks to stop"
    preflight_log=$DCR_DS_ATTEMPT/srun-preflight srun_log=$DCR_DS_ATTEMPT/srun
    # the output of rank 0 and of srun is also that of the job, to the end
    tail -q -n +1 -F --pid="$process" "$DCR_DS_ATTEMPT/${nodes[0]}.log" "$preflight_log" "$srun_log" 2>/dev/null &
    trap 'sleep 1' EXIT

    seconds=${DCR_DS_PREFLIGHT_SECONDS:-600}
    ((seconds == 0)) || preflight "$@"
    ! stopping || requeue "asked to stop before the start"
    choose_port
    # --wait: a node whose slurmstepd is gone never reports the end of its ranks
    start "$srun_log" --kill-on-bad-exit=1 --wait="${DCR_DS_END_SECONDS:-120}" -- "$python" "${train[@]}" "$@"
    code=0
    end || code=$?

    # srun returns the largest code, that of ranks it terminated; the code on which all ranks agreed is in its messages
    for agreed in 75 2; do
        ! grep -q "exit code $agreed\$" "$srun_log" || code=$agreed
    done
    case $code in
    0) say "done" ;;
    2) exit 2 ;;
    75) requeue "stopped and saved" ;;
    138) requeue "stopped by USR1 before there was anything to save" ;;
    *)
        ! stopping || requeue "asked to stop, and ended with code $code"
        has_started || is_slurm_down "$srun_log" || fail "$cannot_start $(tail -n 5 "$srun_log")"
        errors=$DCR_DS_ATTEMPT/errors
        grep -h '^error:' "$DCR_DS_ATTEMPT"/*.log | sort -u | tee "$errors" || true
        if [[ -s $errors ]] && cmp -s "$errors" "$logs/attempt-$((attempt - 1))/errors"; then # such as a loss that diverges
            fail "the same error as in the attempt before, so it would come again; not requeued" "$code"
        fi
        requeue_fault "a rank failed (code $code; srun names it above)" "$code"
        ;;
    esac
}

run "$@" &
while kill -0 $! 2>/dev/null; do # a signal interrupts `wait`
    wait $! || true
done
code=0
wait $! || code=$?
rm -rf "$state"
exit "$code"
