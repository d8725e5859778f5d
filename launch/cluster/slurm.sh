#!/usr/bin/env bash
# Fine-tuning on SLURM: 2 nodes of 8 GPUs, one process a GPU. Edit nodes, time, RUN_DIR (on a disk that all nodes share) and the
# flags of svlm train. Five minutes before the time is up, and when the job is preempted, all processes get SIGTERM: they save,
# exit with 75, and the job goes back into the queue, and resumes when it starts again.
#SBATCH --job-name=svlm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail

RUN_DIR=${RUN_DIR:-/shared/runs/stage1}
DATA=${DATA:-/shared/data/train.jsonl}

export XLA_PYTHON_CLIENT_MEM_FRACTION=0.92      # leave 8 % to NCCL and cuDNN, who allocate for themselves
export NCCL_NVLS_ENABLE=1                       # all-reduce inside the NVSwitch, where there is one
export JAX_COMPILATION_CACHE_DIR=$RUN_DIR/xla   # a job that starts again does not compile again
# Overlap the gathering of a layer's parameters with the computation of the one before, in messages of a layer (0.5 GB at 7B).
export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true \
  --xla_gpu_all_gather_combine_threshold_bytes=536870912 --xla_gpu_reduce_scatter_combine_threshold_bytes=536870912"

rm -f "$RUN_DIR/preempted"  # of the last job: should this one not even start, it must not go back into the queue for ever

# A process that fails ends the step; the others do not wait for it. Since Slurm 22.05 srun does not take the number of CPUs from
# the job: without it each process would decode video on one.
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" svlm train --config sft_stage1 --run-dir "$RUN_DIR" --data.paths "$DATA" \
  --mesh.data 2 --mesh.fsdp 8 --micro-batch-size 16 "$@"
code=$?
# srun may report 143 of a process that it ended while the others left with 75: the file says that all had saved.
if [ "$code" -eq 75 ] || [ -e "$RUN_DIR/preempted" ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
