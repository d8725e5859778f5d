"""The shipped model, stage 2: to count. Windows of 4 s with what was said in the minute before them, which is learned too, a
question a second or every other, from practice games and drills; from the weights of stage 1.

    make train-tiny
"""

from dataclasses import replace

from configs.tiny_stage1 import config as stage1
from svlm_jax.data.config import Bucket

config = replace(
    stage1,
    model="runs/tiny/1",
    run_dir="runs/tiny/stage2",
    data=replace(
        stage1.data,
        paths=("runs/tiny/count.jsonl",),
        sink=16,
        text_window=176,
        learn_previous=192,
        buckets=(Bucket(tokens=464, patches=384, labels=256, frame_patches=96),),
    ),
    batch_size=4,
    micro_batch_size=4,
    steps=1800,
)
