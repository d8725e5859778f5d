"""Which frames a job sees with which chunk, at which seconds; and which videos are named before a model is loaded."""

import numpy as np
import pytest

from svlm_jax.config import StreamConfig
from svlm_jax.eval.commentator import Job
from svlm_jax.eval.job_video import Chunks, probe_videos
from svlm_jax.media.video import write_video
from tests.support.films import film

CONFIG = StreamConfig()
STEP = 8  # grey levels between a frame and the next, which encoding does not blur


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """10 s at 2 fps; frame k is grey, STEP * k."""
    path = tmp_path_factory.mktemp("films") / "grey.mp4"
    write_video(path, (np.full((56, 56, 3), STEP * number, np.uint8) for number in range(20)), 2)
    return path


def seen(chunks, first: int = 0) -> list[tuple[int, float, float, list[int]]]:
    """(number, start, end, numbers of the frames) of each chunk."""
    source, iterator = chunks.open(first)
    with source:
        return [(each.number, each.start, each.end, [round(frame.mean() / STEP) for frame in each.frames]) for each in iterator]


def test_a_job_is_as_many_chunks_as_it_takes_to_reach_its_end(video):
    assert Chunks(Job("a", video, 2, 5), CONFIG).total == 3
    assert Chunks(Job("a", video, 2.5, 5.25), CONFIG).total == 3  # 2.75 s
    first = StreamConfig(first_chunk_seconds=3, mode="full")
    assert Chunks(Job("a", video, 0, 2), first).total == 1  # the first chunk is longer than the job
    assert [Chunks(Job("a", video, 0, 5.5), first).span(number) for number in range(4)] == [(0, 3), (3, 4), (4, 5), (5, 6)]


def test_the_last_chunk_has_frames_beyond_the_end_where_the_video_has_them(video):
    assert seen(Chunks(Job("a", video, 3.0, 4.5), CONFIG)) == [(0, 3, 4, [6, 7]), (1, 4, 5, [8, 9])]


@pytest.mark.parametrize(
    ("config", "recent"),
    [(CONFIG, None), (CONFIG, 4), (StreamConfig(first_chunk_seconds=3, mode="full"), None)],
    ids=["chunks", "recent frames", "first chunk longer"],
)
def test_a_job_that_goes_on_sees_what_it_would_have_seen(video, config, recent):
    chunks = Chunks(Job("a", video, 1.3, 9.0), config, recent)
    whole = seen(chunks)
    assert len(whole) == chunks.total
    for first in range(1, chunks.total):
        assert seen(chunks, first) == whole[first:]


def test_recent_frames_are_the_newest_those_before_the_job_too(video):
    assert seen(Chunks(Job("a", video, 2, 4), CONFIG, 6)) == [(0, 0, 3, [0, 1, 2, 3, 4, 5]), (1, 1, 4, [2, 3, 4, 5, 6, 7])]
    assert seen(Chunks(Job("a", video, 2, 3), CONFIG, 2)) == [(0, 2, 3, [4, 5])]
    at_the_start = seen(Chunks(Job("a", video, 0, 3), CONFIG, 4))
    assert at_the_start == [(0, 0, 1, [0, 1]), (1, 0, 2, [0, 1, 2, 3]), (2, 1, 3, [2, 3, 4, 5])]


def test_a_clip_begins_at_0_and_knows_nothing_of_what_was_before_it(video):
    assert seen(Chunks(Job("a", video, 2.5, 4, clock="clip"), CONFIG)) == [(0, 0, 1, [5, 6]), (1, 1, 2, [7, 8])]
    assert seen(Chunks(Job("a", video, 2, 4, clock="clip"), CONFIG, 4)) == [(0, 0, 1, [4, 5]), (1, 0, 2, [4, 5, 6, 7])]


def test_a_video_that_breaks_off_says_so_with_its_last_chunk(tmp_path):
    path = tmp_path / "cut.mkv"
    rng = np.random.default_rng(0)
    data = film(path, [rng.integers(0, 256, (56, 84, 3), np.uint8) for _ in range(20)], fps=2).read_bytes()
    path.write_bytes(data[: len(data) * 7 // 10])
    job = Job("a", path, 2, 10)
    assert probe_videos([job])[str(path)].error is None  # its header says nothing
    source, chunks = Chunks(job, CONFIG).open()
    with source:
        notes = [chunk.note for chunk in chunks] + [text for _, text in source.notes]
    assert 0 < len(notes) < 8 and "cut short" in " ".join(notes)


def test_a_look_names_videos_that_cannot_be_watched_to_the_end_of_their_jobs(video, tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    probes = probe_videos(
        [Job("a", video, 2, 10), Job("b", video, 0, 3), Job("c", tmp_path / "gone.mp4", 0, 5)]
        + [Job(name, tmp_path / name, 0, 5) for name in ("empty.mp4", "text.mp4")]
    )
    assert probes.pop(str(video)) == ((56, 56), None)
    for path, probe in probes.items():
        assert probe.size is None and path.rpartition("/")[2] in str(probe.error)
    (short,) = probe_videos([Job("a", video, 2, 10), Job("b", video, 2, 12)]).values()
    assert short.size == (56, 56) and "10.0 s of video, expected 12 s" in str(short.error)
    (beyond,) = probe_videos([Job("a", video, 11, 12)]).values()
    assert beyond.size is None and "11 s" in str(beyond.error)
