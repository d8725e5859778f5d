"""The shipped model, stage 5: to remember. Windows of 24 s as in stage 4, the text before them cut to its first 64 and last 576
tokens, beside games that are told and not shown, of which counting needs many more; from the weights of stage 4.

    make train-tiny
"""

from dataclasses import replace

from configs.tiny_stage4 import config as stage4
from svlm_jax.data.config import Bucket

config = replace(
    stage4,
    model="runs/tiny/4",
    run_dir="runs/tiny/stage5",
    data=replace(
        stage4.data,
        paths=("runs/tiny/stream.jsonl", "runs/tiny/begin.jsonl", "runs/tiny/told24.jsonl", "runs/tiny/told52.jsonl"),
        text_window=576,
        learn_previous=640,
        buckets=(
            Bucket(tokens=1408, patches=4, labels=992, frame_patches=4),
            Bucket(tokens=2040, patches=4, labels=1080, frame_patches=4),
            Bucket(tokens=2048, patches=2304, labels=1152, frame_patches=96),
        ),
    ),
    batch_size=4,
    micro_batch_size=1,
    steps=700,
)
