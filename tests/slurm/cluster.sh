#!/usr/bin/env bash
# A private SLURM on this machine: munged, slurmctld and one slurmd per virtual node, all in one directory.
#
#   tests/slurm/cluster.sh install                   install Debian's packages if they are missing
#   tests/slurm/cluster.sh start DIRECTORY [NODES]   idempotent; then: export SLURM_CONF=DIRECTORY/slurm.conf
#   tests/slurm/cluster.sh stop DIRECTORY            end what `start` has started, and nothing else
#
# A node has two sockets of two cores with two threads each, and four GPUs that exist for SLURM only: devices like
# /dev/null, so that numbers of ranks and CUDA_VISIBLE_DEVICES are those of a GPU node. Needs root, as slurmd does.
# Nothing in /etc is read or written.
set -euo pipefail
PATH=$PATH:/usr/sbin

install() {
    command -v slurmctld slurmd munged >/dev/null && return
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        echo "SLURM is not installed, and cannot be without root and apt-get"
        return
    fi
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge; } >/dev/null ||
        echo "SLURM cannot be installed here: apt-get failed"
}

configuration() { # directory, nodes, the first of nodes + 1 free ports
    local host
    host=$(hostname -s)
    cat <<CONF
ClusterName=lab
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$3
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# a requeued job waits until its old credential has expired: seconds, not two minutes
AuthInfo=socket=$1/munge/socket,cred_expire=10
StateSaveLocation=$1/state
SlurmdSpoolDir=$1/spool/%n
SlurmctldPidFile=$1/pid/slurmctld
SlurmdPidFile=$1/pid/slurmd-%n
SlurmctldLogFile=$1/log/slurmctld
SlurmdLogFile=$1/log/slurmd-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
SlurmdTimeout=20
ReturnToService=0
JobRequeue=1
KillWait=20
MinJobAge=3600
PropagateResourceLimits=NONE
NodeName=node[1-$2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$(($3 + 1))-$(($3 + $2))] Sockets=2 CoresPerSocket=2 \
    ThreadsPerCore=2 RealMemory=8000 Gres=gpu:h100:4 State=UNKNOWN
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF
}

gpus() { # directory, nodes: creates the devices of the GPUs, and prints gres.conf
    local gpu
    for gpu in 0 1 2 3; do
        mknod "$1/gpus/nvidia$gpu" c 1 3
    done
    echo "AutoDetect=off"
    echo "NodeName=node[1-$2] Name=gpu Type=h100 File=$1/gpus/nvidia[0-3]"
}

free_ports() { # prints the first of so many ports in a row that nobody listens on
    local first port
    for ((first = 21000; first < 30000; first += 50)); do
        for ((port = first; port < first + $1; port++)); do
            ! (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || continue 2
        done
        echo "$first" && return
    done
}

is_running() { # pid file, program: by now the process of that number may be another program
    local pid
    pid=$(cat "$1" 2>/dev/null) && [[ $(readlink "/proc/$pid/exe") == *"/$2"* ]]
}

start() { # directory, nodes
    local directory=$1 nodes=$2 node
    export SLURM_CONF=$directory/slurm.conf
    mkdir -p "$directory"/{munge,state,spool,pid,log,gpus}
    chmod 700 "$directory/munge"
    if [[ ! -f $SLURM_CONF ]]; then
        (umask 077 && head -c 128 /dev/urandom >"$directory/munge/key")
        gpus "$directory" "$nodes" >"$directory/gres.conf"
        configuration "$directory" "$nodes" "$(free_ports $((nodes + 1)))" >"$SLURM_CONF"
    fi
    # --force: munged warns of a directory that only root may enter, which is intended
    is_running "$directory/pid/munged" munged || munged --force --socket="$directory/munge/socket" \
        --key-file="$directory/munge/key" --pid-file="$directory/pid/munged" --log-file="$directory/log/munged" \
        --seed-file="$directory/munge/seed" 2>>"$directory/log/munged"
    is_running "$directory/pid/slurmctld" slurmctld || slurmctld -f "$SLURM_CONF"
    for ((node = 1; node <= nodes; node++)); do
        is_running "$directory/pid/slurmd-node$node" slurmd || slurmd -f "$SLURM_CONF" -N "node$node"
    done
    for _ in {1..150}; do
        [[ $(sinfo --noheader --Node --states=idle 2>/dev/null | wc -l) -lt $nodes ]] || return 0
        sleep 0.2
    done
    echo "error: the nodes are not idle after 30 s; see $directory/log" >&2
    sinfo --Node >&2 || true
    exit 1
}

stop() { # directory
    local directory=$1 file program
    export SLURM_CONF=$directory/slurm.conf
    [[ -f $SLURM_CONF ]] || return 0
    if is_running "$directory/pid/slurmctld" slurmctld; then
        timeout 10 scancel --user=root 2>/dev/null || true
        for _ in {1..40}; do # jobs have to end before their nodes, or their processes are left behind
            [[ -n $(timeout 5 squeue --noheader 2>/dev/null) ]] || break
            sleep 0.25
        done
    fi
    for program in slurmd slurmctld munged; do # each needs the next one to end
        for file in "$directory/pid/$program"*; do
            ! is_running "$file" "$program" || end "$(cat "$file")"
        done
    done
}

end() { # pid: first with TERM, then with KILL
    kill "$1" 2>/dev/null || return 0
    for _ in {1..10}; do
        kill -0 "$1" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -9 "$1" 2>/dev/null || true
}

case ${1:-} in
install) install ;;
start) start "$(realpath -m "${2:?directory}")" "${3:-3}" ;;
stop) stop "$(realpath -m "${2:?directory}")" ;;
*)
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
