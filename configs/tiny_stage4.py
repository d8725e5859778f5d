"""The shipped model, stage 4: to stream. The recipe of the paper: windows of 24 s every 12 s, the text before them cut to its
first 64 and last 320 tokens; from the weights of stage 3.

    make train-tiny
"""

from dataclasses import replace

from configs.tiny_stage3 import config as stage3
from svlm_jax.data.config import Bucket

config = replace(
    stage3,
    model="runs/tiny/3",
    run_dir="runs/tiny/stage4",
    data=replace(
        stage3.data,
        paths=("runs/tiny/remember.jsonl",),
        learn_previous=384,
        buckets=(Bucket(tokens=1792, patches=2304, labels=576, frame_patches=96),),
    ),
    steps=1200,
)
