#!/usr/bin/env bash
# Calibrates by an array of jobs that need no network between them, and adds their statistics up in a last job.
#
# Usage, where sbatch is: recipes/slurm/slices.sh JOBS CHECKPOINT OUTPUT [options of moetrim calibrate]
#   recipes/slurm/slices.sh 8 models/Qwen3-30B-A3B math.stats --task math.jsonl
#
# JOBS of 2, 4 or 8 shares are of equal size, and the result is the bytes of one process. A job that is stopped, by its time
# limit or by preemption, finishes its layer, is put back into the queue and goes on there.
#   MOETRIM   the program (moetrim)
#   SBATCH_*  what every job asks for, see man sbatch, for example SBATCH_TIMELIMIT=2:00:00 SBATCH_PARTITION=cpu
set -euo pipefail

# In a job: the script is called again with what the job is to do.
if [ "${1:-}" = share ]; then
  output=$2; shift 2
  share=$SLURM_ARRAY_TASK_ID
  [ -d "$output.$share" ] && exit 0
  code=0
  srun --ntasks=1 "$MOETRIM" calibrate "$@" --slice "$share/$SLURM_ARRAY_TASK_COUNT" -o "$output.$share" || code=$?
  [ $code = 5 ] && exec scontrol requeue "$SLURM_JOB_ID"
  exit $code
fi
if [ "${1:-}" = merge ]; then
  output=$2; shift 2
  "$MOETRIM" merge-statistics "$@" -o "$output"
  rm -r -- "$@"
  exit
fi

jobs=$1 checkpoint=$2 output=$3; shift 3
export MOETRIM=${MOETRIM:-moetrim}
shares=()
for ((share = 1; share <= jobs; ++share)); do shares+=("$output.$share"); done
array=$(sbatch --parsable --job-name=moetrim-share --array="1-$jobs" --ntasks=1 --requeue --open-mode=append --signal=USR1@120 \
  --output="$output.%a.log" "$0" share "$output" "$checkpoint" "$@")
merge=$(sbatch --parsable --job-name=moetrim-merge --dependency="afterok:$array" --kill-on-invalid-dep=yes --ntasks=1 \
  --output="$output.merge.log" "$0" merge "$output" "${shares[@]}")
echo "array $array, merge $merge"
