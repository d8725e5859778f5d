"""Describe an image or a video.

python -m launch.caption photo.jpg --model Qwen/Qwen2.5-VL-3B-Instruct
python -m launch.caption match.mp4 --model DIR --prompt "Who has the ball?" --start 60 --duration 8 --max-new-tokens 64
"""

import argparse
import time
from dataclasses import replace

from launch.cli import Progress, load, model_flags, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="image or video file")
    model_flags(parser)
    parser.add_argument("--prompt", help='what to ask (default: "Describe this image." or "... video.")')
    parser.add_argument("--fps", type=float, default=2.0, help="frames a second taken of a video (default 2)")
    parser.add_argument("--start", type=float, default=0.0, metavar="S", help="second to start at")
    parser.add_argument("--duration", type=float, metavar="S", help="seconds to watch (default: to the end)")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    own = parser.add_argument_group("how words are drawn (default: the model's generation_config.json, greedy without one)")
    own.add_argument("--temperature", type=float, default=argparse.SUPPRESS, help="0 is greedy")
    own.add_argument("--top-k", type=int, default=argparse.SUPPRESS, help="0: all")
    own.add_argument("--top-p", type=float, default=argparse.SUPPRESS, help="1: all")
    own.add_argument("--repetition-penalty", type=float, default=argparse.SUPPRESS, help="1: none")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    vlm = load(args, progress=Progress("load"))
    given = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "repetition_penalty") if name in args}
    sampling = replace(vlm.generation, **given)
    clip = vlm.processor.open(args.source, fps=args.fps, start=args.start, duration=args.duration)
    t, h, w = clip.grid
    started = time.monotonic()
    options = {"max_new_tokens": args.max_new_tokens, "sampling": sampling, "seed": args.seed}
    text = vlm.caption_clip(clip, args.prompt, **options)
    print(text)
    seconds = time.monotonic() - started
    print(f"[{args.source}: {t} x {h} x {w} patches, {seconds:.1f} s with compilation]")


if __name__ == "__main__":
    run(main)
