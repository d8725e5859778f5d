"""A small model, stage 3: to see. Windows of 2 s with the first words of the game and the last before them, a question in
every second; from the weights of stage 2 and a vision tower of random ones.

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
        paths=("runs/tiny/see.jsonl",),
        sink=16,
        slide=88,
        learn_previous=32,
        buckets=(Bucket(tokens=256, patches=192, labels=128, frame=96),),
    ),
    batch=8,
    micro_batch=8,
    steps=1200,
)
