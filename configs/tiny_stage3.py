"""The shipped model, stage 3: to follow. Windows of 8 s in which a score is said, with what was said in the minutes before
them, questions in some of the seconds; from the weights of stage 2.

    make train-tiny
"""

from dataclasses import replace

from configs.tiny_stage1 import config as stage1
from svlm_jax.data.config import Bucket

config = replace(
    stage1,
    model="runs/tiny/2",
    run_dir="runs/tiny/stage3",
    data=replace(
        stage1.data,
        paths=("runs/tiny/follow.jsonl",),
        sink=64,
        text_window=320,
        buckets=(Bucket(tokens=896, patches=768, labels=96, frame_patches=96),),
    ),
    batch_size=2,
    micro_batch_size=2,
    optimizer=replace(stage1.optimizer, learning_rate=6e-4),
    steps=1200,
)
