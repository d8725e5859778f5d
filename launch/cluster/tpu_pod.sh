#!/usr/bin/env bash
# Fine-tuning on a Cloud TPU pod slice: the same command on every host, which find each other. Edit TPU, ZONE and the bucket; the
# slice needs this repository in ~/svlm-jax with `pip install -e '.[tpu,train]'`. Run it again to resume after a preemption.
set -euo pipefail
TPU=${TPU:-svlm-v5p-64} ZONE=${ZONE:-us-east5-a} RUN_DIR=${RUN_DIR:-/mnt/shared/runs/stage1} DATA=${DATA:-/mnt/shared/train.jsonl}

gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all --command "
  cd ~/svlm-jax
  export SVLM_TPU_POD=1  # nothing else in the environment of a TPU VM says that there are other hosts
  export JAX_COMPILATION_CACHE_DIR=$RUN_DIR/xla  # started again, it does not compile again
  svlm train --config sft_stage1 --run-dir $RUN_DIR --data.paths $DATA --mesh.fsdp 32 --micro-batch-size 32
"
