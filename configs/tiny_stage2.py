"""The shipped model, stage 2: to remember. The recipe of the paper: windows of 24 s every 12 s, the text before them cut to its
first and last 256 tokens; from the weights of stage 1.

    make train-tiny
"""

from dataclasses import replace

from configs.tiny_stage1 import config as stage1
from svlm_jax.train.config import Bucket, OptimizerConfig

config = replace(
    stage1,
    model="runs/tiny/1",
    run_dir="runs/tiny/stage2",
    data=replace(
        stage1.data,
        paths=("runs/tiny/remember.jsonl",),
        sink=256,
        slide=256,
        buckets=(Bucket(tokens=1856, patches=2304, labels=256, frame=96),),
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, b2=0.98, weight_decay=0.01),
    batch=8,
    micro_batch=2,
    steps=600,
)
