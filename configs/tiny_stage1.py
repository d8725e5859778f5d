"""The shipped model, stage 1: to see and to read. Windows of 2 s with the first words of the game and the last before them, a
question a second; from random weights, all of it trained. Batches are small: copying from text is learned in steps, not in
samples.

    make train-tiny
"""

from svlm_jax.data.config import Bucket, DataConfig
from svlm_jax.train.config import MeshConfig, OptimizerConfig, TrainConfig

config = TrainConfig(
    model="runs/tiny/0",
    run_dir="runs/tiny/stage1",
    data=DataConfig(
        paths=("runs/tiny/see.jsonl",),
        root="runs/tiny/films",
        as_streamed=True,
        sink=16,
        text_window=24,
        buckets=(Bucket(tokens=192, patches=192, labels=32, frame_patches=96),),
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, b2=0.98, weight_decay=0.01),
    mesh=MeshConfig(fsdp=1),  # one device: fewer samples a pass than a host may have of them
    trainable=".*",
    batch_size=8,
    micro_batch_size=8,
    dtype="float32",
    remat="save_attention",
    steps=1200,
    save_every=200,
)
