"""When the shipped model speaks: talk and events against the threshold of silence, and alerts against the truth.

Streams of all thresholds, and those in alert mode, watch held-out games in one batch. Units: seconds of the video.
"""

import argparse
import json
from dataclasses import replace
from functools import reduce
from itertools import islice
from operator import add
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.report import record
from svlm_jax.cli.flags import integer
from svlm_jax.cli.progress import Progress
from svlm_jax.decode.detokenize import split_reply
from svlm_jax.errors import InputError
from svlm_jax.stream.alerts import AlertRule
from svlm_jax.stream.events import Alert, Caption
from svlm_jax.touchline.commentary import QUESTIONS
from svlm_jax.touchline.film import HELD_OUT, Film, play
from svlm_jax.touchline.judge import TOLERANCE, Tally, judge
from svlm_jax.touchline.match import World

THRESHOLDS = (0.0, 0.0001, 0.001, 0.01, 0.5, 0.99, 0.999, 0.9999, 1.0)
CONFIRM = (1, 2)  # chunks, of a stream in alert mode each
OWN = "the model's own"


class Watched(NamedTuple):
    """What the streams of one game gave. words: by stream, then second. alerts: by stream, in order."""

    world: World
    seconds: int
    words: dict[str, dict[int, str]]
    alerts: dict[str, list[Alert]]


class Alerts(NamedTuple):
    """Changes to yes over some games. onsets: true ones; hits: those announced within TOLERANCE; announced: all
    that were; delays: of hits."""

    onsets: int
    hits: int
    announced: int
    delays: tuple[int, ...]

    @classmethod
    def total(cls, games: list["Alerts"]) -> "Alerts":
        delays = tuple(delay for game in games for delay in game.delays)
        return cls(sum(g.onsets for g in games), sum(g.hits for g in games), sum(g.announced for g in games), delays)


def bench(args: argparse.Namespace) -> None:
    _require_matplotlib()
    watcher = Watcher()
    games = [watcher.watch(HELD_OUT + number, args.seconds) for number in range(args.games)]
    rows = [silence_row(name, games) for name in (OWN, *map(str, THRESHOLDS))]
    alert_rows = [alert_row(confirm, games) for confirm in CONFIRM]
    for row in [*rows, *alert_rows]:
        print(json.dumps(row), flush=True)
    draw(rows, args.out / "silence.svg")
    watched = f"held-out games ({args.games}) of {args.seconds} s, watched by the shipped model (greedy)"
    description = (
        f"When a commentary speaks: {watched}, with a threshold on the probability of silence (--silence). Talk: share of "
        f"seconds with words. Recall, precision: of events, by kind and team, within {TOLERANCE} s."
    )
    record("silence", description, rows, args.out, plot="silence.svg")
    description = (
        f'Alert mode: {watched}. With every chunk it is asked "{QUESTIONS["ball"][0]}"; yes is one of the two teams, no is the '
        f"other one, or nobody. Hits: changes to yes that are told within {TOLERANCE} s; false alarms: those told without one."
    )
    record("alerts", description, alert_rows, args.out)


class Watcher:
    """The model with a place for each threshold, for its own choice, and for each alert."""

    def __init__(self) -> None:
        from svlm_jax.pretrained import from_pretrained

        self.vlm = from_pretrained("touchline")
        self.runner: Any = None

    def watch(self, seed: int, seconds: int) -> Watched:
        from svlm_jax.stream.sequence import Chunk

        world, progress = play(seed, seconds), Progress(f"game {seed}", "seconds")
        frames = Film(seed).frames(2)
        words: dict[str, dict[int, str]] = {}
        alerts: dict[str, list[Alert]] = {}
        for second in range(seconds):
            clip = self.vlm.processor.video(np.stack(list(islice(frames, 2))), fps=2, raw=True)
            if second == 0:
                self._start_streams(clip.grid, yes_team(world))
            chunks = {name: Chunk(float(second), second + 1.0, clip) for name in self.runner.batch_index}
            for event in self.runner.tick(chunks):
                if isinstance(event, Caption):
                    words.setdefault(event.stream, {})[second] = split_reply(event.raw)[1]
                elif isinstance(event, Alert):
                    alerts.setdefault(event.stream, []).append(event)
            progress(second + 1, seconds)
        return Watched(world, seconds, words, alerts)

    def _start_streams(self, grid: tuple[int, int, int], team: str) -> None:
        """Let all streams begin."""
        from svlm_jax.stream.runner import Runner
        from svlm_jax.stream.session import Session
        from svlm_jax.stream.stream_settings import StreamSettings

        vlm, teams = self.vlm, answers(team)
        if self.runner is None:
            options = {"num_streams": 1 + len(THRESHOLDS) + len(CONFIRM), "silence_rule": True, "choices": True}
            self.runner = Runner(Session(vlm.model, vlm.tokenizer, vlm.stream, grid, sampling=vlm.sampling, **options))
        for name in [*self.runner.batch_index]:
            self.runner.leave(name)
        self.runner.join(OWN)
        for threshold in THRESHOLDS:
            self.runner.join(str(threshold), StreamSettings(sampling=replace(vlm.sampling, silence=threshold)))
        for confirm in CONFIRM:
            rule = AlertRule(QUESTIONS["ball"][0], yes=teams[:1], no=teams[1:], confirm=confirm)
            self.runner.join(_alert_stream(confirm), StreamSettings(alert=rule))


def _alert_stream(confirm: int) -> str:
    return f"alert, confirmed by {confirm}"


def yes_team(world: World) -> str:
    """The team that has the ball first."""
    return next(holder for holder in world.holders if holder)


def answers(team: str) -> tuple[str, ...]:
    """That a team has the ball, that another one has it, that nobody has."""
    from svlm_jax.touchline.match import TEAMS

    return (f"{team}.", *(f"{other}." for other in TEAMS if other != team), "Nobody.")


def silence_row(name: str, games: list[Watched]) -> dict[str, Any]:
    tally = reduce(add, (judge(game.words[name], game.world.events, 0, game.seconds) for game in games), Tally())
    seconds = sum(game.seconds for game in games)
    words = sum(len(text.split()) for game in games for text in game.words[name].values())
    row = {"silence": name, "talk": tally.spoken / seconds, "words/s": words / seconds}
    row |= {"recall": tally.recall, "precision": tally.precision}
    rounded = {column: value if isinstance(value, str) else round(value, 3) for column, value in row.items()}
    return {column: "-" if value != value else value for column, value in rounded.items()}  # without claims: no precision


def alert_row(confirm: int, games: list[Watched]) -> dict[str, Any]:
    total = Alerts.total([judge_alerts(game, game.alerts.get(_alert_stream(confirm), [])) for game in games])
    hours = sum(game.seconds for game in games) / 3600
    return {
        "confirm (chunks)": confirm,
        "changes to yes": total.onsets,
        "hits": f"{total.hits} ({100 * total.hits / max(total.onsets, 1):.0f} %)",
        "false alarms": total.announced - total.hits,
        "false alarms/h": round((total.announced - total.hits) / hours, 1),
        "mean delay (s)": round(float(np.mean(total.delays)), 2) if total.delays else "-",
    }


def judge_alerts(game: Watched, alerts: list[Alert]) -> Alerts:
    """Each true change to yes takes the nearest that was told within TOLERANCE after it, or a second before, and is free."""
    team = yes_team(game.world)
    holds = [False, *(holder == team for holder in game.world.holders[: game.seconds])]
    onsets = [second for second in range(game.seconds) if holds[second + 1] and not holds[second]]
    free, delays = [int(alert.start) for alert in alerts if alert.state], []
    total = len(free)
    for onset in onsets:
        near = [second for second in free if -1 <= second - onset <= TOLERANCE]
        if near:
            nearest = min(near, key=lambda second: abs(second - onset))
            free.remove(nearest)
            delays.append(nearest - onset)
    return Alerts(len(onsets), len(delays), total, tuple(delays))


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("silence", "no matplotlib", "the bench extra", "pip install 'svlm-jax[bench]'") from None


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Talk, recall and precision against the threshold; dotted: the model's own choice."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "silence"  # the same file for the same numbers
    from matplotlib import pyplot

    own, ruled = rows[0], rows[1:]
    figure, axes = pyplot.subplots(figsize=(7.2, 3.6), layout="constrained")
    labels = {"talk": "talk (share of seconds)", "recall": "event recall", "precision": "event precision"}
    for (column, label), color in zip(labels.items(), ("#c2571a", "#1f5fa8", "#4b8b3b"), strict=True):
        values = [np.nan if row[column] == "-" else row[column] for row in ruled]
        axes.plot(values, marker="o", markersize=4, color=color, label=label)
        axes.axhline(own[column], color=color, linestyle=":", linewidth=1)
    axes.set_xticks(range(len(ruled)), [f"{float(row['silence']):g}" for row in ruled])
    axes.set_xlabel("--silence: words where the probability of silence is at most this (dotted: the model's own choice)")
    axes.set_ylim(-0.03, 1.05)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--games", type=integer(1), default=2, help="held-out games (default 2)")
    parser.add_argument("--seconds", type=integer(10), default=120, help="of each (default 120)")
