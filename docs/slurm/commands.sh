#!/bin/bash
# A sweep on Slurm without anything else: the same command on every node. They share the result root, and no trial is
# trained twice. Submit it as often as you like, also while it runs: more jobs help, and what is finished stays.
#
#     sbatch commands.sh --suite my.toml --results /shared/results
#
#SBATCH --job-name=harness
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# SIGTERM comes 60 s before the end, or when the job is preempted: trials in training are saved, and the next job goes on.
# MLflow is filled afterwards, from one place: harness track rebuild --results /shared/results
exec srun --kill-on-bad-exit=0 harness run --no-mlflow "$@"
