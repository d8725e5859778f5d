"""A small model, stage 5: to stream. The recipe of the paper: windows of 24 s every 12 s, with the text before them that a
stream retains; from the weights of stage 4.

    make train-tiny
"""

from dataclasses import replace

from configs.tiny_stage2 import config as stage2
from svlm_jax.train.config import Bucket

config = replace(
    stage2,
    model="runs/tiny/4",
    run_dir="runs/tiny/stage5",
    data=replace(
        stage2.data,
        paths=("runs/tiny/stream.jsonl",),
        learn_previous=160,
        buckets=(Bucket(tokens=2048, patches=2304, labels=512, frame=96),),
    ),
    optimizer=replace(stage2.optimizer, learning_rate=6e-4),
    steps=1000,
)
