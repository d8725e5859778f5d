"""What every command shares: how a model is named and computed, one line for bad input, and progress as a bar on a terminal or
plain lines elsewhere."""

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, get_args

from svlm_jax.config import Attention, Weights
from svlm_jax.errors import InputError

BAD_INPUT = 2  # exit code
LINE_EVERY = 5.0  # seconds between plain progress lines


def run(main: Callable[[], None]) -> None:
    """Run a command; InputError becomes one line on stderr and exit code 2, warnings become one line each."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs whole tracebacks of what we say in one line
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        sys.exit(130)


def model_flags(parser: argparse.ArgumentParser, dtype: bool = True) -> None:
    """--model and how it is computed: what `load` reads."""
    parser.add_argument("--model", required=True, help="checkpoint directory (Hugging Face or Orbax) or hub id")
    parser.add_argument("--processor", help="directory with tokenizer and processor files, if not in --model")
    if dtype:
        parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of computation (default: the checkpoint's)")
    parser.add_argument(
        "--attention", choices=get_args(Attention), default="auto", help="kernels (default: what suits the device)"
    )
    parser.add_argument(
        "--weights", choices=get_args(Weights), default="full", help="of the decoder: int8 is faster, less exact"
    )


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
