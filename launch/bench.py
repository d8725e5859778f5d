"""Measure, and keep the numbers: every figure in docs/ comes from here.

    python -m launch.bench convert --shape 7b --scratch /data/tmp     # a checkpoint of random weights, both ways: time, memory
    python -m launch.bench aot --shape 7b [--target h100]             # compiled ahead of time: flops, bytes, copies
    python -m launch.bench table                                      # docs/benchmarks.md from docs/benchmarks/*.json

Each run writes docs/benchmarks/NAME.json with its command, device and versions, and the table anew.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from launch.cli import Progress, run
from svlm_jax.config import ModelConfig, preset
from svlm_jax.errors import InputError

DOCS = Path(__file__).parent.parent / "docs"
PACKAGES = ("jax", "jaxlib", "flax", "orbax-checkpoint", "safetensors")
REPLY = 20  # tokens of a decode loop
POLL = 0.05  # seconds between looks at a child's memory


def record(name: str, what: str, rows: list[dict[str, Any]], out: Path) -> None:
    """Write one benchmark's rows with all that is needed to run it again, and the table."""
    import jax

    device = jax.devices()[0]
    entry = {
        "what": what.strip(),
        "command": "python -m launch.bench " + " ".join(sys.argv[1:]),
        "date": date.today().isoformat(),
        "device": f"{device.device_kind}, {os.cpu_count()} cores, {platform.machine()}",
        "versions": {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}},
        "rows": rows,
    }
    (out / "benchmarks").mkdir(parents=True, exist_ok=True)
    (out / "benchmarks" / f"{name}.json").write_text(json.dumps(entry, indent=2) + "\n")
    table(out)


def table(out: Path) -> None:
    """docs/benchmarks.md from the JSON files."""
    lines = ["# Benchmarks", "", "Written by `python -m launch.bench table` from `benchmarks/*.json`.", ""]
    for path in sorted((out / "benchmarks").glob("*.json")):
        entry = json.loads(path.read_text())
        columns = list(entry["rows"][0])
        versions = ", ".join(f"{name} {version}" for name, version in entry["versions"].items())
        lines += [
            f"## {path.stem}",
            "",
            entry["what"],
            "",
            f"`{entry['command']}`",
            "",
            f"{entry['date']}; {entry['device']}; {versions}",
            "",
        ]
        lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        lines += ["| " + " | ".join(str(row[column]) for column in columns) + " |" for row in entry["rows"]] + [""]
    (out / "benchmarks.md").write_text("\n".join(lines))


def random_checkpoint(directory: Path, config: ModelConfig, max_shard_bytes: int = 4 * 10**9) -> None:
    """A Hugging Face directory of `config`'s shape. Each tensor is a normal block of a million numbers, rolled by a number of
    its own and repeated: cheap, and no two tensors are equal."""
    from svlm_jax.checkpoint import hf

    block = np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32).astype("bfloat16") * np.asarray(
        0.02, "bfloat16"
    )

    class Lazy(dict):
        def __missing__(self, path: str) -> "Tensor":
            return Tensor(path)

        def __contains__(self, path: object) -> bool:
            return True

    shapes = {row.path: row.shape for row in hf.rows(config)}

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

    hf.write(directory, config, Lazy(), max_shard_bytes=max_shard_bytes, progress=Progress("random weights"))


def bench_convert(args: argparse.Namespace) -> None:
    config = preset(args.shape)
    scratch = Path(tempfile.mkdtemp(prefix="bench-convert-", dir=args.scratch))
    source, orbax, back = scratch / "source", scratch / "orbax", scratch / "back"
    rows = []
    try:
        source.mkdir()
        random_checkpoint(source, config)
        for begin, end in ((source, orbax), (orbax, back)):
            command = [sys.executable, "-m", "launch.convert", str(begin), str(end), "--verify"]
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
from svlm_jax.checkpoint import hf
a, b = hf.Files(sys.argv[1]), hf.Files(sys.argv[2])
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


def bench_aot(args: argparse.Namespace) -> None:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from svlm_jax.inputs import Inputs, VisionInput
    from svlm_jax.model.cache import Cache
    from svlm_jax.model.vlm import abstract
    from svlm_jax.stream.generate import decode, prefill

    config = preset(args.shape)
    graph, state = abstract(config)
    tokens, patches, slots = args.tokens, args.patches, args.slots
    sharding = h100() if args.target == "h100" else None

    def sds(*shape: int, dtype="int32") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    def reply(state, token, index, position, cache, slot):
        model = nnx.merge(graph, state)

        def step(loop):
            count, token, cache = loop
            logits, cache = decode(model, token, index + count, position + count, cache, slot + count)
            return count + 1, jnp.argmax(logits, -1).astype(jnp.int32), cache

        return jax.lax.while_loop(lambda loop: loop[0] < REPLY, step, (jnp.int32(0), token, cache))

    pair = sds(1, patches, 2)
    vision = VisionInput(sds(1, patches, 1176, dtype="float32"), pair, pair, pair, patches)
    inputs = Inputs(sds(1, tokens), sds(1, tokens), sds(1, 3, tokens, dtype="float32"), sds(1, tokens), vision)
    cache = jax.eval_shape(lambda: Cache.empty(config.text, 1, slots, config.dtype))
    steps = {
        f"prefill, {tokens} tokens and {patches} patches": (
            lambda state, inputs, cache: prefill(nnx.merge(graph, state), inputs, cache),
            (state, inputs, cache),
            2,
        ),
        f"decode, a loop of {REPLY} tokens over {slots} slots (flops and bytes: one token)": (
            reply,
            (state, sds(1), sds(1), sds(1, dtype="float32"), cache, sds()),
            4,
        ),
    }
    layer = cache.keys[0].size
    rows = []
    for name, (function, arguments, donated) in steps.items():
        if sharding is not None:
            place = partial(jax.ShapeDtypeStruct, sharding=sharding)
            arguments = jax.tree.map(lambda x, place=place: place(x.shape, x.dtype), arguments)
        started = time.monotonic()
        compiled = jax.jit(function, donate_argnums=donated).trace(*arguments).lower().compile()
        row: dict[str, Any] = {"step": name, "compile (s)": round(time.monotonic() - started, 1)}
        if cost := compiled.cost_analysis():  # none for a device that is not there
            row |= {"TFLOP": round(cost["flops"] / 1e12, 3), "bytes accessed (GB)": round(cost["bytes accessed"] / 1e9, 2)}
        if memory := compiled.memory_analysis():
            row |= {
                "arguments (GB)": round(memory.argument_size_in_bytes / 1e9, 2),
                "of them updated in place (GB)": round(memory.alias_size_in_bytes / 1e9, 2),
                "temporary (GB)": round(memory.temp_size_in_bytes / 1e9, 2),
            }
        if args.target == "h100":
            row["copies or transposes as large as a layer's keys"] = large_moves(compiled.as_text() or "", layer)
        rows.append(row)
        print(json.dumps(rows[-1]))
    what = f"The {args.shape} shape in bfloat16 compiled ahead of time for {args.target}, nothing run: XLA's own counts. "
    if args.target == "cpu":
        what += "A CPU has no bfloat16 units, so XLA widens the weights to float32, which shows in bytes and temporaries."
    record(f"aot_{args.shape}_{args.target}", what, rows, args.out)


def h100():
    """The sharding of one H100 that is not there; needs the CUDA plugin of this jax version and ptxas."""
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    import jax
    from jax.experimental import topologies

    description = Path(__file__).with_name("h100.txtpb").read_text()
    try:
        there = topologies.get_topology_desc("h100", platform="cuda", target_config=description, topology="1x1x1")
    except (RuntimeError, ValueError) as error:  # NotImplementedError and JaxRuntimeError are RuntimeErrors
        got = f"h100 ({str(error).splitlines()[0]})"
        remedy = "pip install --no-deps jax-cuda13-plugin and jax-cuda13-pjrt of the version of jax, and put ptxas on PATH"
        raise InputError("--target", got, "the CUDA plugin", remedy) from None
    mesh = jax.sharding.Mesh(there.devices[:1], ("x",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def large_moves(hlo: str, elements: int) -> int:
    """How many copies and transposes (or fusions of them) of at least that many elements a compiled program holds."""
    count = 0
    for line in hlo.splitlines():
        made = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = \w+\[([\d,]+)\]\S* (copy|transpose|fusion)\(", line)
        if made and (made[3] != "fusion" or re.search("transpose|copy", made[1])):
            count += int(np.prod([int(size) for size in made[2].split(",")])) >= elements
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DOCS, help="where benchmarks/ and benchmarks.md go (default: docs)")
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help="checkpoint conversion: time and memory")
    convert.add_argument("--shape", default="7b", help="3b, 7b, 32b or 72b")
    convert.add_argument("--scratch", type=Path, help="directory with room for three checkpoints (default: the system's)")
    convert.set_defaults(run=bench_convert)
    aot = commands.add_parser("aot", help="compile prefill and decode ahead of time")
    aot.add_argument("--shape", default="7b")
    aot.add_argument("--target", choices=("cpu", "h100"), default="cpu", help="h100 needs no GPU (default cpu)")
    aot.add_argument("--tokens", type=int, default=1024, help="prompt bucket")
    aot.add_argument("--patches", type=int, default=4096, help="vision bucket")
    aot.add_argument("--slots", type=int, default=16384, help="cache capacity")
    aot.set_defaults(run=bench_aot)
    commands.add_parser("table", help="write benchmarks.md anew").set_defaults(run=lambda args: table(args.out))
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    run(main)
