"""Held-out games as LiveSports-3K-QA: questions with four options about a part of a video.

Owns which part a question is about. Does not write. Units: seconds of the video.
"""

from collections.abc import Sequence
from typing import Any

from svlm_jax.touchline.eval_sets.choices import each, lettered
from svlm_jax.touchline.eval_sets.games import Game

# Kind of question (`choices.KINDS`) -> its published family.
FAMILIES = {"ball": "who", "first": "who", "playing": "who", "now": "what", "cup": "what", "score": "what", "when": "when"}
OCR = ("cup", "score")  # kinds that a broadcast would answer in writing
PER_GAME = 2  # questions of each kind
CLIP = 30  # seconds that are shown before a question that they answer
WHOLE_GAME_KINDS = ("first", "playing", "cup", "score", "when")  # kinds that only the whole game so far answers


def questions(games: Sequence[Game]) -> list[dict[str, Any]]:
    """Entries of LiveSports-3K-QA.json."""
    entries = []
    for game, kind, choice in each(games, dict.fromkeys(FAMILIES, PER_GAME)):
        entries.append(
            {
                "video_id": game.video_id,
                "question_id": len(entries),
                "q_type": FAMILIES[kind],
                "OCR": int(kind in OCR),
                "question": choice.text,
                "options": lettered(choice.options),
                "answer": choice.letter,
                "video": game.video,
                "video_start": 0.0 if kind in WHOLE_GAME_KINDS else float(max(choice.second - CLIP, 0)),
                "video_end": float(choice.second),
            }
        )
    return entries
