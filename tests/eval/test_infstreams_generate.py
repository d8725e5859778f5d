"""Which streams a game becomes, what they are told, and that no row of a run is lost, doubled or silently short."""

import json
import re
from pathlib import Path

import pytest

from svlm_jax.data.annotation import Word
from svlm_jax.errors import InputError
from svlm_jax.eval.commentary import Utterance
from svlm_jax.eval.commentator import Finished
from svlm_jax.eval.infstreams import Game, Segment, answer_name
from svlm_jax.eval.infstreams_generate import Generation, Protocol, game_jobs, segment_jobs, shard_of
from tests.support.commentators import FakeCommentator

VIDEOS = Path("videos")
CHUNKS = Protocol(start=10, chunk=10, query="Go")


def game(video: str, end: float = 34.6) -> Game:
    """A word that ends at each second and a half, and one at the end."""
    words = [Word(1.5 * number, 1.5 * number + 1.5, f"w{number}") for number in range(int(end / 1.5))]
    return Game(video, (*words, Word(end - 0.5, end, "end")))


@pytest.fixture
def videos(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name / "final.mp4").parent.mkdir()
        (tmp_path / name / "final.mp4").write_text("film")
    return tmp_path


def test_infinite_is_one_stream_a_game_and_chunks_are_many_that_know_the_true_words():
    (job,) = game_jobs(game("a.mp4"), VIDEOS, Protocol(start=10, query="Go"))
    assert (job.start, job.end, job.query) == (10, 34, "Go")  # int of the last word's end
    assert job.previous == " w0 w1 w2 w3 w4 w5"  # w5 ends at 9, w6 at 10.5
    chunks = game_jobs(game("a.mp4"), VIDEOS, CHUNKS)
    assert [(chunk.start, chunk.end) for chunk in chunks] == [(10, 20), (20, 30), (30, 34)]
    assert chunks[1].previous.endswith(" w11 w12")  # w12 ends at 19.5
    assert chunks[2].previous.endswith(" w18 w19")  # w19 ends at 30
    assert game_jobs(game("a.mp4"), VIDEOS, CHUNKS._replace(previous_text=False))[2].previous == ""


def test_a_game_that_ends_before_streams_begin_is_no_stream():
    assert game_jobs(game("a.mp4", 9.5), VIDEOS, CHUNKS) == game_jobs(game("a.mp4", 10.4), VIDEOS, Protocol(start=10)) == []


def test_one_late_word_does_not_empty_what_was_said_before():
    late = Game("a.mp4", (Word(0, 1, "one"), Word(1, 500, "late"), Word(2, 3, "two"), Word(400, 501, "end")))
    (job,) = game_jobs(late, VIDEOS, Protocol(start=10))
    assert job.previous == " one two"  # the published loop stops at "late"


def test_a_stream_has_its_own_seed_whichever_others_there_are():
    alone, beside = game_jobs(game("b.mp4"), VIDEOS, CHUNKS), game_jobs(game("a.mp4"), VIDEOS, CHUNKS)
    seeds = {job.seed for job in [*alone, *beside]}
    assert len(seeds) == 6 and all(0 <= seed < 2**32 for seed in seeds)
    assert [job.seed for job in game_jobs(game("b.mp4"), Path("elsewhere"), CHUNKS)] == [job.seed for job in alone]
    assert game_jobs(game("b.mp4"), VIDEOS, CHUNKS._replace(seed=1))[0].seed != alone[0].seed


def say(job, second) -> str:
    return "" if second % 2 else f"{job.key} {second:g}"


class Killed(BaseException):
    pass


def run(videos, folder="run", *, shard=(1, 1), kill_after=99, protocol=CHUNKS, **fake) -> tuple[Generation, FakeCommentator]:
    games = [game(f"{name}/final.mp4") for name in ("a", "b", "c")]
    (videos / folder).mkdir(exist_ok=True)
    made = Generation(videos / folder, {each.video: game_jobs(each, videos, protocol) for each in games}, shard)
    commentator = FakeCommentator(say, **fake)
    for number, _ in enumerate(made.run(commentator), 1):
        if number == kill_after:
            raise Killed
    return made, commentator


def files(videos, folder="run") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (videos / folder).glob("*.jsonl")}


def test_a_game_is_a_file_in_the_published_form_with_a_row_a_stream_and_an_item_a_second(videos):
    run(videos)
    found = files(videos)
    assert found.keys() == {answer_name(f"{name}/final.mp4") for name in ("a", "b", "c")}
    assert all(re.fullmatch(r"result_.*\.jsonl", name) for name in found)  # what the published merge reads
    rows = [json.loads(line) for line in found[answer_name("b/final.mp4")].splitlines()]
    assert [(row["video"], row["chunk_start"], row["chunk_end"]) for row in rows] == [
        ("final.mp4", 10, 20),
        ("final.mp4", 20, 30),
        ("final.mp4", 30, 34),
    ]
    assert rows[2]["items"][:2] == [
        {"response": "b/final.mp4:30-34 30", "start_time": 30, "end_time": 31},
        {"response": "", "start_time": 31, "end_time": 32},
    ]
    assert [len(row["items"]) for row in rows] == [10, 10, 4]


@pytest.mark.parametrize("kill_after", range(1, 10))
def test_a_run_that_is_killed_after_any_stream_ends_with_the_same_bytes(videos, kill_after):
    run(videos, "whole")
    with pytest.raises(Killed):
        run(videos, kill_after=kill_after)
    # the last line may be cut off in the middle by the crash
    (rows,) = (videos / "run" / "state").glob("rows_*")
    rows.write_bytes(rows.read_bytes() + b'{"key": "a/fin')
    made, commentator = run(videos)
    assert len(commentator.watched) == 9 - kill_after  # nothing twice
    assert files(videos) == files(videos, "whole") and made.complete == 3


def test_shards_make_what_one_process_makes_and_a_new_number_of_them_goes_on(videos):
    run(videos, "whole")
    first, _ = run(videos, shard=(1, 2))
    assert files(videos).keys() == {answer_name("a/final.mp4"), answer_name("c/final.mp4")} and first.complete == 2
    with pytest.raises(Killed):
        run(videos, shard=(2, 2), kill_after=1)
    _, commentator = run(videos)
    assert [job.key for job in commentator.watched] == ["b/final.mp4:20-30", "b/final.mp4:30-34"]
    assert files(videos) == files(videos, "whole")


def test_what_was_watched_of_a_broken_video_is_kept_with_the_reason_and_told_again(videos):
    key = "b/final.mp4:20-30"
    made, _ = run(videos, errors={key: "ends at 25 s"}, watched={key: 5})
    assert [(job.key, reason) for job, reason in made.errors] == [(key, "ends at 25 s")] and made.complete == 3
    row = json.loads(files(videos)[answer_name("b/final.mp4")].splitlines()[1])
    assert (row["chunk_end"], row["error"], len(row["items"])) == (25, "ends at 25 s", 5)
    again, commentator = run(videos)
    assert commentator.watched == [] and again.errors == made.errors  # not silently forgotten
    (videos / "b" / "final.mp4").write_text("a better film")
    mended, commentator = run(videos)
    assert [job.key for job in commentator.watched] == [key] and mended.errors == []
    run(videos, "whole")
    assert files(videos) == files(videos, "whole")


def test_a_missing_video_has_empty_rows_until_it_is_there(videos):
    (videos / "c" / "final.mp4").unlink()
    keys = [f"c/final.mp4:{part}" for part in ("10-20", "20-30", "30-34")]
    made, _ = run(videos, errors=dict.fromkeys(keys, "no such file"), watched=dict.fromkeys(keys, 0))
    assert [job.key for job, _ in made.errors] == keys
    rows = [json.loads(line) for line in files(videos)[answer_name("c/final.mp4")].splitlines()]
    assert [(row["chunk_start"], row["chunk_end"], row["items"]) for row in rows] == [(10, 10, []), (20, 20, []), (30, 30, [])]
    (videos / "c" / "final.mp4").write_text("film")
    mended, _ = run(videos)
    run(videos, "whole")
    assert mended.errors == [] and files(videos) == files(videos, "whole")


def test_a_complete_file_needs_no_state(videos):
    run(videos)
    before = files(videos)
    for path in (videos / "run" / "state").iterdir():
        path.unlink()
    assert run(videos)[1].watched == [] and files(videos) == before


def test_answers_to_segments_are_a_line_a_game_and_one_that_failed_is_asked_again(videos):
    segments = [Segment("a/final.mp4", (Word(start + 0.5, start + 9.5, "go"),)) for start in (10, 20, 30)]
    jobs = segment_jobs(segments, videos, "What?")
    assert [(job.key, job.start, job.end, job.query) for job in jobs["a/final.mp4"]] == [
        ("a/final.mp4:10-19", 10, 19, "What?"),
        ("a/final.mp4:20-29", 20, 29, "What?"),
        ("a/final.mp4:30-39", 30, 39, "What?"),
    ]

    class Captioner(FakeCommentator):
        def run(self, jobs, *, skip=()):
            for job in (job for job in jobs if job.key not in skip):
                self.watched.append(job)
                error = self.errors.get(job.key, "")
                yield Finished(job, () if error else (Utterance(job.start, job.end, f"said {job.start}"),), error=error)

    def caption(**errors) -> list[str]:
        (videos / "run").mkdir(exist_ok=True)
        captioner = Captioner(errors={f"a/final.mp4:{part}": reason for part, reason in errors.items()})
        made = Generation(videos / "run", jobs, a_line_a_game=True)
        assert len(list(made.run(captioner))) == len(captioner.watched) and len(made.errors) == len(errors)
        return [job.key for job in captioner.watched]

    assert len(caption(**{"20-29": "no answer"})) == 3
    (row,) = map(json.loads, files(videos)[answer_name("a/final.mp4")].splitlines())
    said = [{"response": "said 10", "end_time": 19}, {"response": "said 30", "end_time": 39}]
    assert row == {"video": "final.mp4", "path": "a/final.mp4", "chunk_start": 10, "chunk_end": 39, "items": said}
    assert caption() == ["a/final.mp4:20-29"]
    (row,) = map(json.loads, files(videos)[answer_name("a/final.mp4")].splitlines())
    assert [item["end_time"] for item in row["items"]] == [19, 29, 39]
    assert caption() == []


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/", "a/2", "1/2/3", "-1/2"])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(InputError, match="--shard"):
        shard_of(text)
    assert shard_of("2/3") == (2, 3)
