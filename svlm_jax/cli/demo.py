"""The shipped model watches a generated game that it was not trained on, next to the true commentary; nothing is downloaded.

    svlm demo                              # a minute and a half of a held-out game
    svlm demo --unseen --seed 1000007      # on a pitch and in shades that no training film has
    svlm demo --picture docs/demo.png      # frames and commentary as a picture

The same path as any video: frames -> patches -> vision tower -> decoder with its KV cache -> words, second by second.
"""

import sys
import time
from pathlib import Path

from svlm_jax.cli.flags import Parser, integer
from svlm_jax.cli.model_flags import DEFAULT_MODEL, compile_cache_flag, set_compile_cache
from svlm_jax.cli.progress import compiling, interruptible
from svlm_jax.cli.stream_flags import resize_flag, retention_flags, settings_line, stream_settings
from svlm_jax.errors import InputError
from svlm_jax.inputs import Clip
from svlm_jax.stream.events import Caption
from svlm_jax.touchline.demo import ASK_BEFORE_END, QUESTION, Comparison, Game, captions, draw
from svlm_jax.touchline.film import HELD_OUT


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="default: the shipped model")
    parser.add_argument("--seed", type=integer(0), default=HELD_OUT, help=f"of the game (default {HELD_OUT}: held out)")
    parser.add_argument("--seconds", type=integer(2 * ASK_BEFORE_END), default=90, help="of the game (default 90)")
    parser.add_argument("--unseen", action="store_true", help="a pitch and shades that no training film has")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="also draw frames and commentary")
    compile_cache_flag(parser)
    resize_flag(parser)
    retention_flags(parser)
    args = parser.parse_args()
    if args.picture and (args.picture.suffix != ".png" or not args.picture.absolute().parent.is_dir()):
        raise InputError("--picture", args.picture, "a FILE.png in a directory that exists", "make the directory")
    config, sampling = stream_settings(args)
    from svlm_jax import from_pretrained
    from svlm_jax.stream.runner import VIDEO, Runner

    started = time.monotonic()
    with interruptible():
        set_compile_cache(args)
        vlm = from_pretrained(args.model)
    print(settings_line(config, sampling), file=sys.stderr)
    size = sum(value.size for value in vlm.parameters.values())
    print(f"{args.model}, {size / 1e6:.1f} M parameters, watches game {args.seed}: {args.seconds} s, as fast as it can\n")

    def start(clip: Clip) -> Runner:
        with compiling() as progress:
            runner = Runner.compiled(vlm.model, vlm.tokenizer, config, clip, sampling=sampling, progress=progress)
        runner.join(VIDEO)
        return runner

    comparison = Comparison(game := Game(args.seed, args.seconds, args.unseen))
    print(f"{'s':>4}  {'true commentary':40}  {'model':40}")
    for caption in captions(vlm.processor, game, config, start, args.resize_on):
        show(comparison, caption)
    summarize(comparison, time.monotonic() - started)
    if args.picture:
        draw(comparison, args.picture)
        print(f"drew {args.picture}")
    print("\nlive, in a browser: pip install -e '.[serve]'; svlm serve")
    print("your own video: svlm stream match.mp4 --model Qwen/Qwen2.5-VL-3B-Instruct")


def show(comparison: Comparison, caption: Caption) -> None:
    """A line for a second in which the true commentary or the model has words, and one for an answer."""
    second = int(caption.start)
    truth, text, answer = comparison.add(caption)
    if answer:
        print(f"{second:4}  {'(' + QUESTION + ')':40}  {answer:40}")
    if truth or text:
        mark = "✓" if truth == text else "✗"
        print(f"{second:4}  {truth:40}  {text:40}  {mark}  F1 so far {comparison.tally.f1:.2f}", flush=True)


def summarize(comparison: Comparison, seconds: float) -> None:
    tally, ms = comparison.tally, comparison.median_ms
    print(
        f"\nF1 of events {tally.f1:.2f} ({tally.matches} of {tally.events} mentioned, {tally.claims - tally.matches} wrong "
        f"claims); scores right: {tally.correct_scores} of {tally.scores}; silence recall {tally.silence_recall:.0%}"
    )
    print(f"{ms:.0f} ms a second of video, {1000 / ms:.0f} times real time; {seconds:.0f} s in all")
