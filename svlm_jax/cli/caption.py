"""Describe an image or a video.

svlm caption photo.jpg --model Qwen/Qwen2.5-VL-3B-Instruct
svlm caption match.mp4 --model DIR --prompt "Who has the ball?" --start 60 --duration 8 --max-new-tokens 64
"""

import argparse
import time
from dataclasses import replace
from typing import Any

from svlm_jax.cli.flags import MAX_SEED, Parser, integer, number
from svlm_jax.cli.model_flags import load, model_flags
from svlm_jax.cli.progress import Progress, compiling, interruptible
from svlm_jax.errors import shortened


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("source", help="image or video file")
    model_flags(parser)
    parser.add_argument("--prompt", help='what to ask (default: "Describe this image." or "... video.")')
    parser.add_argument("--fps", type=number(0.01, 1000), default=2.0, help="frames a second taken of a video (default 2)")
    parser.add_argument("--start", type=number(0), default=0.0, metavar="S", help="second to start at")
    parser.add_argument("--duration", type=number(0), metavar="S", help="seconds to watch (default: to the end)")
    parser.add_argument("--max-new-tokens", type=integer(1), default=128, help="longest reply (default 128)")
    group = parser.add_argument_group("sampling (default: the model's generation_config.json, greedy without one)")
    group.add_argument("--temperature", type=number(0, 100), default=argparse.SUPPRESS, help="0 is greedy")
    group.add_argument("--top-k", type=integer(0), default=argparse.SUPPRESS, help="0: all")
    group.add_argument("--top-p", type=number(1e-6, 1), default=argparse.SUPPRESS, help="1: all")
    penalty = number(1e-3, 100)
    group.add_argument("--repetition-penalty", type=penalty, default=argparse.SUPPRESS, help="1: none")
    parser.add_argument("--seed", type=integer(0, MAX_SEED), default=0, help="of what is drawn, unless greedy (default 0)")
    args = parser.parse_args()

    clip = _clip(args)
    vlm = load(args, args.source, progress=Progress("load"))
    overrides = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "repetition_penalty") if name in args}
    sampling = replace(vlm.generation, **overrides)
    t, h, w = clip.grid
    started = time.monotonic()
    options = {"max_new_tokens": args.max_new_tokens, "sampling": sampling, "seed": args.seed}
    with compiling():
        text = vlm.caption_clip(clip, args.prompt, **options)
    print(text)
    seconds = time.monotonic() - started
    print(f"[{shortened(args.source)}: {t} x {h} x {w} patches, {seconds:.1f} s with compilation]")


def _clip(args: argparse.Namespace) -> Any:
    """The source as the model will see it, before the weights are loaded; that there is one, before a model is downloaded."""
    from svlm_jax.families import config_json
    from svlm_jax.media.image import existing_file
    from svlm_jax.media.processor import Processor
    from svlm_jax.pretrained import local_directory

    existing_file(args.source, "image or video")
    with interruptible():
        directory = local_directory(args.model)
    processor = Processor.from_directory(args.processor or directory, config_json.read(directory))
    return processor.open(args.source, fps=args.fps, start=args.start, duration=args.duration)
