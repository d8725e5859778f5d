"""A small model, stage 4: to see better, and to tell what is seen. Windows of 4 s of short games, practice games and
drills, with a question in most of the seconds, and those in which something seldom happens; from the weights of stage 3.

    make train-tiny
"""

from dataclasses import replace

from configs.tiny_stage3 import config as stage3
from svlm_jax.train.config import Bucket

config = replace(
    stage3,
    model="runs/tiny/3",
    run_dir="runs/tiny/stage4",
    data=replace(
        stage3.data,
        paths=("runs/tiny/tell.jsonl", "runs/tiny/seldom.jsonl"),
        buckets=(Bucket(tokens=384, patches=384, labels=200, frame=96),),
    ),
    batch=4,
    micro_batch=4,
    steps=3000,
)
