"""The shipped model, stage 4: to stream. The recipe of the paper, windows of 24 s every 12 s with the text before them that a
stream retains, beside games that are told and not shown, of which counting needs many more; from the weights of stage 3.

    make train-tiny
"""

from dataclasses import replace

from configs.tiny_stage1 import config as stage1
from svlm_jax.train.config import Bucket

config = replace(
    stage1,
    model="runs/tiny/3",
    run_dir="runs/tiny/stage4",
    data=replace(
        stage1.data,
        paths=("runs/tiny/stream.jsonl", "runs/tiny/begin.jsonl", "runs/tiny/told24.jsonl", "runs/tiny/told52.jsonl"),
        sink=64,
        slide=576,
        learn_previous=640,
        buckets=(
            Bucket(tokens=1408, patches=4, labels=992, frame=4),
            Bucket(tokens=2040, patches=4, labels=1080, frame=4),
            Bucket(tokens=2048, patches=2304, labels=1152, frame=96),
        ),
    ),
    optimizer=replace(stage1.optimizer, learning_rate=6e-4),
    batch=4,
    micro_batch=1,
    steps=1200,
)
