"""Which model a command loads and how it is computed, what is checked before that, and where compiled programs are kept."""

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any, get_args

from svlm_jax.cli.progress import interruptible
from svlm_jax.config import Attention, Weights
from svlm_jax.errors import InputError
from svlm_jax.files import local_path

DEFAULT_MODEL = "touchline"  # what a command takes without --model
MODEL_FOR_VIDEO = "Qwen/Qwen2.5-VL-3B-Instruct"


def model_flags(parser: argparse.ArgumentParser, dtype: bool = True) -> None:
    """--model and how it is computed: what `load` reads."""
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help=f"checkpoint directory (Hugging Face or Orbax), hub id, or the default: the shipped {DEFAULT_MODEL}",
    )
    parser.add_argument("--processor", type=Path, help="directory with tokenizer and processor files, if not in --model")
    if dtype:
        parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of computation (default: the checkpoint's)")
    parser.add_argument(
        "--attention", choices=get_args(Attention), default="auto", help="kernels (default: what suits the device)"
    )
    parser.add_argument(
        "--weights", choices=get_args(Weights), default="full", help="of the decoder: int8 is faster, less exact"
    )
    fused_help = "decode with fewer kernels, on one Hopper GPU (not measured yet)"
    parser.add_argument("--fused-decode", action="store_true", help=fused_help)
    compile_cache_flag(parser)


def compile_cache_flag(parser: argparse.ArgumentParser) -> None:
    """--compile-cache: what `set_compile_cache` reads."""
    parser.add_argument(
        "--compile-cache",
        metavar="DIR",
        help="where compiled programs are kept for the next start, or none "
        "(default: $JAX_COMPILATION_CACHE_DIR, or svlm_jax in the user's cache directory)",
    )


def set_compile_cache(args: argparse.Namespace) -> Path | None:
    """Keep compiled programs where --compile-cache says; returns where that is."""
    if args.compile_cache == "none":
        import jax

        jax.config.update("jax_enable_compilation_cache", False)
        return None
    from svlm_jax.compile_cache import enable_compile_cache

    if args.compile_cache == "":
        raise InputError("--compile-cache", "nothing", "a directory, or none", "leave the flag out")
    return enable_compile_cache(args.compile_cache and local_path(args.compile_cache, "--compile-cache"))


def check_source(name: str, start: float | None = None, duration: float | None = None) -> None:
    """Look whether a file or a folder plays, before a model is looked for, downloaded or loaded. Cameras and addresses are
    opened once, later.

    Raises:
        InputError: it is not there, is no video, or does not begin before `start`.
    """
    from svlm_jax.media.sources import open_source, scheme_of
    from svlm_jax.touchline.source import SCHEMES

    scheme = scheme_of(name, SCHEMES)
    if scheme in ("webcam", "url"):
        return
    with warnings.catch_warnings(action="ignore"):  # they come again with the stream
        if scheme == "match":
            open_source(name, schemes=SCHEMES).close()  # to look at it is to play it up to its start
            return
        with open_source(name, start=start or 0.0, duration=duration) as source:
            next(iter(source), None)


def check_attention(name: str, flag: str = "--attention") -> None:
    """Raises InputError where the kernels of that name do not run on the devices of this machine."""
    platform = {"cudnn": "gpu", "mosaic_gpu": "gpu", "mosaic_gpu_pingpong": "gpu", "tpu": "tpu"}.get(name)
    if platform is None:
        return
    import jax

    device, remedy = jax.default_backend(), "leave the flag out: auto takes what suits the device"
    if device != platform:
        raise InputError(flag, f"{name} on a {device.upper()}", f"a {platform.upper()} for it", remedy)
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    if name.startswith("mosaic_gpu") and not capability.startswith("9."):
        raise InputError(flag, f"{name} on a GPU of compute capability {capability}", "9.x (Hopper)", remedy)


def knows_only_its_game(model: str, source: str) -> str:
    """What to say of the shipped models before they watch anything but their game; "" where there is nothing to say."""
    from svlm_jax.pretrained import SHIPPED

    if str(model) not in SHIPPED or Path(model).is_dir() or source.startswith("match:"):
        return ""
    return (
        f"{model} knows only the generated game (match:SEED, films of svlm world); for other video: --model {MODEL_FOR_VIDEO}"
    )


def load(args: argparse.Namespace, source: str | None = None, **options: Any) -> Any:
    """The model that the flags of `model_flags` name (a `Pretrained`).

    Args:
        source: what it will watch; a shipped model that knows nothing of it says so on stderr.
        options: of `from_pretrained`.
    """
    from svlm_jax.pretrained import from_pretrained

    if source is not None and (warning := knows_only_its_game(args.model, source)):
        print(warning, file=sys.stderr, flush=True)
    with interruptible():
        set_compile_cache(args)
        check_attention(args.attention)
        options_given = {"dtype": args.dtype} if "dtype" in args else {}
        options_given |= {"processor": args.processor, "attention": args.attention, "weights": args.weights}
        options_given |= {"fused_decode": args.fused_decode, "preset": getattr(args, "preset", None)}
        return from_pretrained(args.model, **options_given, **options)
