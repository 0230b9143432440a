#!/bin/bash
# A screen as a job array: sbatch slurm_screen.sh SOURCE OUT
#
# Each task does one of so many parts as the array has tasks, into the same folder. SLURM
# sends SIGTERM two minutes before the time limit; the pack at work is then finished, the task
# ends with code 143, and sbatch of the same script goes on. With GPUs add: --gpus-per-task=1
#SBATCH --job-name=screen
#SBATCH --array=1-16
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=2G
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue

# A part of SLURM_ARRAY_TASK_COUNT; the array must begin at 1.
exec srun deeprelax screen "$1" "$2" \
  --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" \
  --workers "${SLURM_CPUS_PER_TASK:-1}" "${@:3}"
