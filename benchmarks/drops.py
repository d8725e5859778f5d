"""How dropped seconds change the commentary on the generated game, for several policies of dropping.

The shipped model watches games without the seconds that a slow device would drop. These are computed from the device's speed;
nothing is timed.
"""

import argparse
import json
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from benchmarks.report import record
from svlm_jax.cli.flags import integer
from svlm_jax.cli.progress import Progress

FIRST_SEED, SPIKE_START, SPIKE_SECONDS = 1000000, 5, 3  # held-out games; start and length of a load spike
SLOW_SPEED = 0.7  # of a device, in seconds of video a second


class Policy(NamedTuple):
    """If more than `max_delay` seconds wait, the oldest are dropped, or (newest_only) all but the newest."""

    max_delay: int
    newest_only: bool = False

    def __str__(self) -> str:
        return f"{'all but the newest' if self.newest_only else 'the oldest'} above {self.max_delay} s"


def dropped_seconds(policy: Policy, speed: float, seconds: int) -> set[int]:
    """The seconds of a game that a device of `speed` seconds of video a second drops."""
    dropped: set[int] = set()
    second, idle_from = 0, 0.0  # the next second to watch; the time from which the device is idle
    while second < seconds:
        now = max(idle_from, second + 1.0)  # a second can be watched once it is over
        complete = int(now + 1e-9)
        if complete - second > policy.max_delay:
            next_second = min(complete - (1 if policy.newest_only else policy.max_delay), seconds - 1)
            dropped |= set(range(second, next_second))
            second = max(second, next_second)
        idle_from = max(now, second + 1.0) + 1 / speed
        second += 1
    return dropped


def bench(args: argparse.Namespace) -> None:
    from svlm_jax.pretrained import from_pretrained
    from svlm_jax.touchline.film import Film, play
    from svlm_jax.touchline.judge import Tally, judge

    vlm = from_pretrained("touchline")
    cases: list[tuple[str, str, set[int]]] = [
        ("none, or a 3 s spike that is caught up", "--max-delay 5", set()),
        ("a 3 s spike, its seconds dropped", "dropped at once", set(range(SPIKE_START, SPIKE_START + SPIKE_SECONDS))),
    ]
    policies = [Policy(4), Policy(4, newest_only=True), Policy(2), Policy(2, newest_only=True)]
    cases += [
        (f"a device at {SLOW_SPEED} of real time", str(policy), dropped_seconds(policy, SLOW_SPEED, args.seconds))
        for policy in policies
    ]
    tallies, progress = [Tally() for _ in cases], Progress("drops", "streams")
    for game in range(args.games):
        seed = FIRST_SEED + game
        frames = np.stack(list(islice(Film(seed).frames(2), 2 * args.seconds)))
        events = play(seed, args.seconds).events
        for number, (_, _, dropped) in enumerate(cases):
            tallies[number] += judge(watch(vlm, frames, dropped), events, 0, args.seconds)
            progress(game * len(cases) + number + 1, args.games * len(cases))
    rows: list[dict[str, Any]] = []
    for (load, policy, dropped), tally in zip(cases, tallies, strict=True):
        row = {"load": load, "policy": policy, "seconds dropped per game": len(dropped), "F1 of events": f"{tally.f1:.2f}"}
        rows.append(row | {"scores right": f"{tally.correct_scores} of {tally.scores}"})
        print(json.dumps(rows[-1]), flush=True)
    games = f"Games {FIRST_SEED} to {FIRST_SEED + args.games - 1}, {args.seconds} s each"
    description = f"{games}, watched by the shipped model without the seconds that a slow device drops (computed, not timed)."
    record(args.name, description, rows, args.out)


def watch(vlm: Any, frames: np.ndarray, dropped: set[int]) -> dict[int, str]:
    """second -> commentary of each second that is not dropped. frames uint8 [2 S, H, W, 3]: two a second."""
    from svlm_jax.decode.detokenize import split_reply
    from svlm_jax.stream.runner import VIDEO, Runner
    from svlm_jax.stream.sequence import Chunk
    from svlm_jax.stream.session import Session

    words: dict[int, str] = {}
    runner = None
    for second in sorted(set(range(len(frames) // 2)) - dropped):
        clip = vlm.processor.video(frames[2 * second : 2 * second + 2], fps=2, raw=True)
        if runner is None:
            runner = Runner(Session(vlm.model, vlm.tokenizer, vlm.stream, clip.grid, sampling=vlm.sampling))
            runner.join(VIDEO)
        caption = runner.caption(VIDEO, Chunk(float(second), second + 1.0, clip))
        words[second] = split_reply(caption.raw)[1]
    return words


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--games", type=integer(1), default=4, help="default 4")
    parser.add_argument("--seconds", type=integer(10), default=90, help="of each (default 90)")
    parser.add_argument("--name", default="drops", help="of the entry in docs/benchmarks (default drops)")
