"""What every command shares: how a model is named and computed, one line for bad input, and progress as a bar on a terminal or
plain lines elsewhere."""

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, get_args

from svlm_jax.config import Attention, Mode, Rebase, StreamConfig, Weights
from svlm_jax.errors import InputError

BAD_INPUT = 2  # exit code
USUAL = StreamConfig()
DEFAULT_MODEL: str | None = None  # what a command takes without --model; None: the flag is needed
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
    parser.add_argument(
        "--model",
        required=DEFAULT_MODEL is None,
        default=DEFAULT_MODEL,
        help="checkpoint directory (Hugging Face or Orbax) or hub id",
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


def rate_flags(parser: Any) -> None:
    """How a video is cut into chunks: part of what `stream_config` reads."""
    parser.add_argument("--fps", type=float, default=USUAL.fps, help="frames a second (default 2)")
    parser.add_argument("--chunk-seconds", type=float, default=USUAL.chunk_seconds, help="seconds a chunk (default 1)")


def reply_flags(parser: Any) -> None:
    """How replies are drawn: what `sampling` reads, and part of what `stream_config` does."""
    parser.add_argument("--temperature", type=float, default=0.9, help="0 is greedy (default 0.9)")
    parser.add_argument("--top-k", type=int, default=50)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--repetition-penalty", type=float, default=1.05)
    parser.add_argument("--max-new-tokens", type=int, default=USUAL.max_new_tokens, help="longest reply (default 20)")


def retained_flags(parser: argparse.ArgumentParser) -> None:
    """Windows and positions: the rest of what `stream_config` reads."""
    kept = parser.add_argument_group("what is retained")
    kept.add_argument("--mode", choices=get_args(Mode), default=USUAL.mode)
    kept.add_argument("--vision-window", type=int, default=USUAL.vision_window, help="chunks of frames (default 16)")
    kept.add_argument("--text-rounds", type=int, default=USUAL.text_rounds, help="replies that stay turns (default 16)")
    kept.add_argument("--sink", type=_count, default=USUAL.sink, help="first words of the previous text (512, or none)")
    kept.add_argument("--slide", type=_count, default=USUAL.slide, help="last tokens of the previous text (512, or none)")
    kept.add_argument("--positions", choices=get_args(Rebase), default=USUAL.rebase, help="contiguous RoPE, or the native one")
    kept.add_argument("--axes", type=int, choices=(1, 3), default=USUAL.axes, help="of positions: 3, or 1 as LiveCC counts")
    kept.add_argument("--window-chunks", type=int, default=USUAL.window_chunks, help="of --mode window (default 100)")


def _count(text: str) -> int | None:
    return None if text == "none" else int(text)


def stream_config(args: argparse.Namespace) -> StreamConfig:
    """What the flags of `rate_flags`, `reply_flags` and `retained_flags` say."""
    return StreamConfig(
        mode=args.mode,
        vision_window=args.vision_window,
        text_rounds=args.text_rounds,
        sink=args.sink,
        slide=args.slide,
        rebase=args.positions,
        axes=args.axes,
        window_chunks=args.window_chunks,
        fps=args.fps,
        chunk_seconds=args.chunk_seconds,
        max_new_tokens=args.max_new_tokens,
    )


def sampling(args: argparse.Namespace) -> Any:
    """What the flags of `reply_flags` say (a `Sampling`)."""
    from svlm_jax.stream.sampling import Sampling

    return Sampling(args.temperature, args.top_k, args.top_p, args.repetition_penalty)


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
