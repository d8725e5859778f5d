"""A small model, stage 1: to talk. Games and drills that are told and not shown, windows of 8 s with what was said in the
minute before them, which is learned too; from random weights.

    make train-tiny
"""

from svlm_jax.train.config import Bucket, DataConfig, OptimizerConfig, TrainConfig

config = TrainConfig(
    model="runs/tiny/0",
    run_dir="runs/tiny/stage1",
    data=DataConfig(
        paths=("runs/tiny/talk.jsonl",),
        root="runs/tiny/films",
        as_streamed=True,
        learn_previous=192,
        sink=16,
        slide=176,
        buckets=(Bucket(tokens=456, patches=4, labels=320, frame=4),),
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, b2=0.98, weight_decay=0.01),
    trained=".*",
    batch=4,
    micro_batch=4,
    dtype="float32",
    remat="none",
    steps=1600,
    save_every=200,
)
