"""Replay a recording of the original code through the streaming engine and compare; exit code 0 only if all is equal.

svlm replay TRACE.json --model DIR [--processor DIR]      # a recorded stream, or a recorded training sample
svlm replay TRACE.json --model DIR --record NEW.json      # record this code on the same stream

Prints one JSON line. A recording is NAME.json with NAME.npz beside it.
"""

import json
import sys
from pathlib import Path

from svlm_jax.cli.flags import Parser, number
from svlm_jax.cli.model_flags import load, model_flags, set_compile_cache
from svlm_jax.cli.progress import compiling
from svlm_jax.errors import InputError

UNEQUAL = 1  # exit code


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("recording", type=Path, help="NAME.json")
    model_flags(parser, dtype=False)
    parser.add_argument(
        "--tolerance",
        type=number(0),
        default=2e-3,
        help="largest difference of a logit (default 2e-3; a tenth at the median)",
    )
    parser.add_argument("--record", type=Path, metavar="NEW.json", help="write a new recording instead")
    args = parser.parse_args()

    from svlm_jax.files import read_json
    from svlm_jax.pretrained import local_directory
    from svlm_jax.replay import sample as sample
    from svlm_jax.replay import stream

    if "annotation" in read_json(args.recording, "a recording"):
        if args.record is not None:
            raise InputError("--record", "a training sample", "a recorded stream", "leave the flag out")
        if (args.attention, args.weights) != ("auto", "full"):
            raise InputError("--attention, --weights", "a training sample", "a recorded stream", "leave the flags out")
        model = local_directory(args.model)
        set_compile_cache(args)
        with compiling():
            result = sample.replay(args.recording, model, args.processor or model)
    else:
        recorded = stream.read(args.recording)
        if args.record is not None and (
            args.record.suffix != ".json" or args.record.exists() or not args.record.parent.is_dir()
        ):
            raise InputError("--record", args.record, "a new NAME.json in a folder that exists", "choose another name")
        vlm = load(args, dtype="float32")
        if args.record is not None:
            stream.record(recorded, args.record, vlm.model, vlm.tokenizer, vlm.processor.video_config, Path(args.model).name)
            print(json.dumps({"recorded": str(args.record), "rounds": len(recorded.rounds)}))
            return
        with compiling():
            result = stream.replay(recorded, vlm.model, vlm.tokenizer, vlm.processor.video_config, args.tolerance)
    print(json.dumps(result))
    if not result["ok"]:
        sys.exit(UNEQUAL)
