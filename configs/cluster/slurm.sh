#!/usr/bin/env bash
# A job of SLURM. What ssl-toolkit takes stands behind the file's name, --out among it, a folder that all nodes see:
#
#   sbatch configs/cluster/slurm.sh pretrain -c configs/pretrain/simclr.yaml --data.path /shared/photos \
#     --out /shared/runs/birds
#
# data.batch_size is that of one process. Before the job's time is over, the run saves its state and has the job queued
# again; the next start goes on where it was. A job that was cancelled: the same with --resume instead of --out.
#
# To set: how many nodes, and a task and a GPU for each process.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Minutes enough for a step, a validation batch and a checkpoint; to the processes, and so without the B: for the shell.
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --job-name=ssl-toolkit
#SBATCH --output=%x-%j.log
set -euo pipefail

strategy=${STRATEGY:-ddp}                 # fsdp2 where the weights do not fit one GPU
python=${PYTHON:-python}                  # of the environment that ssl-toolkit is installed in

export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
# srun does not ask sbatch for it
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# The network to use where a node has several: export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# when the first process has left, the others have a minute to do so; the one that queues the job again needs a moment
srun --kill-on-bad-exit=0 --wait=60 "$python" -m ssl_toolkit "$@" \
  --trainer.num_nodes "$SLURM_JOB_NUM_NODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" --trainer.strategy "$strategy"
