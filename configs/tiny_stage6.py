"""The model of `make train-tiny`, stage 6: to remember for longer, as it streams. Windows of the 16 s that a stream retains,
with frames for their last 8 s alone; what is told and not shown are matches, with scores as far apart as a stream has them, and
half of it those where one is far from the one before, in 24 s; from the weights of stage 5.

    make train-tiny
"""

from dataclasses import replace

from configs.tiny_stage5 import config as stage5
from svlm_jax.data.config import Bucket

config = replace(
    stage5,
    model="runs/tiny/5",
    run_dir="runs/tiny/stage6",
    data=replace(
        stage5.data,
        paths=("runs/tiny/shown.jsonl", "runs/tiny/begin.jsonl", "runs/tiny/told_6.jsonl", "runs/tiny/far_6.jsonl"),
        buckets=(
            Bucket(tokens=1312, patches=4, labels=800, frame_patches=4),
            Bucket(tokens=1344, patches=768, labels=840, frame_patches=96),
            Bucket(tokens=2048, patches=2304, labels=1152, frame_patches=96),
        ),
    ),
    steps=1200,
)
