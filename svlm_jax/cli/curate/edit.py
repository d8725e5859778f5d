"""Keep, correct or delete each sentence of commentaries: by a language model behind a server, or by rules.

    svlm curate edit --in clean.jsonl --out edited.jsonl                          # by rules: names of the title, adverts
    svlm curate edit --in clean.jsonl --out edited.jsonl --glossary names.json    # and these names
    svlm curate edit --in clean.jsonl --out edited.jsonl --editor-url http://HOST:8000/v1 --editor-model NAME
    svlm curate edit ... --editor-url ... --dry-run --price-in 0.15 --price-out 0.60    # what that will cost

A model is asked for 120 seconds of sentences at a time. Its answers are kept in G.cache: none is paid for twice, whatever ends
a run. A sentence on which it gives no decision that can be used is kept and flagged; a video for which the server does not
answer waits for the same command again. edited.changes.jsonl lists each correction and deletion. Transcripts that were edited
before pass as they are.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import get_args

from svlm_jax.cli.curate.chat_flags import cost_flags, print_estimate
from svlm_jax.cli.curate.editor_flags import editor_flags, make_editor
from svlm_jax.cli.curate.step_flags import cache_folder, open_input, read_shard, run, step_flags
from svlm_jax.cli.flags import Parser, integer
from svlm_jax.curate.editing.edit import NAME, NOT_READY, PAPER_SHARES, Context, EditStep, Times, ask, shares
from svlm_jax.curate.editing.llm_editor import LlmEditor
from svlm_jax.curate.running.run import Run
from svlm_jax.curate.sentences import SEGMENT, Sentence
from svlm_jax.curate.transcript import parse
from svlm_jax.errors import InputError
from svlm_jax.files import parse_json
from svlm_jax.remote.workers import map_in_order


def main() -> None:
    parser = Parser(description=__doc__)
    step_flags(parser, waits=True)
    segment = "seconds whose sentences are edited at a time (default: %(default)s)"
    parser.add_argument("--segment", type=integer(10, 3600), default=SEGMENT, metavar="SECONDS", help=segment)
    times = "of corrected sentences: words share their time evenly, as in the paper, or those that did not change keep theirs"
    parser.add_argument("--edited-times", choices=get_args(Times), default="even", help=f"{times} (default: %(default)s)")
    editor_flags(parser)
    cost_flags(parser)
    args = parser.parse_args()
    editor = make_editor(args, cache_folder(args))
    if isinstance(editor, LlmEditor):
        with closing(editor.client):
            _edit_by_model(args, editor)
        return
    if args.dry_run:
        raise InputError("--dry-run", "without --editor-url", "a model that costs something", "rules cost nothing")
    lines = open_input(args)
    print("edited by rules, which know names and adverts alone; --editor-url asks a language model", file=sys.stderr)
    _print_shares(run(args, EditStep(editor, args.segment, args.edited_times), lines))


def _edit_by_model(args: argparse.Namespace, editor: LlmEditor) -> None:
    if args.dry_run:
        _print_estimate(args, editor)
        return
    map_segments = partial(map_in_order, concurrency=args.concurrency)
    step = EditStep(editor, args.segment, args.edited_times, map_segments)
    _print_shares(run(args, step, waits=True))


def _print_estimate(args: argparse.Namespace, editor: LlmEditor) -> None:
    """Of this shard, without a request; nothing is written."""
    lines = open_input(args)
    videos = edited = not_ready = 0

    def questions() -> Iterator[tuple[Context, tuple[Sentence, ...]]]:
        nonlocal videos, edited, not_ready
        for line in lines.of_shard(read_shard(args.shard)):
            transcript = parse(parse_json(lines.read(line), line.name, "a video with its words"), line.name)
            videos += 1
            if NAME in transcript.steps:
                edited += 1
                continue
            try:
                yield from ((context, segment.sentences) for context, segment in ask(transcript, args.segment))
            except InputError:
                not_ready += 1

    estimate = editor.estimate(questions())
    before = f" ({edited} of them edited before)" if edited else ""
    before += f" ({not_ready} of them {NOT_READY}: svlm curate clean first)" if not_ready else ""
    print_estimate(args, estimate, f"{videos} videos{before}", "of English at the paper's share of corrections")


def _print_shares(done: Run) -> None:
    """Beside those of the paper, which does not say of what they are."""
    counts: Mapping[str, float] = (done.report or {}).get("counts", {})
    if before := counts.get("videos edited before"):
        print(f"{before:g} videos were edited before, and passed as they are")
    for unit in ("sentences", "words", "segments"):
        if by_state := shares(counts, unit):
            print(f"  {unit:<9}  " + ", ".join(f"{share:.1%} {state}" for state, share in by_state.items()))
    print("  the paper  " + ", ".join(f"{share:.1%} {state}" for state, share in PAPER_SHARES.items()))
    if flagged := counts.get("sentences flagged"):
        print(f'{flagged:g} sentences are kept without a decision: the rules "flag: ..." among the changes say why')
