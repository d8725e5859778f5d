"""Convert a checkpoint: Hugging Face -> JAX (Orbax, for training), a training checkpoint -> Hugging Face, or re-shard and cast.

    svlm convert Qwen/Qwen2.5-VL-7B-Instruct /data/7b-jax            # a Hugging Face source means --to orbax
    svlm convert /data/7b-jax /data/7b-hf --max-shard-size 2GB --verify
    svlm convert RUN_DIR /data/tuned-hf                              # the newest checkpoint of a training run

SOURCE is a directory or a hub id. TARGET must not exist; it appears when it is complete.
"""

import argparse
import os
import re
from pathlib import Path

from svlm_jax.cli.flags import Parser
from svlm_jax.cli.progress import Progress
from svlm_jax.errors import InputError


def parse_size(text: str) -> int:
    """ "5GB" -> 5_000_000_000; also MB, KB, GiB, MiB, KiB and plain bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(i?)B?", text.strip(), re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise InputError("--max-shard-size", repr(text), "a size such as 5GB or 512MiB", "give a number and a unit")
    power = "KMG".index(match[2].upper()) + 1 if match[2] else 0
    return max(1, int(float(match[1]) * (1024 if match[3] else 1000) ** power))


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("source", help="checkpoint directory (Hugging Face or Orbax) or hub id")
    parser.add_argument("target", type=Path, help="directory to make")
    parser.add_argument("--to", choices=("hf", "orbax"), help="form of the target (default: the other one)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the parameters (default: the source's)")
    parser.add_argument("--processor", type=Path, help="directory with tokenizer and processor files, if not in SOURCE")
    parser.add_argument(
        "--max-shard-size", default="4GB", metavar="SIZE", help="of a safetensors file (default 4GB); the host holds one"
    )
    parser.add_argument("--ema", action="store_true", help="of a training run: the averaged parameters")
    parser.add_argument("--model", type=Path, help="of a training run: where the model that it began with is now")
    parser.add_argument("--verify", action="store_true", help="read the result again and compare every tensor")
    args = parser.parse_args()
    max_shard_bytes = parse_size(args.max_shard_size)

    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is computed; leave accelerators to those who need them
    from svlm_jax.checkpoint import convert, orbax
    from svlm_jax.families import config_json
    from svlm_jax.media.processor import PROCESSOR_FILES, TOKENIZER, Processor
    from svlm_jax.pretrained import local_directory
    from svlm_jax.settings import read_generation_config, read_streaming_config
    from svlm_jax.train import export

    source = local_directory(args.source)
    if export.is_run(source):
        _export(source, args, max_shard_bytes)
        return
    if args.ema or args.model:
        raise InputError("--ema, --model", str(source), "the directory of a training run", "leave the flags out")
    to = args.to or ("hf" if orbax.is_store(source) else "orbax")
    directories = [args.processor, source] if args.processor else [source]  # of a file in both, the processor's
    paths_by_name = {name: [folder / name for folder in directories if (folder / name).is_file()] for name in PROCESSOR_FILES}
    processor_files = [paths[0] for paths in paths_by_name.values() if paths]
    config = config_json.read(source, args.dtype)
    read_streaming_config(source)
    read_generation_config(source, config)
    if any(path.name in TOKENIZER for path in processor_files):
        Processor.from_directory(args.processor or source, config)  # what is copied is what a model can be used with
    else:
        print(f"note: no tokenizer in {args.processor or source}; --processor DIR adds one")
    print(f"{source} -> {args.target} ({to}, {args.dtype or 'same dtype'})")
    config = convert.convert(
        source,
        args.target,
        to=to,
        processor_files=processor_files,
        dtype=args.dtype,
        max_shard_bytes=max_shard_bytes,
        verify=args.verify,
        progress=Progress("convert"),
    )
    size = sum(path.stat().st_size for path in args.target.rglob("*") if path.is_file())
    verified = ", verified bit by bit" if args.verify else ""
    print(f"wrote {args.target}: {config.param_dtype}, {size / 1e9:.2f} GB{verified}")


def _export(run_dir: Path, args: argparse.Namespace, max_shard_bytes: int) -> None:
    from svlm_jax.pretrained import local_directory
    from svlm_jax.train import export
    from svlm_jax.train.run import read_config

    if args.verify or args.processor:
        raise InputError("--verify, --processor", "a training run", "another source", "leave the flags out")
    model = args.model or local_directory(read_config(run_dir).model)
    options = {"to": args.to or "hf", "dtype": args.dtype, "ema": args.ema, "max_shard_bytes": max_shard_bytes}
    config = export.export(run_dir, args.target, model=model, progress=Progress("export"), **options)
    print(f"wrote {args.target}: {config.param_dtype}, {'averaged' if args.ema else 'trained'} parameters of {run_dir}")
