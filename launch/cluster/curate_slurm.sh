#!/usr/bin/env bash
# A step of data curation on SLURM: an array of tasks, each of which takes every N-th video. Edit array and SHARDS together,
# cpus, memory and time. What follows the name of the script is what follows svlm curate; files lie on a disk that all nodes share.
#
#   sbatch launch/cluster/curate_slurm.sh clean --in words.jsonl --out clean.jsonl
#   svlm curate merge --out clean.jsonl        # when all tasks are done
#
# A task that is killed or preempted goes on with the video that it was at: queue the same again, or only some shards of it with
# sbatch --array=3,17.
#SBATCH --job-name=curate
#SBATCH --array=1-32
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
set -uo pipefail

SHARDS=${SHARDS:-32}   # not SLURM_ARRAY_TASK_COUNT: with --array=3,17 that is 2, and the videos would be dealt anew
TRIES=${TRIES:-5}      # of a task whose server does not answer

svlm curate "$@" --shard "$SLURM_ARRAY_TASK_ID/$SHARDS" --jobs "${JOBS:-${SLURM_CPUS_PER_TASK:-1}}"
code=$?
# 1: some videos could not be done now; those that are done are not asked for again.
if [ "$code" -eq 1 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "$TRIES" ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
