"""Writes the sets of some games into a folder, each in its published file name.

Owns the file names. Does not make films (`svlm evaluate game` does). Host side.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from svlm_jax import json_lines
from svlm_jax.eval.truth import write_truth
from svlm_jax.touchline.eval_sets import answer_key, commentaries, livesports_qa, ovo, streamingbench
from svlm_jax.touchline.eval_sets.commentaries import BASELINES
from svlm_jax.touchline.eval_sets.games import Game

GAMES, TRUTH = "eval_all_metadata.jsonl", "truth.jsonl"
CC, CAPTIONS = "LiveSports-3K-CC.json", "captions"
QA, OVO = "LiveSports-3K-QA.json", "ovo_bench_new.json"
REAL, SEQUENCES, PROACTIVE = (f"questions_{name}.json" for name in ("real", "sqa", "proactive"))
ANSWERS = "answers"


def write_sets(folder: Path, games: Sequence[Game]) -> dict[str, int]:
    """Write all of them; returns the entries of each file, by its path in the folder. Files that exist are replaced."""
    (folder / CAPTIONS).mkdir(exist_ok=True)
    for name in (*(f"infstreams/{name}" for name in BASELINES), "right"):
        (folder / ANSWERS / name).mkdir(parents=True, exist_ok=True)
    write_truth(folder / TRUTH, map(commentaries.truth, games))
    lists = {
        CC: [commentaries.cc_entry(event) for game in games for event in commentaries.cc_events(game)],
        QA: livesports_qa.questions(games),
        OVO: ovo.items(games),
        REAL: streamingbench.real(games),
        SEQUENCES: streamingbench.sequences(games),
        PROACTIVE: streamingbench.proactive(games),
    }
    for name, entries in lists.items():
        json_lines.write_json(folder / name, entries)
    files = {GAMES: map(commentaries.games_line, games), **_commentaries(games), **_correct_answers(folder, games)}
    counts = {name: json_lines.write(folder / name, records) for name, records in files.items()}
    return {TRUTH: len(games)} | {name: len(entries) for name, entries in lists.items()} | counts


def _commentaries(games: Sequence[Game]) -> dict[str, Iterable[dict[str, Any]]]:
    """The truth and the baselines, as answers to Inf-Streams-Eval and as captions of LiveSports events."""
    files: dict[str, Iterable[dict[str, Any]]] = {}
    for name, replies in BASELINES.items():
        game_replies = [(game, replies(game)) for game in games]
        files[f"{ANSWERS}/infstreams/{name}/result_0.jsonl"] = [commentaries.infstreams_answers(*each) for each in game_replies]
        files[f"{CAPTIONS}/{name}.jsonl"] = [line for each in game_replies for line in commentaries.cc_predictions(*each)]
    return files


def _correct_answers(folder: Path, games: Sequence[Game]) -> dict[str, Iterable[dict[str, Any]]]:
    """To all questions."""
    answers = {
        "livesports_qa": answer_key.to_livesports_qa(folder / QA),
        "ovo": answer_key.to_ovo(folder / OVO),
        "streamingbench_real": answer_key.to_streamingbench(folder / REAL),
        "streamingbench_sqa": answer_key.to_streamingbench(folder / SEQUENCES),
        "streamingbench_polled": answer_key.to_proactive(folder / PROACTIVE, games, polled=True),
        "streamingbench_native": answer_key.to_proactive(folder / PROACTIVE, games, polled=False),
    }
    return {f"{ANSWERS}/right/{name}.jsonl": records for name, records in answers.items()}
