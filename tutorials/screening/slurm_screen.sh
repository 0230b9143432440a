#!/bin/bash
# A screen as a job array: sbatch slurm_screen.sh SOURCE OUT [OPTIONS OF deeprelax screen]
#
# Each task does one of so many parts as the array has tasks, into the same folder; the array
# must begin at 1. SLURM sends SIGTERM two minutes before the time limit: the pack at work is
# then finished, and the task puts itself back into the queue until its part is done. A task
# that was killed is begun again, behind its last pack, by: scontrol requeue JOB_TASK
# With GPUs add: --gpus-per-task=1
#SBATCH --job-name=screen
#SBATCH --array=1-16
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=2G
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" deeprelax screen "$1" "$2" \
  --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" \
  --workers "${SLURM_CPUS_PER_TASK:-1}" "${@:3}"
code=$?
if [ "$code" -eq 143 ]; then # stopped by SIGTERM after a whole pack
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
