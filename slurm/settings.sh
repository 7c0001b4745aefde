# All settings. Uncomment what your cluster needs, here or in a copy anywhere, then
#
#   source slurm/settings.sh
#   sbatch slurm/dcr.sh recipes/qwen2.5-7b.yaml
#
# sbatch reads SBATCH_* itself and passes the environment on to the job. Options on its command line win:
# sbatch --nodes=4 --time=2:00:00 slurm/dcr.sh … (there is no variable for the number of nodes). Guide: docs/cluster.md.
# shellcheck shell=bash

# --- what to request from SLURM
# export SBATCH_PARTITION=gpu
# export SBATCH_ACCOUNT=my_account
# export SBATCH_QOS=normal
# export SBATCH_TIMELIMIT=12:00:00
# export SBATCH_GPUS_PER_NODE=8          # one rank per GPU; without GPUs: sbatch --ntasks-per-node=RANKS
# export SBATCH_EXCLUSIVE=exclusive      # whole nodes; or, if nodes are shared, a part of the cores and memory:
# export SBATCH_CPUS_PER_GPU=8
# export SBATCH_MEM_PER_GPU=120G
# export SBATCH_SIGNAL=B:USR1@600        # save this many seconds before the time limit (300); must be less than it

# --- where Python with dcr-ds comes from (first the modules, then conda or a virtual environment)
# export DCR_DS_MODULES="cuda/12.8 gcc/13"
# export DCR_DS_CONDA=dcr-ds
# export DCR_DS_VENV=$HOME/venvs/dcr-ds
# export DCR_DS_PYTHON=python            # name or path of the interpreter

# --- or a container. Mounted at their own paths: the project, logs, --output, HF_HOME and DCR_DS_CACHE
# export DCR_DS_CONTAINER=$HOME/images/dcr-ds.sqsh
# export DCR_DS_CONTAINER_WITH=pyxis     # or apptainer
# export DCR_DS_MOUNTS=/data:/data       # other folders, separated by commas
# export DCR_DS_CACHE=$HOME/.cache/dcr_ds   # downloaded data, converted models

# --- sizes of the jobs of dcr-ds slurm, slurm/pipeline.sh and slurm/sweep.sh: any options of sbatch,
# separated by spaces, with quotes around a value that has spaces, except --array; a --dependency applies next to that of a
# chain or sweep. DCR_DS_SBATCH applies where none of the next four is set
# export DCR_DS_SBATCH="--nodes=4"
# export DCR_DS_SBATCH_REFINE="--nodes=1 --time=1:00:00"
# export DCR_DS_SBATCH_ALIGN="--nodes=4 --time=8:00:00"
# export DCR_DS_SBATCH_EVALUATE="--nodes=1 --gpus-per-node=1 --time=2:00:00"
# export DCR_DS_SBATCH_SWEEP="--nodes=1"
# export DCR_DS_SBATCH_REPORT="--partition=cpu"   # the last job of a sweep, which writes the report: one core, no GPU
# export DCR_DS_SWEEP_AT_ONCE=4          # jobs of a sweep that run at the same time (all)
# export DCR_DS_STAGES="refine align evaluate"   # only if the login node has no Python to read them from the recipe

# --- checks before the start, and limits of requeueing
# export DCR_DS_PREFLIGHT_SECONDS=600    # how long a node may take to start Python and answer; 0: no preflight
# export DCR_DS_FREE_GIB=5               # free space required for the run folder and for temporary files
# export DCR_DS_MAX_FAULTS=3             # requeues without progress after a bad node or a failed rank
# export DCR_DS_MAX_IDLE=3               # requeues in a row without progress, for whatever reason
# export DCR_DS_MAX_REQUEUES=100         # requeues in total, including those at the time limit
# export DCR_DS_END_SECONDS=120          # how long ranks may run after the first rank has ended
# export DCR_DS_LOGS=slurm-logs          # logs of each job, attempt and node, under the project's folder

# --- the network, if the libraries choose the wrong one
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# export NCCL_DEBUG=INFO
