#!/usr/bin/env bash
# Several machines without a queue, by torchrun: the same command on each of them, in any order, with a folder for --out
# that all of them see (checkpoints and the configuration are read by every process):
#
#   FIRST=gpu1 MACHINES=2 bash configs/cluster/several_machines.sh pretrain -c configs/pretrain/simclr.yaml \
#     --data.path /shared/photos --out /shared/runs/birds
#
# data.batch_size is that of one process. If a process dies, torchrun starts all of them again, on all machines, and the
# run goes on from its newest checkpoint.
set -euo pipefail

# To set, here or in the environment, the same on all machines but for LOCAL_ADDRESS:
first=${FIRST:?name or address of one of the machines, the same on all of them}
port=${PORT:-29400}                                       # free on the first machine, and open to the others
machines=${MACHINES:-2}
processes=${PROCESSES:-$(nvidia-smi --list-gpus | wc -l)} # on each machine; one for each GPU
strategy=${STRATEGY:-ddp}                                 # fsdp2 where the weights do not fit one GPU
restarts=${RESTARTS:-3}                                   # how often processes are started again
id=${RUN_ID:-ssl-toolkit}                                 # another one for each run that is going on
python=${PYTHON:-python}                                  # of the environment that ssl-toolkit is installed in
local_address=${LOCAL_ADDRESS:-}                          # of this machine, where its own name is not known to the others

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + processes - 1) / processes))}
# else processes that are started again may wait for those that died
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# The network to use where a machine has several: export NCCL_SOCKET_IFNAME=eth0 GLOO_SOCKET_IFNAME=eth0

# SIGUSR1, too, is passed on to the processes, which save and leave; else torchrun alone would die of it
exec "$python" -m torch.distributed.run --nnodes "$machines" --nproc-per-node "$processes" \
  --rdzv-backend c10d --rdzv-endpoint "$first:$port" --rdzv-id "$id" ${local_address:+--local-addr "$local_address"} \
  --max-restarts "$restarts" --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 -m ssl_toolkit "$@" \
  --trainer.num_nodes "$machines" --trainer.devices "$processes" --trainer.strategy "$strategy"
