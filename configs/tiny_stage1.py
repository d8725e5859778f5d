"""The shipped model, stage 1: to see. Windows of 2 s with almost no text before them, a question in every second; from random
weights, all of it trained.

make train-tiny
"""

from svlm_jax.train.config import Bucket, DataConfig, OptimizerConfig, TrainConfig

config = TrainConfig(
    model="runs/tiny/0",
    run_dir="runs/tiny/stage1",
    data=DataConfig(
        paths=("runs/tiny/see.jsonl",),
        root="runs/tiny/films",
        as_streamed=True,
        sink=4,
        slide=2,
        buckets=(Bucket(tokens=160, patches=192, labels=40, frame=96),),
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, b2=0.98, weight_decay=0.01),
    trained=".*",
    batch=32,
    micro_batch=32,
    dtype="float32",
    remat="none",
    steps=300,
    save_every=50,
)
