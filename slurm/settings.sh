# The one file of settings: take the comment sign from what your cluster needs, here or in a copy anywhere, then
#
#   source slurm/settings.sh
#   sbatch slurm/dcr.sh recipes/qwen2.5-7b.yaml
#
# sbatch reads SBATCH_* itself and hands the environment to the job. Options on its command line win over these:
# sbatch --nodes=4 --time=2:00:00 slurm/dcr.sh … (the number of nodes has no variable). docs/cluster.md explains each.
# shellcheck shell=bash

# --- what is asked of SLURM
# export SBATCH_PARTITION=gpu
# export SBATCH_ACCOUNT=my_account
# export SBATCH_QOS=normal
# export SBATCH_TIMELIMIT=12:00:00
# export SBATCH_GPUS_PER_NODE=8          # one rank each; without GPUs: sbatch --ntasks-per-node=RANKS
# export SBATCH_EXCLUSIVE=exclusive      # whole nodes; or, where nodes are shared, their part of the cores and memory:
# export SBATCH_CPUS_PER_GPU=8
# export SBATCH_MEM_PER_GPU=120G
# export SBATCH_SIGNAL=B:USR1@600        # save so many seconds before the end (300)

# --- where Python with dcr-ds comes from (first the modules, then conda or a virtual environment)
# export DCR_DS_MODULES="cuda/12.8 gcc/13"
# export DCR_DS_CONDA=dcr-ds
# export DCR_DS_VENV=$HOME/venvs/dcr-ds
# export DCR_DS_PYTHON=python            # the interpreter's name or path

# --- or a container, with the project's folder mounted at its own place
# export DCR_DS_CONTAINER=$HOME/images/dcr-ds.sqsh
# export DCR_DS_CONTAINER_WITH=pyxis     # or apptainer
# export DCR_DS_MOUNTS=/data:/data       # more of them, apart by commas

# --- size of the jobs of dcr-ds slurm, slurm/pipeline.sh and slurm/sweep.sh: any options of sbatch
# export DCR_DS_SBATCH="--nodes=4"
# export DCR_DS_SBATCH_REFINE="--nodes=1 --time=1:00:00"
# export DCR_DS_SBATCH_ALIGN="--nodes=4 --time=8:00:00"
# export DCR_DS_SBATCH_EVALUATE="--nodes=1 --gpus-per-node=1 --time=2:00:00"
# export DCR_DS_SBATCH_SWEEP="--nodes=1"
# export DCR_DS_SBATCH_REPORT="--partition=cpu"   # its last job, which writes the table: one core, no GPU
# export DCR_DS_SWEEP_AT_ONCE=4          # so many jobs of a sweep run together (all)
# export DCR_DS_STAGES="refine align evaluate"   # only where the login node has no Python to read the recipe's

# --- when something goes wrong
# export DCR_DS_PREFLIGHT_SECONDS=180    # how long a node may take to answer before the start; 0: no preflight
# export DCR_DS_FREE_GIB=5               # free disk asked for, for the run folder and for temporary files
# export DCR_DS_MAX_FAULTS=3             # requeues after a bad node or a rank that died
# export DCR_DS_MAX_REQUEUES=100         # requeues in all, stops before the time limit included
# export DCR_DS_LOGS=slurm-logs          # under the project's folder: logs of each job, attempt and node

# --- the network, where the libraries choose the wrong one
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# export NCCL_DEBUG=INFO
