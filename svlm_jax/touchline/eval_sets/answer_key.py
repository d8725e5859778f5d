"""The right answers to the questions of a set, as files that the scorers of the benchmarks read: with them a score is 100 %.

Owns what is right for each kind of question, taken from the written files alone, as a scorer has it. Does not write.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from svlm_jax.eval import livesports_qa, ovo, proactive, streamingbench
from svlm_jax.json_lines import BadLines
from svlm_jax.touchline.eval_sets.commentaries import utterances
from svlm_jax.touchline.eval_sets.games import Game

Records = Iterable[dict[str, Any]]


def to_livesports_qa(path: Path) -> Records:
    return ({"key": each.key, "response": each.answer} for each in livesports_qa.read_questions(path, BadLines()))


def to_ovo(path: Path) -> Records:
    return ({"key": each.key, "response": _reply(each)} for each in ovo.questions_of(ovo.read_items(path, BadLines())))


def _reply(question: ovo.Question) -> str:
    if isinstance(question.ground_truth, bool):
        return "Yes" if question.ground_truth else "No"
    return str(question.ground_truth)


def to_streamingbench(path: Path) -> Records:
    """To questions with options, real or sequential."""
    questions = streamingbench.read_questions(path, BadLines()).questions
    return ({"key": each.key, "response": each.answer} for each in questions)


def to_proactive(path: Path, games: Sequence[Game], polled: bool) -> Records:
    """The correct answers. polled: a yes at the expected moment, and the words; else the true commentary
    from the request on."""
    by_video: Mapping[str, Game] = {game.video: game for game in games}
    _, questions = proactive.read_questions(path, BadLines())
    for each in questions:
        request_time, due = int(each.request_time), int(each.due)
        if polled:
            times = range(request_time + 1, due + 1)
            polls: list[dict[str, Any]] = [{"time": float(time), "reply": "Yes" if time == due else "No"} for time in times]
            polls[-1]["answer"] = each.output
            yield {"key": each.key, "polls": polls}
        else:
            end = due + int(proactive.PATIENCE)
            replies = utterances(by_video[each.video].replies, request_time, end)
            yield {"key": each.key, "utterances": [list(reply) for reply in replies]}
