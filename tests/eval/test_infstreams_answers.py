"""Answer files as they are: each known fault is named and does not move a number; missing is not silent."""

from pathlib import Path

import pytest

from svlm_jax.data.annotation import Word
from svlm_jax.errors import InputError
from svlm_jax.eval.commentary import Utterance
from svlm_jax.eval.infstreams import Game, Segment, answer_name, answer_record
from svlm_jax.eval.infstreams_answers import Answers, read_answers
from svlm_jax.eval.infstreams_generate import Generation, Protocol, game_jobs
from svlm_jax.eval.judging import Candidate
from svlm_jax.json_lines import BadLines, write
from tests.support.commentators import FakeCommentator

VIDEO = "soccer/final.mp4"
GAME = (1000, 1300)
CHUNKS = (1000, 1100, 1200)


def segment(start: int, end: int, video: str = VIDEO) -> Segment:
    return Segment(video, (Word(start + 0.5, start + 1.0, "kick"), Word(end - 0.5, float(end), "off")))


SEGMENTS = [segment(start, start + 99) for start in CHUNKS]


def items(start: int, end: int, words: str = "w") -> list[dict]:
    """An item a second, each with a word that names its second; every third is silent."""
    return [
        {"response": f"\n {words}{second}" if second % 3 else "", "start_time": second - 1, "end_time": second}
        for second in range(start + 1, end + 1)
    ]


def said(start: int, end: int, words: str = "w") -> str:
    """What `items` say after `start` and by `end`."""
    return " ".join(f"{words}{second}" for second in range(start + 1, end + 1) if second % 3)


def line(start: int, end: int, said_items: list[dict] | None = None, video: str = "final.mp4") -> dict:
    given = items(start, end) if said_items is None else said_items
    return {"video": video, "chunk_start": start, "chunk_end": end, "items": given}


def answers(folder: Path, files: dict[str, list[dict]], videos: tuple[str, ...] = (VIDEO,), bad: int = 0) -> Answers:
    folder.mkdir(exist_ok=True)
    for name, lines in files.items():
        write(folder / name, lines)
    return read_answers(folder, videos, BadLines(bad))


def texts(read: Answers) -> list[str]:
    return [candidate.text for candidate, _ in map(read.candidate, SEGMENTS)]


SOUND = [said(start, start + 99) for start in CHUNKS]


def test_ours_one_line_a_game_or_a_chunk(tmp_path):
    utterances = [Utterance(each["start_time"], each["end_time"], each["response"]) for each in items(*GAME)]
    whole = [answer_record(VIDEO, *GAME, utterances)]
    chunks = [answer_record(VIDEO, start, start + 100, utterances[start - 1000 : start - 900]) for start in CHUNKS]
    for name, lines in (("whole", whole), ("chunks", chunks)):
        read = answers(tmp_path / name, {answer_name(VIDEO): lines})
        assert texts(read) == SOUND
        assert read.faults == []


def test_the_utterances_of_a_candidate_are_its_text_with_times(tmp_path):
    read = answers(tmp_path, {"result_0.jsonl": [line(*GAME)]})
    candidate, _ = read.candidate(segment(1000, 1004))
    assert candidate.utterances == tuple(Utterance(t - 1.0, float(t), f"\n w{t}") for t in (1001, 1003, 1004) if t % 3)
    assert candidate.text == "w1001 w1003 w1004"


def test_merged_twice_every_answer_counts_once(tmp_path):
    """The published merge reads its own output: in chunk mode each answer after the first chunk is in the line twice."""
    twice = [*items(*GAME), *items(1100, 1200), *items(1200, 1300)]
    read = answers(tmp_path, {"merged_result.jsonl": [line(*GAME, twice)]})
    assert texts(read) == SOUND
    assert read.faults == [
        "final.mp4: 200 of 500 answers twice, as files that were merged twice have them: kept once",
    ]


def test_a_line_twice_counts_once(tmp_path):
    read = answers(tmp_path, {"result_0.jsonl": [line(*GAME)] * 2})
    assert texts(read) == SOUND
    assert read.faults[0].startswith("final.mp4: 300 of 600 answers twice")


def test_a_merged_file_beside_shards_is_not_read(tmp_path):
    """It survives a second generation: the published merge would prefer its old words."""
    stale = line(*GAME, items(*GAME, "old"))
    read = answers(tmp_path, {"merged_result.jsonl": [stale], "result_0.jsonl": [line(*GAME)]})
    assert texts(read) == SOUND
    assert read.faults == ["merged_result.jsonl beside result_*.jsonl: not read, it may be older or have answers twice"]


def test_two_runs_in_one_file_are_refused(tmp_path):
    """Infinite and chunk mode of a model share a published folder, and which words count cannot be told."""
    lines = [line(*GAME), line(1100, 1200, items(1100, 1200, "other"))]
    with pytest.raises(InputError, match=r"final\.mp4: got two answers for second 1102"):
        answers(tmp_path, {"result_0.jsonl": lines})
    with pytest.warns(UserWarning, match="left out"):
        read = answers(tmp_path, {}, bad=1)
    assert read.candidate(SEGMENTS[0]) == (Candidate("", missing=True), "two different answers for one second")


def test_one_answer_a_segment_as_of_gpt(tmp_path):
    """No start, and a failed request leaves no item, while the line claims the whole game: missing, not a free win."""
    given = [{"response": "first", "end_time": 1099}, {"response": "third", "end_time": 1299}]
    read = answers(tmp_path, {"merged_result.jsonl": [line(1000, 1299, given)]})
    first, second, third = map(read.candidate, SEGMENTS)
    assert first == (Candidate("first", (Utterance(1000.0, 1099.0, "first"),)), "")
    assert second == (Candidate("", missing=True), "no answer for this segment")
    assert third[0].text == "third"
    assert read.faults == [
        "final.mp4: answers without a start: taken as one a segment; segments without one are missing, not silent"
    ]


def test_one_answer_a_segment_is_not_taken_for_the_next(tmp_path):
    """A segment begins with its first word, which may begin before the last word of the one before ends."""
    read = answers(tmp_path, {"merged_result.jsonl": [line(1000, 1199, [{"response": "first", "end_time": 1099}])]})
    assert read.candidate(segment(1097, 1199))[0].missing


def test_a_game_of_which_all_requests_failed_is_missing(tmp_path):
    read = answers(tmp_path, {"merged_result.jsonl": [line(1000, 1299, [])]})
    assert all(read.candidate(each)[0].missing for each in SEGMENTS)


def test_a_model_that_stopped_early_is_silent_from_there(tmp_path):
    """The published script leaves out what is not covered: an exemption for whoever stops."""
    read = answers(tmp_path, {"result_0.jsonl": [line(1000, 1150)]})
    assert texts(read) == [SOUND[0], said(1100, 1150), ""]
    assert not any(read.candidate(each)[0].missing for each in SEGMENTS)


def test_a_model_that_said_nothing_at_all_is_silent(tmp_path):
    """Its line is empty, and ends where it starts."""
    read = answers(tmp_path, {"result_0.jsonl": [line(1000, 1000, [])]})
    assert read.candidate(SEGMENTS[0]) == (Candidate(""), "")


def test_what_could_not_be_watched_is_missing(tmp_path):
    """Ours say so; it is no fault of the model."""
    read = answers(tmp_path, {"result_0.jsonl": [line(1000, 1150) | {"error": "damaged"}]})
    assert [read.candidate(each)[1] for each in SEGMENTS] == ["", *["not watched: damaged"] * 2]
    assert read.faults == ["final.mp4: not watched after 1150 s (damaged): segments there are missing, not silent"]


def test_a_caption_a_segment_with_times(tmp_path):
    """A line each. A request that failed says so: missing and not silent, the last too, though it begins where another ends."""
    lines = [
        line(1000, 1099, [{"response": "first", "start_time": 1000, "end_time": 1099}]),
        line(1099, 1099, []) | {"error": "no answer"},
        line(1200, 1299, [{"response": "third", "start_time": 1200, "end_time": 1299}]),
        line(1299, 1299, []) | {"error": "no answer"},
    ]
    read = answers(tmp_path, {"result_0.jsonl": lines})
    given = [
        read.candidate(each) for each in (segment(1000, 1099), segment(1099, 1199), segment(1200, 1299), segment(1299, 1399))
    ]
    assert [candidate.text for candidate, _ in given] == ["first", "", "third", ""]
    assert [why for _, why in given] == ["", "a hole in the answers", "", "not watched: no answer"]


def test_a_hole_is_missing_whether_or_not_the_file_was_merged(tmp_path):
    chunks = [line(1000, 1100), line(1200, 1300)]
    merged = [line(*GAME, [*items(1000, 1100), *items(1200, 1300)])]
    for name, lines in (("result_0.jsonl", chunks), ("merged_result.jsonl", merged)):
        read = answers(tmp_path / name, {name: lines})
        assert [read.candidate(each)[1] for each in SEGMENTS] == ["", "a hole in the answers", ""]
        assert read.faults == ["final.mp4: no answer between 1100 and 1200 s: segments there are missing, not silent"]


def test_a_chunk_that_was_made_later_fills_its_hole(tmp_path):
    """Merged before it was there, then once more: it stands at the end of the line."""
    late = [*items(1000, 1100), *items(1200, 1300), *items(1100, 1200)]
    read = answers(tmp_path, {"merged_result.jsonl": [line(*GAME, late)]})
    assert texts(read) == SOUND
    assert read.faults == []


def test_a_second_too_few_is_neither_a_hole_nor_an_end(tmp_path):
    """LiveCC's infinite streams end one early, and the published script leaves out the last segment of each game for it."""
    last = segment(1200, 1300)
    for name, lines in (("whole", [line(1000, 1299)]), ("chunks", [line(start, start + 99) for start in CHUNKS])):
        read = answers(tmp_path / name, {"result_0.jsonl": lines})
        assert [read.candidate(each)[1] for each in (*SEGMENTS, last)] == [""] * 4
        assert read.candidate(last)[0].text == said(1200, 1299)
        assert read.faults == []


def test_what_begins_before_the_first_answer_is_missing(tmp_path):
    read = answers(tmp_path, {"result_0.jsonl": [line(*GAME)]})
    assert read.candidate(segment(900, 999)) == (Candidate("", missing=True), "begins before 1000 s, the first answer")
    assert read.candidate(segment(999, 1099))[0].missing


def test_games_are_known_by_path_or_by_a_file_name_that_one_has(tmp_path):
    videos = ("soccer/final.mp4", "tennis/final.mp4", "soccer/cup.mp4")
    read = answers(
        tmp_path / "a", {"result_0.jsonl": [line(*GAME), line(*GAME, video="cup.mp4"), line(*GAME, video="x.mp4")]}, videos
    )
    assert read.games.keys() == {"soccer/cup.mp4"}
    assert read.faults == [
        "final.mp4: the file name of 2 games, and no path: their answers are not used",
        "1 games without a segment: not used",
    ]
    assert read.candidate(segment(1000, 1099, "tennis/final.mp4"))[1] == "a file name of several games"
    ours = [answer_record(video, *GAME, [Utterance(1000, 1001, video)]) for video in videos]
    read = answers(tmp_path / "b", {"result_0.jsonl": ours}, videos)
    assert {video: game.utterances[0].text for video, game in read.games.items()} == {video: video for video in videos}
    assert read.faults == []
    assert read.candidate(segment(1000, 1099, "golf/open.mp4")) == (Candidate("", missing=True), "no answers for this game")


def test_one_bad_item_costs_no_game(tmp_path):
    given = items(*GAME)
    given[4] = {"response": "late", "start_time": 1010, "end_time": 1005}
    given[7] = {"response": None, "end_time": 1008}
    with pytest.raises(InputError, match=r"result_0\.jsonl:1 items\[4\]"):
        answers(tmp_path, {"result_0.jsonl": [line(*GAME, given)]})
    with pytest.warns(UserWarning):
        read = answers(tmp_path, {}, bad=2)
    assert texts(read)[1:] == SOUND[1:]


def test_a_file_of_its_own_and_a_folder_without_answers(tmp_path):
    write(tmp_path / "merged_result.jsonl", [line(*GAME)])
    read = read_answers(tmp_path / "merged_result.jsonl", [VIDEO], BadLines())
    assert texts(read) == SOUND
    assert read.name == tmp_path.name
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"a folder without result_\*\.jsonl or merged_result\.jsonl"):
        read_answers(tmp_path / "empty", [VIDEO], BadLines())


def test_a_run_is_named_by_its_model_and_mode(tmp_path):
    (tmp_path / "run.json").write_text('{"model": "svlm", "mode": "infinite"}')
    read = answers(tmp_path, {"result_0.jsonl": [line(*GAME)]})
    assert read.name == "svlm infinite"
    assert read.settings == {"model": "svlm", "mode": "infinite"}
    assert len(read.sha256) == 64


@pytest.mark.parametrize("chunk", [None, 100])
def test_what_is_generated_here_is_read_without_a_fault(tmp_path, chunk):
    """Infinite and chunk mode, of two games of one file name."""
    videos = (VIDEO, "tennis/final.mp4")
    games = [Game(video, (Word(1299.0, 1300.0, "end"),)) for video in videos]
    jobs = {game.video: game_jobs(game, tmp_path, Protocol(chunk=chunk)) for game in games}
    commentator = FakeCommentator(lambda job, second: f"{job.key[0]}{second + 1:g}" if (second + 1) % 3 else "")
    assert len(list(Generation(tmp_path, jobs).run(commentator))) == (6 if chunk else 2)
    read = read_answers(tmp_path, videos, BadLines())
    assert read.faults == []
    for video in videos:
        given = [read.candidate(segment(start, start + 99, video))[0].text for start in CHUNKS]
        assert given == [said(start, start + 99, video[0]) for start in CHUNKS]
