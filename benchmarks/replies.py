"""How much of annotated windows a model says as it should, given all that comes before each token (teacher forcing).

What a stage of training has learned, without the chances of a stream, in which one mistake leads to the next.

A reply is right when all of its tokens are the likeliest ones. Scores ("2-1") are looked for in the replies and, apart, in the
text before the window, where no picture helps.
"""

import argparse
import json
import re
import sys
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.report import record
from svlm_jax.cli.progress import Progress

SCORE = re.compile(r"\d+-\d+")
COLUMNS = ("replies", "with words", "silent", "answers", "scores in replies", "scores in text before")


def bench(args: argparse.Namespace) -> None:
    from flax import nnx

    from svlm_jax.cli.train import read
    from svlm_jax.data.dataset import load_examples
    from svlm_jax.data.pipeline import BadSampleCounter, pad_batch
    from svlm_jax.pretrained import from_pretrained

    data = read(args.config).data
    size = replace(data.buckets[-1], labels=data.buckets[-1].tokens)
    data = replace(data, root=args.root, learn_previous=size.tokens, buckets=(size,))
    rows = []
    for name in args.model:
        vlm = from_pretrained(name)
        windows = load_examples(args.windows, data, vlm.processor)
        numbers = np.random.default_rng(0).permutation(len(windows))[: args.limit]
        counts = {column: [0, 0] for column in COLUMNS}
        bad, progress = (
            BadSampleCounter(data.max_bad_fraction, lambda line: print(line, file=sys.stderr, flush=True)),
            Progress(name, "windows"),
        )
        guess = nnx.jit(lambda model, inputs: model(inputs).argmax(-1))
        for done, number in enumerate(numbers, 1):
            example = windows[int(number)]
            bad.add([example])
            if example.sample is None:
                continue
            made = pad_batch([example], size, vlm.model.config)
            guessed = np.asarray(guess(vlm.model, made.inputs))[0]
            for column, right in said(example.labels, guessed, vlm.tokenizer):
                counts[column][0] += right
                counts[column][1] += 1
            progress(done, len(numbers))
        row: dict[str, Any] = {"model": name, "windows": len(numbers) - bad.num_bad, "bad": bad.num_bad}
        rows.append(row | {column: f"{right} of {count}" for column, (right, count) in counts.items()})
        print(json.dumps(rows[-1]), flush=True)
    what = (
        f"Replies of {', '.join(args.windows)} said as they should be, given what comes before each token ({args.config}): all "
        "of their tokens likeliest; scores (their digits) in replies, and in the text before the window."
    )
    record(args.name, what, rows, args.out)


def said(labels: np.ndarray, guessed: np.ndarray, tokenizer: Any) -> list[tuple[str, bool]]:
    """(column, whether it was right) of all that is judged in a window.

    Args:
        labels [n], guessed [T >= n]: ids; `guessed` of the next token, `labels` of the token itself (negative: not judged).
    """
    right = np.append(False, guessed[: len(labels) - 1] == labels[1:])
    judged, found = np.flatnonzero(labels >= 0), []
    for run in np.split(judged, np.flatnonzero(np.diff(judged) > 1) + 1) if len(judged) else []:
        pieces = [tokenizer.decode([one]) for one in labels[run]]
        text, ends = "".join(pieces), np.cumsum([len(piece) for piece in pieces])
        reply = text.endswith("<|im_end|>")
        for match in SCORE.finditer(text):
            first, last = np.searchsorted(ends, [match.start(), match.end() - 1], side="right")
            found.append(("scores in replies" if reply else "scores in text before", bool(right[run[first : last + 1]].all())))
        if reply:
            words = text.removesuffix("<|im_end|>").strip()
            kinds = ["replies", "with words" if words.strip(" .") else "silent", *["answers"] * ("\n" in words)]
            found += [(kind, bool(right[run].all())) for kind in kinds]
    return found


def flags(made: argparse.ArgumentParser) -> None:
    made.add_argument("windows", nargs="+", help="JSONL of svlm windows")
    made.add_argument("--root", default="", help="of the videos")
    made.add_argument("--config", default="touchline_stage5", help="how windows become samples (default touchline_stage5)")
    made.add_argument("--model", nargs="+", default=["touchline"], help="one or more; default: the shipped model")
    made.add_argument("--limit", type=int, default=100, help="windows, drawn without order (default 100)")
    made.add_argument("--name", default="replies", help="of the entry in docs/benchmarks (default replies)")
    made.set_defaults(run=bench)
