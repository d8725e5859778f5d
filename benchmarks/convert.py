"""A checkpoint of random weights, Hugging Face -> Orbax -> Hugging Face: time, host memory, and whether it is unchanged."""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

from benchmarks.model_configs import SHAPES, published_config
from benchmarks.report import record
from svlm_jax.cli.progress import Progress
from svlm_jax.config import ModelConfig

POLL_INTERVAL = 0.05  # seconds between samples of a child's memory


def random_checkpoint(directory: Path, config: ModelConfig, max_shard_bytes: int = 4 * 10**9) -> None:
    """Write a Hugging Face directory of random weights. Each tensor repeats one block of a million normal numbers, rolled by a
    hash of its path: cheap, and no two tensors are equal."""
    from svlm_jax.checkpoint import huggingface

    block = np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32).astype("bfloat16") * np.asarray(
        0.02, "bfloat16"
    )

    class LazyTensors(dict):  # the writer takes one tensor at a time; a whole checkpoint need not fit into memory
        def __missing__(self, path: str) -> "Tensor":
            return Tensor(path)

        def __contains__(self, path: object) -> bool:
            return True

    shapes = {row.path: row.shape for row in huggingface.rows(config)}

    class Tensor:
        is_fully_addressable = True

        def __init__(self, path: str) -> None:
            self.path = path

        def __array__(self, dtype=None, copy=None) -> np.ndarray:
            tensor = np.empty(int(np.prod(shapes[self.path])), block.dtype)
            rolled = np.roll(block, zlib.crc32(self.path.encode()))
            for start in range(0, len(tensor), len(block)):
                tensor[start : start + len(block)] = rolled[: len(tensor) - start]
            return tensor.reshape(shapes[self.path])

    huggingface.write(directory, config, LazyTensors(), max_shard_bytes=max_shard_bytes, progress=Progress("random weights"))


def bench(args: argparse.Namespace) -> None:
    config = published_config(args.shape)
    scratch = Path(tempfile.mkdtemp(prefix="bench-convert-", dir=args.scratch))
    source, orbax, back = scratch / "source", scratch / "orbax", scratch / "back"
    rows = []
    try:
        source.mkdir()
        random_checkpoint(source, config)
        for start, target in ((source, orbax), (orbax, back)):
            command = [sys.executable, "-m", "svlm_jax.cli", "convert", str(start), str(target), "--verify"]
            seconds, anonymous, resident = run_measured(command)
            size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
            rows.append(
                {
                    "conversion": f"{start.name} -> {target.name}, with --verify",
                    "parameters (GB)": round(size / 1e9, 2),
                    "seconds": round(seconds),
                    "peak memory (GB)": round(anonymous / 1e9, 2),
                    "peak with mapped files (GB)": round(resident / 1e9, 2),
                }
            )
            print(json.dumps(rows[-1]))
        equal = subprocess.run([sys.executable, "-c", _COMPARE, str(source), str(back)], check=False).returncode == 0
        rows.append({**dict.fromkeys(rows[0], ""), "conversion": f"source = back, every tensor bit by bit: {equal}"})
    finally:
        shutil.rmtree(scratch)
    description = (
        f"A {args.shape} checkpoint of random bfloat16 weights, Hugging Face -> Orbax -> Hugging Face, on the host. "
        "Peak memory is anonymous memory (on a CPU the model is part of it); mapped pages of files can be evicted."
    )
    record(f"convert_{args.shape}", description, rows, args.out)


_COMPARE = """
import sys
import numpy as np
from svlm_jax.checkpoint import huggingface
a, b = huggingface.TensorFiles(sys.argv[1]), huggingface.TensorFiles(sys.argv[2])
sys.exit(set(a.files) != set(b.files) or not all(np.array_equal(a.read(n).view("u1"), b.read(n).view("u1")) for n in a.files))
"""


def run_measured(command: list[str]) -> tuple[float, int, int]:
    """Run a command; (seconds, peak anonymous bytes, peak resident bytes with mapped files). Linux."""
    started = time.monotonic()
    child = subprocess.Popen(command)
    anonymous = resident = 0
    while child.poll() is None:
        try:
            status = Path(f"/proc/{child.pid}/status").read_text()
        except OSError:
            break
        rss = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("Rss")}
        anonymous = max(anonymous, rss.get("RssAnon", 0) + rss.get("RssShmem", 0))
        resident = max(resident, sum(rss.values()))
        time.sleep(POLL_INTERVAL)
    if child.wait():
        raise SystemExit(f"{' '.join(command)}: exit code {child.returncode}")
    return time.monotonic() - started, anonymous, resident


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", default="7b", help=f"{SHAPES} (default 7b)")
    parser.add_argument("--scratch", type=Path, help="directory with room for three checkpoints (default: the system's)")
