"""A few steps of a tiny random model on a laptop, to see the whole path work; the tests' own model unless you say otherwise.

    svlm windows match.jsonl --out train.jsonl --window 8 --stride 4
    svlm train --config sft_smoke --run-dir RUN --data.paths train.jsonl

2 CPU cores: seconds a step.
"""

from pathlib import Path

from svlm_jax.data.config import Bucket, DataConfig
from svlm_jax.train.config import OptimizerConfig, TrainConfig

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"

config = TrainConfig(
    model=str(FIXTURES / "models" / "tiny"),
    processor=str(FIXTURES / "processor"),
    data=DataConfig(buckets=(Bucket(2048, 8192, 512, 1024), Bucket(8192, 32768, 1024, 4096))),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    batch_size=4,
    micro_batch_size=2,
    steps=20,
    dtype="float32",
    save_every=10,
)
