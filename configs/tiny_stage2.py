"""A small model, stage 2: to count. Games and drills that are told and not shown, windows of 24 s with as much of what was
said before them as a stream retains; from the weights of stage 1.

    make train-tiny
"""

from dataclasses import replace

from configs.tiny_stage1 import config as stage1
from svlm_jax.train.config import Bucket

config = replace(
    stage1,
    model="runs/tiny/1",
    run_dir="runs/tiny/stage2",
    data=replace(
        stage1.data,
        sink=64,
        slide=576,
        paths=("runs/tiny/count.jsonl",),
        learn_previous=640,
        buckets=(Bucket(tokens=1408, patches=4, labels=992, frame=4),),
    ),
    batch=2,
    micro_batch=2,
)
