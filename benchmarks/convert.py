"""A checkpoint of random weights, Hugging Face -> Orbax -> Hugging Face: time, host memory, and whether it came back."""

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

from benchmarks.report import record
from benchmarks.shapes import published
from svlm_jax.cli.progress import Progress
from svlm_jax.config import ModelConfig

POLL = 0.05  # seconds between looks at a child's memory


def random_checkpoint(directory: Path, config: ModelConfig, max_shard_bytes: int = 4 * 10**9) -> None:
    """A Hugging Face directory of `config`'s shape. Each tensor is a normal block of a million numbers, rolled by a number of
    its own and repeated: cheap, and no two tensors are equal."""
    from svlm_jax.checkpoint import huggingface

    block = np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32).astype("bfloat16") * np.asarray(
        0.02, "bfloat16"
    )

    class Lazy(dict):
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

    huggingface.write(directory, config, Lazy(), max_shard_bytes=max_shard_bytes, progress=Progress("random weights"))


def bench(args: argparse.Namespace) -> None:
    config = published(args.shape)
    scratch = Path(tempfile.mkdtemp(prefix="bench-convert-", dir=args.scratch))
    source, orbax, back = scratch / "source", scratch / "orbax", scratch / "back"
    rows = []
    try:
        source.mkdir()
        random_checkpoint(source, config)
        for begin, end in ((source, orbax), (orbax, back)):
            command = [sys.executable, "-m", "svlm_jax.cli", "convert", str(begin), str(end), "--verify"]
            seconds, anonymous, resident = watch(command)
            size = sum(path.stat().st_size for path in end.rglob("*") if path.is_file())
            rows.append(
                {
                    "conversion": f"{begin.name} -> {end.name}, with --verify",
                    "parameters (GB)": round(size / 1e9, 2),
                    "seconds": round(seconds),
                    "peak memory (GB)": round(anonymous / 1e9, 2),
                    "with mapped files (GB)": round(resident / 1e9, 2),
                }
            )
            print(json.dumps(rows[-1]))
        same = subprocess.run([sys.executable, "-c", _SAME, str(source), str(back)], check=False).returncode == 0
        rows.append({**dict.fromkeys(rows[0], ""), "conversion": f"source = back, every tensor bit by bit: {same}"})
    finally:
        shutil.rmtree(scratch)
    what = (
        f"A {args.shape} checkpoint of random bfloat16 weights, Hugging Face -> Orbax -> Hugging Face, on the host. "
        "Peak memory is anonymous memory (on a CPU the model is part of it); mapped pages of files can be dropped."
    )
    record(f"convert_{args.shape}", what, rows, args.out)


_SAME = """
import sys
import numpy as np
from svlm_jax.checkpoint import huggingface
a, b = huggingface.TensorFiles(sys.argv[1]), huggingface.TensorFiles(sys.argv[2])
sys.exit(set(a.files) != set(b.files) or not all(np.array_equal(a.read(n).view("u1"), b.read(n).view("u1")) for n in a.files))
"""


def watch(command: list[str]) -> tuple[float, int, int]:
    """Run a command; (seconds, peak anonymous bytes, peak resident bytes with mapped files). Linux."""
    started = time.monotonic()
    child = subprocess.Popen(command)
    anonymous = resident = 0
    while child.poll() is None:
        try:
            status = Path(f"/proc/{child.pid}/status").read_text()
        except OSError:
            break
        now = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("Rss")}
        anonymous = max(anonymous, now.get("RssAnon", 0) + now.get("RssShmem", 0))
        resident = max(resident, sum(now.values()))
        time.sleep(POLL)
    if child.wait():
        raise SystemExit(f"{' '.join(command)}: exit code {child.returncode}")
    return time.monotonic() - started, anonymous, resident
