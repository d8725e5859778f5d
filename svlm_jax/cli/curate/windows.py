"""Cut transcripts into windows for supervised fine-tuning: 24 s every 12 s, with the text before each, where enough is said.

    svlm curate windows --in edited.jsonl --out train.jsonl                       # 2 words a second: 48 in 24 s
    svlm curate windows --in edited.jsonl --out train.jsonl --words-per-second 0  # silent windows too

They are those of `svlm windows`; train.jsonl and train_seeks.jsonl are what `svlm train` reads. A word is in the window that it
ends in; all that ended before a window is its previous text. Windows in which too little is said are listed in
train.changes.jsonl, and a video in which none is left is set aside.
"""

from svlm_jax.cli.curate.step_flags import run, step_flags
from svlm_jax.cli.flags import Parser, integer, number
from svlm_jax.curate.training_windows import TrainingWindows


def main() -> None:
    parser = Parser(description=__doc__)
    step_flags(parser)
    parser.add_argument("--window", type=integer(1), default=24, metavar="S", help="seconds of a window (default 24)")
    parser.add_argument("--stride", type=integer(1), default=12, metavar="S", help="seconds from start to start (default 12)")
    words = "words that a window must have for each of its seconds (default 2)"
    parser.add_argument("--words-per-second", type=number(0, 100), default=2.0, metavar="N", help=words)
    parser.add_argument("--query", default="", metavar="TEXT", help="what the viewer asks for (default: nothing)")
    streamed = "previous text as streams have it: a line a second"
    parser.add_argument("--as-streamed", action="store_true", help=streamed)
    visible = "frames for their last S seconds only (default: all)"
    parser.add_argument("--visible-seconds", type=integer(0), default=0, metavar="S", help=visible)
    args = parser.parse_args()
    step = TrainingWindows(args.window, args.stride, args.words_per_second, args.query, args.as_streamed, args.visible_seconds)
    run(args, step, has_seeks=True)
