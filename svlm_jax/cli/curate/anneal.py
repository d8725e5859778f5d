"""Clips of live commentary alone, for the last part of training: 16 to 64 s, 2 words a second, no gap above 3 s.

    svlm curate anneal --in edited.jsonl --out anneal.jsonl                       # judged by cues, which know no meaning
    svlm curate anneal --in edited.jsonl --out anneal.jsonl --judge-url http://HOST:8000/v1 --judge-model NAME
    svlm curate anneal ... --judge-url ... --dry-run --price-in 0.15 --price-out 0.60    # what that will cost

A clip begins and ends with a sentence, and no two share a second. It is kept where more than 80 % of its words are live
commentary: what happens on the field now, not background, statistics or history. Of the paper's clips 28 % were. A model's
answers are kept in G.cache: none is paid for twice, whatever ends a run. anneal.changes.jsonl lists the clips that are left out
and why; anneal.jsonl and anneal_seeks.jsonl are what `svlm train` reads.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from svlm_jax.cli.curate.chat_flags import chat_client, chat_flags, cost_flags, print_estimate
from svlm_jax.cli.curate.step_flags import cache_folder, open_input, read_shard, run, step_flags
from svlm_jax.cli.flags import Parser, integer, number
from svlm_jax.curate.annealing.anneal import BOUNDS, PAPER_YIELD, AnnealingClips, Bounds
from svlm_jax.curate.annealing.live_share import KINDS, LiveShareJudge, RuleJudge
from svlm_jax.curate.annealing.llm_live_share import FIELDS, LlmJudge
from svlm_jax.curate.patterns import Patterns
from svlm_jax.curate.transcript import parse
from svlm_jax.errors import InputError
from svlm_jax.files import parse_json
from svlm_jax.remote.prompt import Prompt
from svlm_jax.remote.workers import map_in_order

FLAG = "--judge"
MAX_SECONDS = 3600  # of a clip


def main() -> None:
    parser = Parser(description=__doc__)
    step_flags(parser, waits=True)
    _clip_flags(parser)
    group = parser.add_argument_group("judge")
    rules = "who judges without a model: cues in the words (the default where no --judge-url is given)"
    group.add_argument("--judge", choices=["rules"], help=rules)
    cues = "other cues for the rules: live = ['...'] and background = ['...']"
    group.add_argument("--cues", type=Path, metavar="F.toml", help=cues)
    chat_flags(parser, FLAG, "{sentences}, and {title} where it wants it")
    cost_flags(parser)
    args = parser.parse_args()
    bounds = Bounds(args.min_seconds, args.max_seconds, args.gap, args.words_per_second)
    if bounds.shortest > bounds.longest:
        expected = f"at most {bounds.longest}, --max-seconds"
        raise InputError("--min-seconds", bounds.shortest, expected, "16 and 64 are the paper's")
    judge = _make_judge(args)
    is_model = isinstance(judge, LlmJudge)
    map_clips = partial(map_in_order, concurrency=args.concurrency) if is_model else map
    step = AnnealingClips(judge, bounds, args.min_share, args.query, map_clips)
    if args.dry_run:
        if not isinstance(judge, LlmJudge):
            raise InputError("--dry-run", "without --judge-url", "a model that costs something", "rules cost nothing")
        _print_cost(args, step, judge)
        return
    lines = open_input(args)
    if not is_model:
        print("judged by cues, which know no meaning; --judge-url asks a language model", file=sys.stderr)
    done = run(args, step, lines, has_seeks=True, waits=is_model)
    _print_yield((done.report or {}).get("counts", {}))


def _clip_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("clips")
    for flag, value, which in (("min", BOUNDS.shortest, "shortest"), ("max", BOUNDS.longest, "longest")):
        kind, text = integer(1, MAX_SECONDS), f"of the {which} clip (default: %(default)s)"
        group.add_argument(f"--{flag}-seconds", type=kind, default=value, metavar="S", help=text)
    gap = "longest gap between two words of a clip (default: %(default)g)"
    group.add_argument("--gap", type=number(0, MAX_SECONDS), default=BOUNDS.gap, metavar="S", help=gap)
    words = "words that a clip must have for each of its seconds (default: %(default)g)"
    group.add_argument("--words-per-second", type=number(0, 100), default=BOUNDS.words_per_second, metavar="N", help=words)
    share = "of live commentary, above which a clip is kept (default: %(default)g)"
    group.add_argument("--min-share", type=number(0, 1), default=0.8, metavar="X", help=share)
    group.add_argument("--query", default="", metavar="TEXT", help="what the viewer asks for (default: nothing)")


def _make_judge(args: argparse.Namespace) -> LiveShareJudge:
    """The judge of the flags; nothing is asked yet.

    Raises:
        InputError: flags that do not go together, a file that cannot be used, or those of `chat_client`.
    """
    client = chat_client(args, FLAG, cache_folder(args))
    if client is None:
        if args.prompt_file:
            raise InputError("--prompt-file", "without --judge-url", "a model that reads it", "leave it out")
        return RuleJudge(Patterns.read(args.cues, "--cues", KINDS) if args.cues else None)
    for flag, value in (("--judge", args.judge), ("--cues", args.cues)):
        if value:
            raise InputError(flag, "together with --judge-url", "rules or a model", "leave one of them out")
    prompt = Prompt.read(args.prompt_file, FIELDS) if args.prompt_file else None
    return LlmJudge(client, prompt, args.concurrency)


def _print_cost(args: argparse.Namespace, step: AnnealingClips, judge: LlmJudge) -> None:
    """Of this shard, without a request; nothing is written."""
    lines, videos = open_input(args), 0

    def questions() -> Iterator[tuple[str, Sequence[str]]]:
        nonlocal videos
        for line in lines.of_shard(read_shard(args.shard)):
            videos += 1
            yield from step.questions(parse(parse_json(lines.read(line), line.name, "a video with its words"), line.name))

    estimate = judge.estimate(questions())
    print_estimate(args, estimate, f"{videos} videos", "of English")


def _print_yield(counts: Mapping[str, float]) -> None:
    """Beside the paper's."""
    if clips := counts.get("clips"):
        num_kept = counts.get("clips kept", 0)
        print(f"  {num_kept:g} of {clips:g} clips are kept, {num_kept / clips:.0%} (the paper: {PAPER_YIELD:.0%})")
    if unknown := counts.get("clips without an answer"):
        print(f"  {unknown:g} clips are left out without an answer of the judge that can be used")
