#!/usr/bin/env bash
# Several GPUs of one machine, by torchrun. What ssl-toolkit takes stands behind the file's name, --out among it:
#
#   bash configs/cluster/one_machine.sh pretrain -c configs/pretrain/simclr.yaml --data.path photos --out runs/birds
#
# data.batch_size is that of one process. A process that dies is started again, with all others, and the run goes on
# from its newest checkpoint; after the last restart, or a power cut: the same command with --resume instead of --out.
set -euo pipefail

# To set, here or in the environment:
processes=${PROCESSES:-$(nvidia-smi --list-gpus | wc -l)} # one for each GPU
strategy=${STRATEGY:-ddp}                                 # fsdp2 where the weights do not fit one GPU
restarts=${RESTARTS:-3}                                   # how often processes are started again
python=${PYTHON:-python}                                  # of the environment that ssl-toolkit is installed in

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + processes - 1) / processes))}
# else processes that are started again may wait for those that died
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# SIGUSR1, too, is passed on to the processes, which save and leave; else torchrun alone would die of it
exec "$python" -m torch.distributed.run --standalone --local-addr 127.0.0.1 \
  --nproc-per-node "$processes" --max-restarts "$restarts" \
  --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 -m ssl_toolkit "$@" \
  --trainer.devices "$processes" --trainer.strategy "$strategy"
