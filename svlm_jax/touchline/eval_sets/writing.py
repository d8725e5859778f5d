"""Writes the sets of some games into a folder, each in its published file name.

Owns the file names. Does not make films (`svlm evaluate game` does). Host side.
"""

from collections.abc import Sequence
from pathlib import Path

from svlm_jax.eval import lines
from svlm_jax.eval.truth import write_truth
from svlm_jax.touchline.eval_sets import commentaries, livesports_qa, ovo, streamingbench
from svlm_jax.touchline.eval_sets.games import Game

GAMES, TRUTH = "eval_all_metadata.jsonl", "truth.jsonl"
CC, CAPTIONS = "LiveSports-3K-CC.json", "captions"
QA, OVO = "LiveSports-3K-QA.json", "ovo_bench_new.json"
REAL, SEQUENCES, PROACTIVE = (f"questions_{name}.json" for name in ("real", "sqa", "proactive"))
ANSWERS = "answers"


def write_sets(folder: Path, games: Sequence[Game]) -> dict[str, int]:
    """Write all of them; returns the entries of each file, by its path in the folder. Files that exist are replaced."""
    counts = {GAMES: lines.write(folder / GAMES, map(commentaries.games_line, games))}
    write_truth(folder / TRUTH, map(commentaries.truth, games))
    counts[TRUTH] = len(games)
    for name, replies in commentaries.BASELINES.items():
        said = [(game, replies(game)) for game in games]
        answers = f"{ANSWERS}/infstreams/{name}/result_0.jsonl"
        (folder / answers).parent.mkdir(parents=True, exist_ok=True)
        counts[answers] = lines.write(folder / answers, (commentaries.infstreams_answers(*each) for each in said))
        captions = f"{CAPTIONS}/{name}.jsonl"
        (folder / CAPTIONS).mkdir(exist_ok=True)
        predictions = (line for each in said for line in commentaries.cc_predictions(*each))
        counts[captions] = lines.write(folder / captions, predictions)
    lists = {
        CC: [commentaries.cc_entry(event) for game in games for event in commentaries.cc_events(game)],
        QA: livesports_qa.questions(games),
        OVO: ovo.items(games),
        REAL: streamingbench.real(games),
        SEQUENCES: streamingbench.sequences(games),
        PROACTIVE: streamingbench.proactive(games),
    }
    for name, entries in lists.items():
        lines.write_json(folder / name, entries)
        counts[name] = len(entries)
    return counts
