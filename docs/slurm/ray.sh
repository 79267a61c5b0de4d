#!/bin/bash
# A sweep on Slurm through Ray: one command hands work to all nodes, and workers may share a GPU.
#
#     sbatch ray.sh --suite my.toml --results /shared/results --executor ray:gpus=0.5
#
#SBATCH --job-name=harness-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

nodes=${SLURM_JOB_NUM_NODES:?this is a script for sbatch}
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts[0]}
address=$head:${RAY_PORT:-6379}
share=(--num-cpus "${SLURM_CPUS_PER_TASK:-1}" --num-gpus "${SLURM_GPUS_ON_NODE:-0}")

echo "Ray: $nodes nodes, led by $address"
srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
    ray start --head --node-ip-address="$head" --port="${address##*:}" "${share[@]}" --disable-usage-stats --block &
until ray status --address "$address" >/dev/null 2>&1; do sleep 1; done
if [ "$nodes" -gt 1 ]; then
    srun --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) --exclude="$head" --overlap \
        ray start --address "$address" "${share[@]}" --block &
fi

# 60 s before the end of the job, the command alone hears of it. It has its trials saved before it leaves.
command= asked=
trap 'asked=yes; [ -z "$command" ] || kill -TERM "$command"' TERM
harness run --executor ray "$@" --address "$address" &
command=$!
[ -z "$asked" ] || kill -TERM "$command" # which came before there was a command
code=0
wait "$command" || code=$?
wait "$command" 2>/dev/null || code=$? # the first wait ends with the signal, this one with the command
exit "$code"
