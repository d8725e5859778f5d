"""Held-out games as StreamingBench: questions while a game goes on, sequences of them, and proactive output.

Owns which question stands for which published type. Does not write. Units: seconds; a question at a time stamp is about what
came before it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from svlm_jax.touchline import commentary
from svlm_jax.touchline.eval_sets.choices import APART, Choice, each, find, lettered
from svlm_jax.touchline.eval_sets.games import Game
from svlm_jax.touchline.match import Kind

# Published type of question -> kind of question (`choices.KINDS`).
TYPES = {
    "Object Recognition": "ball",
    "Action Recognition": "now",
    "Text-Rich Understanding": "cup",  # nothing is written in the game: the cup is shown in the first seconds
    "Clips Summarize": "summary",
    "Attribute Recognition": "colour",
    "Spatial Understanding": "side",
    "Counting": "score",
    "Event Understanding": "last",
    "Causal Reasoning": "why",
    "Prospective Reasoning": "next",
}
MEMORY = ("cup", "score")  # kinds that the last seconds do not answer
PER_GAME = 2  # questions of each type
SEQUENCE = ("cup", "ball", "first", "score", "ball")  # kinds of a sequence of questions, in order
PROACTIVE_PER_GAME = 3
REQUEST_LEAD = 12  # seconds between a request and its goal
CATEGORY = "touchline"


def stamp(second: int) -> str:
    """3661 -> "01:01:01"."""
    return f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"


def _entry(game: Game, start: int, end: int, question: dict[str, Any]) -> dict[str, Any]:
    def clock(second: int) -> str:
        return f"{second // 3600}:{second // 60 % 60:02}:{second % 60:02}"

    return {
        "time": f"[{clock(start)} - {clock(end)}]",
        "questions": [question],
        "video_categories": CATEGORY,
        "video_path": f"./{game.video}",
    }


def _question(choice: Choice, task_type: str, options: list[str], ability: str) -> dict[str, Any]:
    return {
        "task_type": task_type,
        "question": choice.text,
        "time_stamp": stamp(choice.second),
        "answer": choice.letter,
        "options": options,
        "required_ability": ability,
    }


def real(games: Sequence[Game]) -> list[dict[str, Any]]:
    """Entries of questions_real.json."""
    types = {kind: name for name, kind in TYPES.items()}
    entries = []
    for game, kind, choice in each(games, dict.fromkeys(types, PER_GAME)):
        ability = "episodic memory" if kind in MEMORY else "working memory"
        question = _question(choice, types[kind], lettered(choice.options), ability)
        entries.append(_entry(game, max(choice.second - APART, 0), choice.second, question))
    return entries


def sequences(games: Sequence[Game]) -> list[list[dict[str, Any]]]:
    """Lists of questions_sqa.json: one a game, each question later than the one before; options have no letters."""
    return [list(_sequence(game)) for game in games]


def _sequence(game: Game) -> Iterator[dict[str, Any]]:
    part = game.seconds / len(SEQUENCE)
    for number, kind in enumerate(SEQUENCE):
        candidates = [choice for choice in find(game, kind, game.seconds) if number <= choice.second / part < number + 1]
        if candidates:
            choice = candidates[0]
            question = _question(choice, "Sequential Question Answering", list(choice.options), "episodic memory")
            yield _entry(game, int(number * part), int((number + 1) * part), question)


def proactive(games: Sequence[Game]) -> list[dict[str, Any]]:
    """Entries of questions_proactive.json: say a score as soon as it stands. The words are those of the commentary, and nobody
    says them between the order and the goal."""
    return [entry for game in games for entry in _orders(game)]


def _orders(game: Game) -> Iterator[dict[str, Any]]:
    goals = [(second, event) for second, event in game.when(Kind.GOAL) if second > REQUEST_LEAD]
    for second, event in goals[:: max(1, len(goals) // PROACTIVE_PER_GAME)][:PROACTIVE_PER_GAME]:
        output = commentary.score(event.facts).rstrip(".")
        request_time = second - REQUEST_LEAD
        if second + REQUEST_LEAD > game.seconds or output in game.text(request_time, second):
            continue
        question = {
            "task_type": "Proactive Output",
            "question": f'When the score becomes {output}, output "{output}".',
            "time_stamp": stamp(request_time),
            "ground_truth_time_stamp": stamp(second + 1),
            "ground_truth_output": output,
            "required_ability": "working memory",
        }
        yield _entry(game, request_time, second + REQUEST_LEAD, question)
