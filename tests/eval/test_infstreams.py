"""Games and segments of Inf-Streams-Eval: which words a piece has, whatever their times are, and files that others can read."""

import json
from pathlib import Path

import pytest

from svlm_jax.data.annotation import Word
from svlm_jax.errors import InputError
from svlm_jax.eval.commentary import Utterance
from svlm_jax.eval.infstreams import (
    Game,
    answer_name,
    answer_record,
    cut,
    read_games,
    read_segments,
    said_before,
    segment_record,
)
from svlm_jax.json_lines import BadLines, write


def games_file(folder: Path, *contents: list) -> Path:
    path = folder / "games.jsonl"
    write(path, [{"video": f"soccer/{number}.mp4", "content": content} for number, content in enumerate(contents)])
    return path


def test_a_word_belongs_to_the_piece_in_which_it_ends():
    """The last instant belongs to the piece, as in training: 200.0 ends the second piece, 200.1 begins the third."""
    words = (Word(99.0, 99.5, "a"), Word(99.8, 100.4, "b"), Word(199.0, 200.0, "c"), Word(199.5, 200.1, "d"))
    segments, pieces = cut(Game("g.mp4", words, "Reds - Blues"), 100, 1)
    assert pieces == 3
    assert [segment.reference for segment in segments] == ["a", "b\nc", "d"]
    assert [segment.previous for segment in segments] == ["", "a", "a b c"]
    assert [(segment.start, segment.end) for segment in segments] == [(99, 99), (99, 200), (199, 200)]
    assert {segment.title for segment in segments} == {"Reds - Blues"}


def test_a_piece_with_a_word_less_than_wanted_is_left_out():
    words = tuple(Word(second, second + 0.5, "w") for second in [*range(200), *range(200, 399)])
    segments, pieces = cut(Game("g.mp4", words))
    assert pieces == 4
    assert segments == []
    segments, _ = cut(Game("g.mp4", words), 200, 200)  # 200 in the first 200 s, 199 in the next
    assert [len(segment.words) for segment in segments] == [200]


def test_segments_are_read_as_they_were_written(tmp_path):
    words = tuple(Word(float(second), second + 0.5, f"w{second}") for second in range(300))
    segments, _ = cut(Game("soccer/g.mp4", words, "Reds - Blues"), 100, 10)
    write(tmp_path / "clips.jsonl", map(segment_record, segments))
    record = json.loads((tmp_path / "clips.jsonl").read_text().splitlines()[1])
    assert record.keys() == {"video", "title", "preasr", "content"}
    assert record["content"][0] == [100.0, 100.5, "w100"]
    assert read_segments(tmp_path / "clips.jsonl", BadLines()) == segments


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ([12.0, 11.0, "goal"], "'goal' from 12 to 11 s"),  # start after end, as in the published data
        ([900.0, 900.5, "goal"], "'goal' that ends at 900.5 s"),  # leaps ahead
        ([1.0, 1.5, "goal"], "'goal' that ends at 1.5 s"),  # falls back
        ([-3.0, 11.0, "goal"], "'goal' from -3 to 11 s"),
        ([None, 11.0, "goal"], "start: got None"),
        ([11.0, float("nan"), "goal"], "end: got nan"),
    ],
)
def test_a_word_with_a_broken_time_is_named_and_stays_where_it_was_said(tmp_path, broken, reason):
    """The published reader stops at the first word that ends late: one broken word and a model begins without a past."""
    content = [[float(second), second + 0.5, f"w{second}"] for second in range(20)]
    content.insert(12, broken)
    path = tmp_path / "games.jsonl"
    path.write_text(json.dumps({"video": "g.mp4", "content": content}) + "\n")
    with pytest.raises(InputError, match=r"games\.jsonl:1 content") as error:
        read_games(path, BadLines())
    assert reason in str(error.value)
    bad = BadLines(1)
    with pytest.warns(UserWarning, match="put after the word before it"):
        (game,) = read_games(path, bad)
    assert len(bad.errors) == 1
    assert game.words[12] == Word(11.5, 11.5, "goal")
    assert said_before(game.words, 14.5) == " ".join(f"w{second}" if second != 12 else "goal w12" for second in range(15))


def test_the_first_word_may_have_a_broken_time(tmp_path):
    path = games_file(tmp_path, [[9.0, 8.0, "and"], [3.0, 3.5, "kick"], [3.5, 4.0, "off"]])
    with pytest.warns(UserWarning):
        (game,) = read_games(path, BadLines(1))
    assert game.words[0] == Word(3.0, 3.0, "and")


def test_two_who_speak_at_once_are_no_fault(tmp_path):
    path = games_file(tmp_path, [[1.0, 3.0, "long"], [1.5, 2.0, "short"], [3.0, 3.5, " "], [3.5, 4.0, " end "]])
    (game,) = read_games(path, BadLines())
    assert [word.text for word in game.words] == ["short", "long", "end"]


def test_what_is_no_word_is_left_out_and_counted(tmp_path):
    path = games_file(tmp_path, [[1.0, 2.0, "one"], [2.0, 3.0], "three"])
    with pytest.raises(InputError, match=r"content\[1\]"):
        read_games(path, BadLines(0))
    with pytest.warns(UserWarning, match="left out"):
        (game,) = read_games(path, BadLines(2))
    assert [word.text for word in game.words] == ["one"]


def test_a_game_without_words_or_twice_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no word with times"):
        read_games(games_file(tmp_path, []), BadLines())
    path = tmp_path / "twice.jsonl"
    write(path, [{"video": "g.mp4", "content": [[0, 1, "w"]]}] * 2)
    with pytest.raises(InputError, match=r"twice\.jsonl:2: got g\.mp4 a second time"):
        read_games(path, BadLines())
    with pytest.warns(UserWarning, match="left out"):
        assert len(read_games(path, BadLines(1))) == 1


def test_a_segment_of_no_length_is_bad(tmp_path):
    path = tmp_path / "clips.jsonl"
    write(path, [{"video": "g.mp4", "preasr": "", "content": [[5.1, 5.4, "w"]]}])
    with pytest.raises(InputError, match="words from 5 to 5 s"):
        read_segments(path, BadLines())


def test_a_segment_twice_counts_once(tmp_path):
    path = tmp_path / "clips.jsonl"
    write(path, [{"video": "g.mp4", "title": None, "preasr": None, "content": [[5.1, 8.4, "w"]]}] * 2)
    with pytest.warns(UserWarning, match=r"left out: clips\.jsonl:2: got g\.mp4:5-8 a second time"):
        assert len(read_segments(path, BadLines(1))) == 1


def test_published_scripts_can_read_our_answers():
    """They want these keys and types, know a game by its file name, and take every .jsonl file of the folder."""
    record = answer_record(
        "soccer/final.mp4", 1000.0, 1002.0, [Utterance(1000.0, 1001.0, "Kick"), Utterance(1001.0, 1002.0, "")]
    )
    assert record["video"] == "final.mp4"
    assert (record["chunk_start"], record["chunk_end"]) == (1000, 1002)
    assert record["items"][1] == {"response": "", "start_time": 1001.0, "end_time": 1002.0}
    assert answer_name("soccer/final.mp4").startswith("result_final_")
    assert answer_name("soccer/final.mp4") != answer_name("tennis/final.mp4")


def test_games_in_place_of_segments_are_refused(tmp_path):
    """Else whole games would be judged as one segment each."""
    with pytest.raises(InputError, match=r"games\.jsonl:1 preasr: got nothing, expected a segment, not a game"):
        read_segments(games_file(tmp_path, [[1.0, 2.0, "one"]]), BadLines())
