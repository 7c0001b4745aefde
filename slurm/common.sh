# What the scripts share: messages, submitting, the environment of a job, its ranks, requeue. Settings: slurm/settings.sh.
# The script that sources this has changed to the folder `project`, and has set `scripts`, the folder of this file:
# slurm/ of the project, or DCR_DS_SCRIPTS, which `dcr-ds slurm` sets where dcr-ds is installed without the project.
# shellcheck shell=bash disable=SC2034,SC2154

python=${DCR_DS_PYTHON:-python}
log_folder=$(realpath -m "${DCR_DS_LOGS:-slurm-logs}")
submitted=''
train=(-u train.py)
[[ -z ${DCR_DS_SCRIPTS:-} ]] || train=(-u -m dcr_ds train)

say() { echo "$(date '+%F %T') slurm: $*"; }

fail() { # message, exit code (default: 2, the user's input)
    echo "error: $1" >&2
    exit "${2:-2}"
}

submit() { # options and script of sbatch …: sets `submitted` to the job's id; on a dry run prints the command alone
    if [[ -n $dry_run ]]; then
        printf '%q ' sbatch "$@"
        echo
        submitted=ID$((${submitted#ID} + 1))
    else
        submitted=$(sbatch --parsable "$@")
        submitted=${submitted%%;*} # on a federation the cluster's name follows
    fi
}

activate() { # modules, conda or venv: here, and srun carries the environment to every rank
    set +u # the scripts of others use unset variables
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
        source "$DCR_DS_VENV/bin/activate" || fail "DCR_DS_VENV: there is no $DCR_DS_VENV/bin/activate"
    fi
    set -u
}

describe_job() { # sets job, attempt, logs, nodes, ranks_per_node, cores; exports what the ranks are told
    # an element of an array by its array: the id of its own that the last element has is that of the whole array
    job=$SLURM_JOB_ID
    [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    attempt=${SLURM_RESTART_COUNT:-0}
    logs=$log_folder/$job
    export DCR_DS_ATTEMPT=$logs/attempt-$attempt
    mkdir -p "$DCR_DS_ATTEMPT"
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    export DCR_DS_NODES="${nodes[*]}" DCR_DS_GPUS=${SLURM_GPUS_ON_NODE:-0}
    ranks_per_node=${SLURM_NTASKS_PER_NODE:-$DCR_DS_GPUS}
    ((ranks_per_node > 0)) || ranks_per_node=1
    cores=${SLURM_CPUS_PER_TASK:-$((SLURM_CPUS_ON_NODE / ranks_per_node))}
    export LOCAL_WORLD_SIZE=$ranks_per_node OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > 0 ? cores : 1))}
    # an address, not a name: names of nodes need not resolve
    MASTER_ADDR=$(scontrol show node "${nodes[0]}" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
    export MASTER_ADDR MASTER_PORT
    local end
    end=${SLURM_JOB_END_TIME:-$(date -d "$(job_field EndTime)" +%s 2>/dev/null || true)}
    [[ -z $end ]] || export DCR_DS_DEADLINE=$end
}

job_field() { # name: its value in scontrol's description of the job
    scontrol show job --oneliner "$job" | tr ' ' '\n' | awk -F= -v name="$1" '$1 == name && !found++ { print $2 }'
}

ranks() { # options of srun … -- command …: become srun, one task a rank, in the container if there is one; call it with &
    local options=() inside=()
    while [[ $1 != -- ]]; do
        options+=("$1")
        shift
    done
    shift
    if ((cores > 0)); then
        options+=(--cpus-per-task="$cores" --cpu-bind=cores)
    else
        say "$SLURM_CPUS_ON_NODE cores for $ranks_per_node ranks per node: slow; request more (SBATCH_CPUS_PER_GPU)"
        options+=(--overcommit)
    fi
    if [[ -n ${DCR_DS_CONTAINER:-} ]]; then
        local mounts=$project:$project${DCR_DS_SCRIPTS:+,$scripts:$scripts}${DCR_DS_MOUNTS:+,$DCR_DS_MOUNTS}
        case ${DCR_DS_CONTAINER_WITH:-pyxis} in
        pyxis)
            options+=(--container-image="$DCR_DS_CONTAINER" --container-mounts="$mounts" --container-workdir="$project")
            ;;
        apptainer) inside=(apptainer exec --nv --bind "$mounts" --pwd "$project" "$DCR_DS_CONTAINER") ;;
        *) fail "DCR_DS_CONTAINER_WITH: $DCR_DS_CONTAINER_WITH is neither pyxis nor apptainer" ;;
        esac
    fi
    exec srun --nodes="${#nodes[@]}" --ntasks-per-node="$ranks_per_node" "${options[@]}" "${inside[@]}" \
        bash "$scripts/rank.sh" "$@"
}

requeue() { # why, nodes to leave out …: the job starts again by itself; code 75 where it may not
    local reason=$1 state excluded
    shift
    trap '' TERM # SLURM ends this script as it requeues the job, and the nodes are excluded only after that
    state=$(job_field JobState)
    if [[ $state != RUNNING ]]; then
        say "$reason; not requeued: the job is $state, so it was cancelled, or SLURM requeues it itself"
        exit 75
    fi
    if ((attempt >= ${DCR_DS_MAX_REQUEUES:-100})); then
        say "$reason; not requeued: it already was $attempt times (DCR_DS_MAX_REQUEUES)"
        exit 75
    fi
    excluded=$(job_field ExcNodeList)
    [[ $excluded != "(null)" ]] || excluded=
    say "$reason; requeued${1:+ without $*}"
    if ! scontrol requeue "$job"; then
        say "SLURM does not requeue it; the same command resumes from the last checkpoint"
        exit 75
    fi
    if (($# > 0)); then
        excluded=${excluded:+$excluded,}$(IFS=, && echo "$*")
        scontrol update "JobId=$job" "ExcNodeList=$excluded" || say "SLURM does not exclude $excluded"
    fi
    exit 0
}

requeue_fault() { # why, exit code, nodes to leave out …: as requeue, but not again and again
    local reason=$1 code=$2 faults
    shift 2
    faults=$(cat "$logs/faults" 2>/dev/null || echo 0)
    if ((faults >= ${DCR_DS_MAX_FAULTS:-3})); then
        fail "$reason; given up after $faults requeues for faults (DCR_DS_MAX_FAULTS)" "$code"
    fi
    echo $((faults + 1)) >"$logs/faults"
    requeue "$reason" "$@"
}
