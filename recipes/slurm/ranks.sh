#!/usr/bin/env bash
# Calibrates (or evaluates) by the tasks of one job, which share the demonstrations and add their sums up over the network.
#
# Usage: sbatch --ntasks=8 --cpus-per-task=16 recipes/slurm/ranks.sh calibrate CHECKPOINT --task FILE.jsonl -o OUTPUT
#
# A job that is stopped by its time limit or by preemption finishes its layer, is put back into the queue and goes on there.
#   MOETRIM   the program (moetrim)
#SBATCH --job-name=moetrim
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@120
set -uo pipefail
srun --kill-on-bad-exit=0 "${MOETRIM:-moetrim}" "$@"
code=$?
# srun gives the largest exit code: 5 when ranks were stopped or lost, less when one has failed, more when one was killed.
[ $code = 5 ] && exec scontrol requeue "$SLURM_JOB_ID"
exit $code
