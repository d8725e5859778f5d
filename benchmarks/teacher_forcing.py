"""How many replies of annotated windows a model predicts from the true tokens before them (teacher forcing).

It measures what a stage of training has learned. A stream measures more than that: there one mistake leads to the next.

A reply is correct if each of its tokens is the likeliest one. Scores ("2-1") are counted in the replies and, separately, in the
text before the window, for which there are no frames.
"""

import argparse
import json
import re
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.report import record
from svlm_jax.cli.flags import integer
from svlm_jax.cli.model_flags import DEFAULT_MODEL
from svlm_jax.cli.progress import Progress

SCORE = re.compile(r"\d+-\d+")
COLUMNS = ("replies", "with words", "silent", "answers", "scores in replies", "scores in text before")
END_OF_TURN = "<|im_end|>"


def bench(args: argparse.Namespace) -> None:
    from svlm_jax.cli.train import read

    data = read(args.config).data
    bucket = replace(data.buckets[-1], labels=data.buckets[-1].tokens)
    data = replace(data, root=args.root, learn_previous=bucket.tokens, buckets=(bucket,))
    rows = []
    for name in args.model:
        rows.append(evaluate(name, args.windows, data, args.limit))
        print(json.dumps(rows[-1]), flush=True)
    description = (
        f"Replies of {', '.join(args.windows)} that are predicted from the true tokens before them ({args.config}): each token "
        "the likeliest one; scores (their digits) in replies, and in the text before the window."
    )
    record(args.name, description, rows, args.out)


def evaluate(name: str, windows: list[str], data: Any, limit: int) -> dict[str, Any]:
    """One row: correct predictions of a model on at most `limit` random windows."""
    from flax import nnx

    from svlm_jax.data.dataset import load_examples
    from svlm_jax.data.pipeline import BadSampleCounter, pad_batch
    from svlm_jax.pretrained import from_pretrained

    vlm = from_pretrained(name)
    examples = load_examples(windows, data, vlm.processor)
    chosen = np.random.default_rng(0).permutation(len(examples))[:limit]
    correct_counts, counts = Counter[str](), Counter[str]()
    bad_samples = BadSampleCounter(data.max_bad_fraction, lambda line: print(line, file=sys.stderr, flush=True))
    predict, progress = nnx.jit(lambda model, inputs: model(inputs).argmax(-1)), Progress(name, "windows")
    for done, index in enumerate(chosen, 1):
        example = examples[int(index)]
        bad_samples.add([example])
        if example.sample is None:
            continue
        batch = pad_batch([example], data.buckets[0], vlm.model.config)
        predicted = np.asarray(predict(vlm.model, batch.inputs))[0]
        for column, is_correct in judged_parts(example.labels, predicted, vlm.tokenizer):
            correct_counts[column] += is_correct
            counts[column] += 1
        progress(done, len(chosen))
    row: dict[str, Any] = {"model": name, "windows": len(chosen) - bad_samples.num_bad, "bad": bad_samples.num_bad}
    return row | {column: f"{correct_counts[column]} of {counts[column]}" for column in COLUMNS}


def judged_parts(labels: np.ndarray, predicted: np.ndarray, tokenizer: Any) -> list[tuple[str, bool]]:
    """(column, whether it is correct) of every reply, answer and score of a window.

    Args:
        labels [n]: ids; negative: without loss.
        predicted [T >= n]: id of the next token.
    """
    is_correct = np.append(False, predicted[: len(labels) - 1] == labels[1:])
    learned, parts = np.flatnonzero(labels >= 0), []
    for run in np.split(learned, np.flatnonzero(np.diff(learned) > 1) + 1) if len(learned) else []:
        # Token by token, so that characters map back to tokens.
        token_texts = [tokenizer.decode([token]) for token in labels[run]]
        text, ends = "".join(token_texts), np.cumsum([len(token_text) for token_text in token_texts])
        is_reply = text.endswith(END_OF_TURN)  # otherwise the previous text
        for match in SCORE.finditer(text):
            first, last = np.searchsorted(ends, [match.start(), match.end() - 1], side="right")
            column = "scores in replies" if is_reply else "scores in text before"
            parts.append((column, bool(is_correct[run[first : last + 1]].all())))
        if is_reply:
            words = text.removesuffix(END_OF_TURN).strip()
            columns = ["replies", "with words" if words.strip(" .") else "silent", *["answers"] * ("\n" in words)]
            parts += [(column, bool(is_correct[run].all())) for column in columns]
    return parts


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("windows", nargs="+", help="JSONL files of svlm windows")
    parser.add_argument("--root", default="", help="folder of the videos")
    config_help = "training config that makes samples of windows (default touchline_stage5)"
    parser.add_argument("--config", default="touchline_stage5", help=config_help)
    parser.add_argument("--model", nargs="+", default=[DEFAULT_MODEL], help="one or more (default: the shipped model)")
    parser.add_argument("--limit", type=integer(1), default=100, help="random windows (default 100)")
    parser.add_argument("--name", default="teacher_forcing", help="of the entry in docs/benchmarks (default teacher_forcing)")
