"""What every command shares: how a model is named and computed, what is checked before it is loaded, where compiled programs
are kept, and one line for bad input."""

import argparse
import errno
import io
import logging
import os
import re
import sys
import warnings
from argparse import SUPPRESS
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

from svlm_jax.cli.flags import BAD_INPUT, SEEDS, YEAR, Parser, real, short, whole, word_of
from svlm_jax.cli.progress import Progress, compiling, interruptible, live
from svlm_jax.config import Attention, Mode, MovedReplyKV, RopePositions, StreamConfig, Weights
from svlm_jax.errors import InputError

__all__ = [
    "DEFAULT_MODEL",
    "SEEDS",
    "YEAR",
    "Parser",
    "Progress",
    "compiling",
    "interruptible",
    "live",
    "load",
    "run",
    "short",
    "whole",
]

INTERRUPTED, CLOSED = 130, 141  # exit codes: of a shell for SIGINT, and for SIGPIPE
DEFAULT_MODEL = "touchline"  # what a command takes without --model
FOR_VIDEO = "Qwen/Qwen2.5-VL-3B-Instruct"
# What a path or a disk can have against us. One that is broken (EIO) is no input that anybody can mend: it keeps its traceback.
_USUAL = {"ENOENT", "ENOTDIR", "EISDIR", "EACCES", "EPERM", "EEXIST", "EROFS", "ENOSPC", "EDQUOT", "ENAMETOOLONG", "ELOOP"}
_UNUSABLE = {getattr(errno, name) for name in _USUAL if hasattr(errno, name)}
_KERNEL = re.compile(r"(cudnn|mosaic_gpu|tpu): ")  # how a kernel begins that does not take a model


def run(main: Callable[[], None]) -> None:
    """Run a command; InputError, and a path that can not be used, become one line on stderr and exit code 2, warnings one line
    each, Ctrl-C one line and exit code 130; a reader that has gone (`| head`) ends it without a word."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs whole tracebacks of what we say in one line
    warnings.showwarning = _warn
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no such letter
    try:
        main()
        sys.stdout.flush()
    except InputError as error:
        _refuse(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains at its end
        sys.exit(CLOSED)
    except OSError as error:
        if error.errno not in _UNUSABLE or (error.filename is None and error.errno != errno.ENOSPC):
            raise
        name = f"file {error.filename}" if error.filename is not None else "disk"
        _refuse(InputError(name, (error.strerror or str(error)).lower(), "a usable path", "check it"))
    except NotImplementedError as error:
        if not _KERNEL.match(str(error)):
            raise
        _refuse(InputError("--attention", str(error), "a kernel for this model", "leave the flag out"))
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _refuse(error: InputError) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(BAD_INPUT)


_KEPT = re.compile(r"Error (reading|writing) persistent compilation cache entry for '([\w.\-]+)'")
_told: set[str] = set()


def _warn(message: Any, *_: Any, **__: Any) -> None:
    """A warning is one line; that of a compiled program which cannot be kept, or read again, comes once."""
    line = " ".join(str(message).split())
    if found := _KEPT.match(line):
        if found[1] == "reading":
            from svlm_jax.compile_cache import forget

            forget(found[2])
        if found[1] in _told:
            return
        _told.add(found[1])
        line = f"a compiled program could not be {'read' if found[1] == 'reading' else 'kept'}: {line.partition(': ')[2]}"
    print(f"warning: {line}", file=sys.stderr)


def model_flags(parser: argparse.ArgumentParser, dtype: bool = True) -> None:
    """--model and how it is computed: what `load` reads."""
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help=f"checkpoint directory (Hugging Face or Orbax), hub id, or the default: the shipped {DEFAULT_MODEL}",
    )
    parser.add_argument("--processor", help="directory with tokenizer and processor files, if not in --model")
    if dtype:
        parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of computation (default: the checkpoint's)")
    parser.add_argument(
        "--attention", choices=get_args(Attention), default="auto", help="kernels (default: what suits the device)"
    )
    parser.add_argument(
        "--weights", choices=get_args(Weights), default="full", help="of the decoder: int8 is faster, less exact"
    )
    cache_flag(parser)


def cache_flag(parser: argparse.ArgumentParser) -> None:
    """--compile-cache: what `keep_programs` reads."""
    parser.add_argument(
        "--compile-cache",
        metavar="DIR",
        help="where compiled programs are kept for the next start, or none "
        "(default: $JAX_COMPILATION_CACHE_DIR, or svlm_jax in the user's cache directory)",
    )


def keep_programs(args: argparse.Namespace) -> Path | None:
    """Keep compiled programs where --compile-cache says; returns where that is."""
    if args.compile_cache == "none":
        import jax

        jax.config.update("jax_enable_compilation_cache", False)
        return None
    from svlm_jax.compile_cache import enable_compile_cache

    if args.compile_cache == "":
        raise InputError("--compile-cache", "nothing", "a directory, or none", "leave the flag out")
    return enable_compile_cache(args.compile_cache)


# What a flag sets, and its name where that is another. A flag that is not given leaves the model's own setting.
_STREAM = {field.name: field.name for field in fields(StreamConfig)}
_SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")


def rate_flags(parser: Any) -> None:
    """How a video is cut into chunks: part of what `settings` reads."""
    parser.add_argument("--fps", type=real(0, 1000), default=SUPPRESS, help="frames a second that the model sees (usually 2)")
    parser.add_argument("--chunk-seconds", type=real(0, 3600), default=SUPPRESS, help="video seconds of a reply (usually 1)")


def reply_flags(parser: Any) -> None:
    """How replies are drawn: part of what `settings` reads."""
    parser.add_argument("--temperature", type=real(0, 100), default=SUPPRESS, help="0 is greedy (usually 0.9)")
    parser.add_argument("--top-k", type=whole(0), default=SUPPRESS, help="draw from the K likeliest; 0: from all (usually 50)")
    parser.add_argument("--top-p", type=real(0, 1), default=SUPPRESS, help="draw from this share of likelihood (usually 1)")
    parser.add_argument(
        "--repetition-penalty", type=real(0, 100), default=SUPPRESS, help="above 1: less of what was said (usually 1.05)"
    )
    parser.add_argument("--max-new-tokens", type=whole(1), default=SUPPRESS, help="longest reply (usually 20)")


def retained_flags(parser: argparse.ArgumentParser) -> None:
    """Windows and positions: the rest of what `settings` reads."""
    kept = parser.add_argument_group(
        "what is retained",
        "A flag that is not given leaves the setting that the model comes with (streaming_config.json), or else the usual one. "
        "What is in force is told after loading.",
    )
    modes = "streaming; full: all of it; window: begin anew; recompute: no cache"
    kept.add_argument("--mode", choices=get_args(Mode), default=SUPPRESS, help=f"{modes} (usually streaming)")
    kept.add_argument("--vision-window", type=whole(1), default=SUPPRESS, help="chunks of frames (usually 16)")
    kept.add_argument("--text-rounds", type=whole(1), default=SUPPRESS, help="replies that stay turns (usually 16)")
    kept.add_argument(
        "--sink", type=word_of, default=SUPPRESS, help="first words of the previous text (usually 512; none: all)"
    )
    kept.add_argument(
        "--text-window", type=word_of, default=SUPPRESS, help="last tokens of the previous text (usually 512; none: all)"
    )
    kept.add_argument("--rope-positions", choices=get_args(RopePositions), default=SUPPRESS, help="usually contiguous")
    kept.add_argument(
        "--moved-reply-kv",
        choices=get_args(MovedReplyKV),
        default=SUPPRESS,
        help="of replies that become previous text (usually reuse)",
    )
    kept.add_argument("--mrope-axes", type=int, choices=(1, 3), default=SUPPRESS, help="of positions: 3, or 1 as LiveCC counts")
    kept.add_argument("--window-chunks", type=whole(1), default=SUPPRESS, help="of --mode window (usually 100)")


def settings(args: argparse.Namespace) -> tuple[StreamConfig, Any]:
    """How to stream, and a `Sampling`: what the flags of `rate_flags`, `reply_flags` and `retained_flags` say, else what the
    model named by --model comes with.

    Raises:
        InputError: flags that contradict each other, by their names.
    """
    from svlm_jax.pretrained import local_directory, streaming

    config, sampling = streaming(local_directory(args.model))
    given = {name: getattr(args, flag) for flag, name in _STREAM.items() if flag in args}
    if given.get("rope_positions") == "native" and given.get("moved_reply_kv", config.moved_reply_kv) == "recompute":
        got = "native with --moved-reply-kv recompute" + ("" if "moved_reply_kv" in given else " (this model's setting)")
        remedy = "add --moved-reply-kv reuse, or leave --rope-positions out"
        raise InputError("--rope-positions", got, "--moved-reply-kv reuse with it", remedy)
    if given.get("moved_reply_kv") == "recompute" and (given.get("rope_positions") or config.rope_positions) == "native":
        got, expected = "recompute with native positions", "--rope-positions contiguous with it"
        raise InputError("--moved-reply-kv", got, expected, "add --rope-positions contiguous")
    try:
        config = replace(config, **given)
        return config, replace(sampling, **{name: getattr(args, name) for name in _SAMPLING if name in args})
    except InputError as error:
        raise _of_flags(error) from None


def _of_flags(error: InputError) -> InputError:
    """A setting that was refused, under the names that its flags have."""
    flags = {name: f"--{flag.replace('_', '-')}" for flag, name in _STREAM.items()}
    flags |= {name: f"--{name.replace('_', '-')}" for name in _SAMPLING}
    field = " ".join(flags.get(word, word) for word in error.field.removeprefix("sampling ").split())
    return InputError(field, error.got, error.expected, error.remedy)


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
    wanted = {"cudnn": "gpu", "mosaic_gpu": "gpu", "tpu": "tpu"}.get(name)
    if wanted is None:
        return
    import jax

    device, remedy = jax.default_backend(), "leave the flag out: auto takes what suits the device"
    if device != wanted:
        raise InputError(flag, f"{name} on a {device.upper()}", f"a {wanted.upper()} for it", remedy)
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    if name == "mosaic_gpu" and not capability.startswith("9."):
        raise InputError(flag, f"{name} on a GPU of compute capability {capability}", "9.x (Hopper)", remedy)


def outside_its_game(model: str, source: str) -> str:
    """What to say of the shipped models before they watch anything but their game; "" where there is nothing to say."""
    from svlm_jax.pretrained import SHIPPED

    if str(model) not in SHIPPED or Path(model).is_dir() or source.startswith("match:"):
        return ""
    return f"{model} knows only the generated game (match:SEED, films of svlm world); for other video: --model {FOR_VIDEO}"


def load(args: argparse.Namespace, **options: Any) -> Any:
    """The model that the flags of `model_flags` name (a `Pretrained`)."""
    from svlm_jax.pretrained import from_pretrained

    with interruptible():
        keep_programs(args)
        check_attention(args.attention)
        given = {"dtype": args.dtype} if "dtype" in args else {}
        given |= {"processor": args.processor, "attention": args.attention, "weights": args.weights}
        return from_pretrained(args.model, **given, **options)


def in_force(vlm: Any, config: StreamConfig, sampling: Any) -> str:
    """The settings of a stream in one line, under the names of their flags."""
    shown = {flag.replace("_", "-"): getattr(config, name) for flag, name in _STREAM.items()}
    names = [
        "mode",
        "vision-window",
        "text-rounds",
        "sink",
        "text-window",
        "rope-positions",
        "moved-reply-kv",
        "fps",
        "chunk-seconds",
    ]
    if config.mrope_axes != 3:
        names.append("mrope-axes")
    if config.mode == "window":
        names.append("window-chunks")
    told = [f"{name} {shown[name]:g}" if isinstance(shown[name], float) else f"{name} {shown[name]}" for name in names]
    drawn = "greedy" if sampling.temperature == 0 else f"temperature {sampling.temperature:g}, top-k {sampling.top_k}"
    if sampling.temperature and sampling.top_p < 1:
        drawn += f", top-p {sampling.top_p:g}"
    if sampling.repetition_penalty != 1:
        drawn += f", repetition-penalty {sampling.repetition_penalty:g}"
    return f"settings: {', '.join(told)}; {drawn}, max-new-tokens {config.max_new_tokens}"
