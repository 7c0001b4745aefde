# Functions of all scripts: messages, submitting jobs, activating Python. The settings are explained in settings.sh.
#
# The script that sources this file has changed to the folder `project` and has set `scripts`, the folder of this file:
# slurm/ of the project, or DCR_DS_SCRIPTS, which `dcr-ds slurm` sets if dcr-ds is installed without the project.
# shellcheck shell=bash disable=SC2034,SC2154

python=${DCR_DS_PYTHON:-python}
log_folder=$(realpath -m "${DCR_DS_LOGS:-slurm-logs}")
submitted=''
submitted_jobs=()
train=(-u train.py)
[[ -z ${DCR_DS_SCRIPTS:-} ]] || train=(-u -m dcr_ds train)

say() { echo "$(date '+%F %T') slurm: $*"; }

fail() { # message, exit code (default: 2, wrong input)
    echo "error: $1" >&2
    exit "${2:-2}"
}

check_numbers() { # names of settings …
    local name
    for name in "$@"; do
        [[ ${!name:-0} =~ ^(0|[1-9][0-9]*)$ ]] || fail "$name=${!name}: must be a whole number; see slurm/settings.sh"
    done
}

read_options() { # name of a setting: sets `options`, its words, with quotes as in a shell; DCR_DS_SBATCH if it is not set
    local name=$1 words
    [[ -n ${!name:-} ]] || name=DCR_DS_SBATCH
    words=$(xargs -r -n 1 printf '%s\n' <<<"${!name:-}" 2>/dev/null) || fail "$name=${!name}: a quote is not closed"
    options=()
    [[ -z $words ]] || mapfile -t options <<<"$words"
    for words in "${options[@]}"; do
        [[ $words != --arr* && $words != -a* ]] || fail "$name=${!name}: $words: the jobs of an array would all be the \
same run; use slurm/sweep.sh, and DCR_DS_SWEEP_AT_ONCE"
    done
}

depend_on() { # condition: adds it to `options`, together with a dependency of the settings
    local condition=$1 kept=() i
    for ((i = 0; i < ${#options[@]}; i++)); do
        case ${options[i]} in
        --dep*=*) condition+=,${options[i]#*=} ;;
        --dep* | -d) condition+=,${options[++i]:-} ;;
        -d*) condition+=,${options[i]#-d} ;;
        *) kept+=("${options[i]}") ;;
        esac
    done
    [[ $condition != *\?* ]] || fail "$condition: SLURM cannot combine the dependency of this job, on the one before, \
with one of yours that has a ?; separate yours by commas"
    # without --kill-on-invalid-dep, a job would stay in the queue for ever when the one before it has failed
    options=("${kept[@]}" --dependency="$condition" --kill-on-invalid-dep=yes)
}

submit() { # options and script of sbatch …: sets `submitted` to the job id; on a dry run only prints the command
    if [[ -n $dry_run ]]; then
        printf '%q ' sbatch "$@"
        echo
        submitted=ID$((${submitted#ID} + 1))
        return
    fi
    local id
    id=$(sbatch --parsable "$@") || fail "sbatch refused a job (its message is above): sbatch $*"
    submitted_jobs+=("$id")
    submitted=${id%%;*} # with --clusters, the name of the cluster follows
}

cancel_on_failure() { # for trap … EXIT: a script that fails leaves no part of its jobs behind
    local code=$? id
    ((code != 0)) || return 0
    for id in "${submitted_jobs[@]}"; do
        local cluster=()
        [[ $id != *";"* ]] || cluster=(--clusters="${id#*;}")
        if scancel "${cluster[@]}" "${id%%;*}"; then
            say "cancelled job $id, since not all jobs could be submitted"
        else
            say "job $id could not be cancelled; cancel it with: scancel ${id%%;*}"
        fi
    done
}

activate() { # load modules, conda or a virtual environment; srun passes the environment on to all ranks
    [[ -z ${DCR_DS_CONDA:-} || -z ${DCR_DS_VENV:-} ]] ||
        fail "DCR_DS_CONDA=$DCR_DS_CONDA and DCR_DS_VENV=$DCR_DS_VENV: two environments; set one of them"
    set +u # scripts of others use unset variables
    local module
    for module in ${DCR_DS_MODULES:-}; do
        module load "$module" || fail "DCR_DS_MODULES: module load $module failed"
    done
    if [[ -n ${DCR_DS_CONDA:-} ]]; then
        eval "$(conda shell.bash hook)"
        conda activate "$DCR_DS_CONDA" || fail "DCR_DS_CONDA: conda activate $DCR_DS_CONDA failed"
    fi
    if [[ -n ${DCR_DS_VENV:-} ]]; then
        # shellcheck disable=SC1091
        source "$DCR_DS_VENV/bin/activate" || fail "DCR_DS_VENV: $DCR_DS_VENV/bin/activate does not exist"
    fi
    set -u
}
