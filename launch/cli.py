"""What every command shares: how a model is named and computed, one line for bad input, and progress as a bar on a terminal or
plain lines elsewhere."""

import argparse
import logging
import re
import sys
import time
import warnings
from argparse import SUPPRESS
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, get_args

from svlm_jax.config import Attention, Mode, Moved, Rebase, StreamConfig, Weights
from svlm_jax.errors import InputError

BAD_INPUT = 2  # exit code
DEFAULT_MODEL = "touchline"  # what a command takes without --model
LINE_EVERY = 5.0  # seconds between plain progress lines


def run(main: Callable[[], None]) -> None:
    """Run a command; InputError, and a path that can not be used, become one line on stderr and exit code 2, warnings one line
    each. A disk that fails is no bad input: it stays an error with its traceback."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs whole tracebacks of what we say in one line
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        if error.filename is None:
            raise
        refused = InputError(f"file {error.filename}", (error.strerror or str(error)).lower(), "a usable path", "check it")
        print(f"error: {refused}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        sys.exit(130)


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


# What a flag sets, and its name where that is another. A flag that is not given leaves the model's own setting.
_STREAM = {"positions": "rebase"} | {field.name: field.name for field in fields(StreamConfig)}
_SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")


def rate_flags(parser: Any) -> None:
    """How a video is cut into chunks: part of what `settings` reads."""
    parser.add_argument("--fps", type=float, default=SUPPRESS, help="frames a second (usually 2)")
    parser.add_argument("--chunk-seconds", type=float, default=SUPPRESS, help="seconds a chunk (usually 1)")


def reply_flags(parser: Any) -> None:
    """How replies are drawn: part of what `settings` reads."""
    parser.add_argument("--temperature", type=float, default=SUPPRESS, help="0 is greedy (usually 0.9)")
    parser.add_argument("--top-k", type=int, default=SUPPRESS, help="usually 50")
    parser.add_argument("--top-p", type=float, default=SUPPRESS, help="usually 1")
    parser.add_argument("--repetition-penalty", type=float, default=SUPPRESS, help="usually 1.05")
    parser.add_argument("--max-new-tokens", type=int, default=SUPPRESS, help="longest reply (usually 20)")


def retained_flags(parser: argparse.ArgumentParser) -> None:
    """Windows and positions: the rest of what `settings` reads."""
    kept = parser.add_argument_group("what is retained (a model's own settings, or the usual ones)")
    kept.add_argument("--mode", choices=get_args(Mode), default=SUPPRESS)
    kept.add_argument("--vision-window", type=int, default=SUPPRESS, help="chunks of frames (usually 16)")
    kept.add_argument("--text-rounds", type=int, default=SUPPRESS, help="replies that stay turns (usually 16)")
    kept.add_argument("--sink", type=_count, default=SUPPRESS, help="first words of the previous text (usually 512; none: all)")
    kept.add_argument(
        "--slide", type=_count, default=SUPPRESS, help="last tokens of the previous text (usually 512; none: all)"
    )
    kept.add_argument("--positions", choices=get_args(Rebase), default=SUPPRESS, help="contiguous RoPE, or the native one")
    kept.add_argument(
        "--moved", choices=get_args(Moved), default=SUPPRESS, help="replies that become previous text: kept, or computed anew"
    )
    kept.add_argument("--axes", type=int, choices=(1, 3), default=SUPPRESS, help="of positions: 3, or 1 as LiveCC counts")
    kept.add_argument("--window-chunks", type=int, default=SUPPRESS, help="of --mode window (usually 100)")


def _count(text: str) -> int | None:
    return None if text == "none" else int(text)


def settings(args: argparse.Namespace) -> tuple[StreamConfig, Any]:
    """How to stream, and a `Sampling`: what the flags of `rate_flags`, `reply_flags` and `retained_flags` say, else what the
    model named by --model comes with."""
    from svlm_jax.pretrained import local_directory, streaming

    config, sampling = streaming(local_directory(args.model))
    try:
        config = replace(config, **{name: getattr(args, flag) for flag, name in _STREAM.items() if flag in args})
    except InputError as error:
        raise _as_flags(error) from None
    return config, replace(sampling, **{name: getattr(args, name) for name in _SAMPLING if name in args})


def _as_flags(error: InputError) -> InputError:
    """The same line with the flags that the user typed in place of the fields that they set."""
    flags = {name: "--" + flag.replace("_", "-") for flag, name in _STREAM.items() if flag not in ("rebase", "question_tokens")}

    def told(part: object) -> str:
        return re.sub(r"(\w+)(?=( to)? ')", lambda found: flags.get(found[1], found[1]), str(part))

    return InputError(flags.get(error.field, error.field), told(error.got), told(error.expected), told(error.remedy))


def load(args: argparse.Namespace, **options: Any) -> Any:
    """The model that the flags of `model_flags` name (a `Pretrained`)."""
    from svlm_jax.pretrained import from_pretrained

    given = {"dtype": args.dtype} if "dtype" in args else {}
    given |= {"processor": args.processor, "attention": args.attention, "weights": args.weights}
    return from_pretrained(args.model, **given, **options)


class Progress:
    """Call with (done, total). A bar on a terminal; a plain line every few seconds and at the end otherwise."""

    def __init__(self, what: str, unit: str = "tensors") -> None:
        self.what, self.unit = what, unit
        self.started = self.spoken = time.monotonic()
        self.bar = None

    def __call__(self, done: int, total: int) -> None:
        if sys.stderr.isatty():
            from tqdm import tqdm

            if self.bar is None:
                self.bar = tqdm(total=total, desc=self.what, unit=f" {self.unit}", leave=True)
            self.bar.update(done - self.bar.n)
            if done == total:
                self.bar.close()
            return
        now = time.monotonic()
        if done == total or now - self.spoken > LINE_EVERY:
            self.spoken = now
            print(f"{self.what}: {done}/{total} {self.unit}, {now - self.started:.0f} s", file=sys.stderr, flush=True)
