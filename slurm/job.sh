# Functions of the job scripts: the resources of the job, starting its ranks, requeueing it.
# shellcheck shell=bash disable=SC2034,SC2154

OUTPUT_FIELD="s/^output: *('([^']*)'|\"([^\"]*)\"|([^'\"# ]( *[^# ]#*)*)).*/\2\3\4/p" # quoted or plain, before a comment
USR1_AT_ONCE=35 # seconds; USR1 that arrives so soon was due before the start of the job (SLURM checks every 30 s)

look_up_job() { # sets `described`: SLURM's description of this job; of an array, of this element only
    described=$(scontrol show job --details --oneliner "$SLURM_JOB_ID" | grep "^JobId=$SLURM_JOB_ID ")
}

job_field() { # name: its value in the description of the job
    tr ' ' '\n' <<<"$described" | awk -F= -v name="$1" '$1 == name && !found++ { print $2 }'
}

seconds_at() { # name of a time in the description of the job: in seconds since 1970; 0 if it is not known
    date -d "$(job_field "$1")" +%s 2>/dev/null || echo 0
}

describe_job() { # [ranks per node]: sets job, attempt, logs, nodes, ranks_per_node, cores and limit
    look_up_job || fail "scontrol does not describe job $SLURM_JOB_ID" 1
    [[ -z $(job_field HetJobId) ]] ||
        fail "a job of several components, of which only the first would be used; request one kind of node, without a :"
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    idle=''
    name_attempt
    count_ranks "${1:-}"
    forget_inherited
    # an address, since the names of nodes need not resolve
    MASTER_ADDR=$(scontrol show node "${nodes[0]}" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
    local end start
    end=$(seconds_at EndTime) start=$(seconds_at StartTime)
    limit=$((end > 0 ? end - start : 0))
    unset DCR_DS_DEADLINE
    ((end == 0)) || export DCR_DS_DEADLINE=$end
    export MASTER_ADDR LOCAL_WORLD_SIZE=$ranks_per_node DCR_DS_NODES="${nodes[*]}"
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > 0 ? cores : 1))}
}

name_attempt() { # sets job, attempt and logs; exports DCR_DS_ATTEMPT, the folder of the logs of this attempt
    job=$SLURM_JOB_ID element=''
    attempt=$(job_field Restarts)
    if [[ -n $(job_field ArrayJobId) ]]; then # the last element has the id of the whole array
        element=$(job_field ArrayTaskId)
        job=$(job_field ArrayJobId)_$element
    fi
    logs=$log_folder/${SLURM_CLUSTER_NAME:-cluster}/$job
    if ((attempt == 0)) && [[ -e $logs ]]; then # of an older job with the same id
        mv "$logs" "$logs.before-$(date +%Y%m%d-%H%M%S)"
    fi
    export DCR_DS_ATTEMPT=$logs/attempt-$attempt
    mkdir -p "$DCR_DS_ATTEMPT"
}

count_ranks() { # [ranks per node]: sets ranks_per_node and cores (per rank); exports DCR_DS_GPUS (per node)
    # from the description, not from variables: those of a job that submitted this one are inherited
    local gpus per_node tasks cpus
    mapfile -t gpus < <(gpus_of_nodes)
    ((${#gpus[@]} < 2)) ||
        fail "the nodes have different numbers of GPUs (${gpus[*]}); request the same on each: --gpus-per-node"
    export DCR_DS_GPUS=${gpus[0]:-${SLURM_GPUS_ON_NODE:-0}}
    per_node=$(job_field NtasksPerN:B:S:C) tasks=$(job_field NumTasks)
    per_node=${per_node%%:*}
    if ((DCR_DS_GPUS > 0)); then
        ranks_per_node=$DCR_DS_GPUS
        if ((per_node ? per_node != DCR_DS_GPUS : tasks > ${#nodes[@]} && tasks != DCR_DS_GPUS * ${#nodes[@]})); then
            say "one rank per GPU, so $DCR_DS_GPUS per node; the number of tasks that was requested is ignored"
        fi
    elif ((per_node > 0)); then
        ranks_per_node=$per_node
    elif ((tasks % ${#nodes[@]} == 0)); then
        ranks_per_node=$((tasks / ${#nodes[@]}))
    else
        fail "--ntasks=$tasks cannot be divided among ${#nodes[@]} nodes; use --ntasks-per-node"
    fi
    ranks_per_node=${1:-$ranks_per_node}
    cpus=$(tr ',' '\n' <<<"$SLURM_JOB_CPUS_PER_NODE" | sed 's/(.*//' | sort -n | sed -n 1p) # such as 72(x2),36
    cores=$((cpus / ranks_per_node))
}

gpus_of_nodes() { # prints the number of GPUs per node, each number once
    tr ' ' '\n' <<<"$described" | awk -F= '$1 == "GRES" { # such as gpu:h100:4(IDX:0-1,3),gpu:a100:2(IDX:4-5)
        gsub(/\([^)]*\)/, "", $2)
        gpus = 0
        for (i = split($2, kinds, ","); i > 0; i--) {
            words = split(kinds[i], word, ":")
            if (word[1] == "gpu") gpus += word[words]
        }
        print gpus
    }' | sort -un
}

forget_inherited() { # srun reads options from SLURM_*, which the job that submitted this one may have left there
    local name
    for name in "${!SLURM_@}"; do
        case $name in
        SLURM_CONF | SLURM_JOB_* | SLURM_JOBID | SLURM_NODE* | SLURM_SUBMIT_* | SLURM_SPANK_* | SLURM_TOPOLOGY_*) ;;
        SLURM_CLUSTER_NAME | SLURM_WORKING_CLUSTER | SLURM_CPUS_ON_NODE) ;;
        *) unset "$name" ;;
        esac
    done
    # environment.json records these
    ((attempt == 0)) || export SLURM_RESTART_COUNT=$attempt
    [[ -z $element ]] || export SLURM_ARRAY_JOB_ID=${job%_*} SLURM_ARRAY_TASK_ID=$element
}

choose_port() { # exports MASTER_PORT: a port of this node, the first of the job, that nobody listens on
    local i address
    for ((i = 0; i < 100; i++)); do
        MASTER_PORT=$((20000 + (SLURM_JOB_ID + 101 * attempt + i) % 10000))
        for address in 127.0.0.1 "$MASTER_ADDR"; do
            ! (: <"/dev/tcp/$address/$MASTER_PORT") 2>/dev/null || continue 2
        done
        break
    done
    export MASTER_PORT
}

stopping() { # whether the job was asked to stop
    [[ -e $state/stop || -e $state/term ]]
}

start() { # file for the messages of srun, arguments of ranks …: sets `step`, the process of srun
    ranks "${@:2}" 2>"$1" &
    step=$!
    echo "$step" >"$state/step"
    pass_on_early_stop "$step" &
}

pass_on_early_stop() { # process of srun: sends USR1 again in the first minute, since srun drops it until the ranks run
    local i
    for ((i = 0; i < 60; i++)); do
        [[ ! -e $state/stop ]] || kill -USR1 "$1" 2>/dev/null || true
        sleep 1
        kill -0 "$1" 2>/dev/null || break
    done
}

end() { # waits for the end of `step`; returns its code
    while kill -0 "$step" 2>/dev/null; do # a signal interrupts `wait`
        wait "$step" || true
    done
    rm "$state/step"
    wait "$step"
}

ranks() { # options of srun … -- command …: becomes srun, with one task per rank; to be called with &
    local options=() inside=() threads bind node
    while [[ $1 != -- ]]; do
        options+=("$1")
        shift
    done
    shift
    if ((cores > 0)); then
        options+=(--cpus-per-task="$cores" --cpu-bind=cores)
    else
        say "fewer cores than ranks ($ranks_per_node per node): slow; request more, such as SBATCH_CPUS_PER_GPU"
        options+=(--overcommit)
    fi
    if [[ $SLURM_JOB_CPUS_PER_NODE == *,* ]]; then # block would give more ranks to a node with more cores
        export SLURM_HOSTFILE=$DCR_DS_ATTEMPT/hosts
        for node in "${nodes[@]}"; do
            yes "$node" | head -n "$ranks_per_node" || true
        done >"$SLURM_HOSTFILE"
        options+=(--distribution=arbitrary)
    else
        options+=(--distribution=block)
    fi
    threads=$(job_field ReqB:S:C:T) bind=$(job_field TresBind)
    threads=${threads##*:}
    [[ ! $threads =~ ^[0-9]+$ ]] || options+=(--threads-per-core="$threads")
    ((DCR_DS_GPUS == 0)) || options+=(--gpus-per-node="$DCR_DS_GPUS")
    [[ $bind != gpu:* ]] || options+=(--gpu-bind="${bind#gpu:}")
    if [[ -n ${DCR_DS_CONTAINER:-} ]]; then
        case ${DCR_DS_CONTAINER_WITH:-pyxis} in
        pyxis)
            options+=(--container-image="$DCR_DS_CONTAINER" --container-mounts="$mounts" --container-workdir="$project")
            ;;
        apptainer) inside=(apptainer exec --nv --bind "$mounts" --pwd "$project" "$DCR_DS_CONTAINER") ;;
        *) fail "DCR_DS_CONTAINER_WITH: $DCR_DS_CONTAINER_WITH is neither pyxis nor apptainer" ;;
        esac
    fi
    exec srun --nodes="${#nodes[@]}" --ntasks="$((${#nodes[@]} * ranks_per_node))" --ntasks-per-node="$ranks_per_node" \
        --mem=0 --export=ALL "${options[@]}" "${inside[@]}" bash "$scripts/rank.sh" "$@"
}

mount_folders() { # arguments of the run …: sets `mounts`, the folders that a container needs, at their own paths
    mounts=''
    [[ -n ${DCR_DS_CONTAINER:-} ]] || return 0
    local folders=("$project" "$log_folder") folder output
    export HF_HOME=${HF_HOME:-$HOME/.cache/huggingface} # the home folder may be another one in the container
    export DCR_DS_CACHE=${DCR_DS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/dcr_ds}
    output=$(output_of "$@")
    [[ $output != /* ]] || folders+=("$output")
    [[ ${1:-} != /* ]] || folders+=("$(dirname "$1")")
    [[ -z ${DCR_DS_SCRIPTS:-} ]] || folders+=("$scripts")
    for folder in "${folders[@]}" "$HF_HOME" "$DCR_DS_CACHE" ${HF_HUB_CACHE:+"$HF_HUB_CACHE"}; do
        [[ $folder != *[,:]* ]] || fail "$folder: a container cannot mount a path with a comma or colon; use another one"
        mkdir -p "$folder" || fail "$folder: cannot be created, so it cannot be mounted in the container"
        [[ ,$mounts, == *",$folder:$folder,"* ]] || mounts+=${mounts:+,}$folder:$folder
    done
    mounts+=${DCR_DS_MOUNTS:+,$DCR_DS_MOUNTS}
}

output_of() { # arguments of a run …: prints the last --output, else that of the recipe file; nothing if there is none
    local output='' previous='' word
    [[ ! -f ${1:-} ]] || output=$(sed -nE "$OUTPUT_FIELD" "$1" | sed -n '$p')
    for word in "$@"; do
        [[ $previous != --output ]] || output=$word
        [[ $word != --output=* ]] || output=${word#--output=}
        previous=$word
    done
    echo "$output"
}

note_progress() { # sets `idle`: requeues in a row without progress; a run that advanced may fail again
    idle=$(($(cat "$logs/idle" 2>/dev/null || echo 0) + 1))
    if [[ -s $DCR_DS_ATTEMPT/progress ]] && ! cmp -s "$DCR_DS_ATTEMPT/progress" "$logs/progress"; then
        cp "$DCR_DS_ATTEMPT/progress" "$logs/progress"
        idle=0
        rm -f "$logs/faults"
    fi
    echo "$idle" >"$logs/idle"
}

requeue() { # reason, nodes to exclude …: SLURM starts the job again; ends with 75 if it may not
    local reason=$1 job_state excluded
    shift
    trap '' TERM # SLURM ends this script when it requeues the job, and nodes can be excluded only after that
    look_up_job || true
    job_state=$(job_field JobState)
    if [[ $job_state != RUNNING ]]; then
        say "$reason; not requeued: the job is ${job_state:-unknown}, so it was cancelled, or SLURM requeues it itself"
        exit 75
    fi
    if ((limit > 0 && limit <= lead)) && [[ -s $state/stop ]] && (($(<"$state/stop") < USR1_AT_ONCE)); then
        fail "the time limit of $limit seconds is not longer than the $lead seconds before its end at which SLURM asks
to stop, so nothing is trained; use a longer --time, or fewer seconds in SBATCH_SIGNAL=B:USR1@SECONDS"
    fi
    [[ -n $idle ]] || note_progress
    if ((idle > ${DCR_DS_MAX_IDLE:-3})); then
        fail "$reason; not requeued: no progress in $idle attempts (DCR_DS_MAX_IDLE): $(cat "$logs/progress" || true)" 1
    fi
    if ((attempt >= ${DCR_DS_MAX_REQUEUES:-100})); then
        say "$reason; not requeued: it was requeued $attempt times (DCR_DS_MAX_REQUEUES)"
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

requeue_fault() { # reason, exit code, nodes to exclude …: as requeue, but only a few times without progress
    local reason=$1 code=$2 faults
    shift 2
    note_progress
    faults=$(cat "$logs/faults" 2>/dev/null || echo 0)
    if ((faults >= ${DCR_DS_MAX_FAULTS:-3})); then
        fail "$reason; given up after $faults requeues for failures (DCR_DS_MAX_FAULTS)" "$code"
    fi
    echo $((faults + 1)) >"$logs/faults"
    requeue "$reason" "$@"
}
