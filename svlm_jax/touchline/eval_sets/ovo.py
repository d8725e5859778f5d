"""Held-out games as OVO-Bench: all twelve tasks, in the published schema of ovo_bench_new.json.

Owns which question stands for which task. Does not write. Units: seconds; a question at `realtime` is about what came before.
"""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

from svlm_jax.touchline.eval_sets.choices import each
from svlm_jax.touchline.eval_sets.games import Game
from svlm_jax.touchline.match import Kind, second_of

# Task -> kind of question (`choices.KINDS`), for the tasks whose answers are options.
CHOICES = {
    "EPM": "at",  # what happened at a second
    "ASI": "after",  # what came after something
    "HLD": "never",  # a question about what did not happen
    "OCR": "score",  # nothing is written in the game: the score is remembered, not read
    "ACR": "now",
    "ATR": "colour",
    "STU": "side",
    "FPD": "next",
    "OJR": "ball",
}
PER_GAME = 2  # questions of each of these tasks
MAX_COUNT = 10  # of goals, as in the published data
COUNTED = 6  # questions of one item about goals, some more or fewer
STEPS = {  # before a match
    Kind.OPENING: "the cup is shown",
    Kind.HOME: "the shirt of the home team is shown",
    Kind.AWAY: "the shirt of the away team is shown",
    Kind.KICK_OFF: "the ball is kicked off at the centre",
}
CLUE_TESTS = (-20, -10, -3, 2, 6, 12)  # seconds around the one that shows the answer


def items(games: Sequence[Game]) -> list[dict[str, Any]]:
    """Entries of ovo_bench_new.json."""
    numbers = count()
    entries = [*_choices(games), *(entry for game in games for entry in (*_goals(game), *_steps(game), *_clues(game)))]
    return [{"id": next(numbers), **entry} for entry in entries]


def _choices(games: Sequence[Game]) -> Iterator[dict[str, Any]]:
    for task, kind in CHOICES.items():
        for game, _, choice in each(games, {kind: PER_GAME}):
            yield {
                "task": task,
                "video": game.video,
                "realtime": choice.second,
                "question": choice.text,
                "answer": choice.options[choice.answer],
                "options": list(choice.options),
                "gt": choice.answer,
            }


def _goals(game: Game) -> Iterator[dict[str, Any]]:
    """REC: how many goals there were so far, a few seconds after some of them."""
    seconds = [second for second, _ in game.when(Kind.GOAL) if second + 3 <= game.seconds][:MAX_COUNT]
    tests = [{"realtime": second + 3, "count": number} for number, second in enumerate(seconds, 1)]
    if tests:
        yield {
            "task": "REC",
            "video": game.video,
            "activity": "a team scores a goal",
            "start_times": seconds,
            "end_times": [min(second + 4, game.seconds) for second in seconds],
            "test_info": [{"realtime": seconds[0] - 2, "count": 0}, *tests[:: max(1, len(tests) // COUNTED)]],
        }


def _steps(game: Game) -> Iterator[dict[str, Any]]:
    """SSR: which step before a match is being carried out."""
    spans = []
    for kind in STEPS:
        second = next(second for second, _ in game.when(kind))
        following = game.event_after(second)
        spans.append((second, game.seconds if following is None else second_of(following.time)))
    tests = [
        {"realtime": start + 1, "step": step, "type": int(index == other)}
        for other, step in enumerate(STEPS.values())
        for index, (start, _) in enumerate(spans)
    ]
    yield {
        "task": "SSR",
        "video": game.video,
        "tutorial": "BeginAMatch",
        "all_steps": list(STEPS.values()),
        "start_time": [start for start, _ in spans],
        "end_time": [end for _, end in spans],
        "test_info": tests,
    }


def _clues(game: Game) -> Iterator[dict[str, Any]]:
    """CRR: who scores first in a match; whether that can be told yet."""
    first = next(((second, event) for second, event in game.when(Kind.GOAL)), None)
    if first is None:
        return
    second, event = first
    ask = max(second + CLUE_TESTS[0], 2)
    times = [second + offset for offset in CLUE_TESTS if ask <= second + offset <= game.seconds]
    yield {
        "task": "CRR",
        "video": game.video,
        "question": "Which team scores the first goal?",
        "answer": f"{event.team} did.",
        "ask_time": ask,
        "clue_time": second + 1,
        "test_info": [{"realtime": time, "type": int(time > second)} for time in times],
    }
