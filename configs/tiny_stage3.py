"""The shipped model, stage 3: to remember. The recipe of the paper: windows of 24 s every 12 s, the text before them cut to its
first 64 and last 320 tokens; from the weights of stage 2.

    make train-tiny
"""

from dataclasses import replace

from configs.tiny_stage1 import config as stage1
from svlm_jax.train.config import Bucket

config = replace(
    stage1,
    model="runs/tiny/2",
    run_dir="runs/tiny/stage3",
    data=replace(
        stage1.data,
        paths=("runs/tiny/remember.jsonl",),
        sink=64,
        slide=320,
        buckets=(Bucket(tokens=1664, patches=2304, labels=192, frame=96),),
    ),
    batch=8,
    micro_batch=2,
    steps=450,
)
