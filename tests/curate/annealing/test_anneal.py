"""Clips for annealing: if this fails, clips overlap, begin within a sentence, or hold what is no live commentary."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svlm_jax.curate.annealing.anneal import NOT_JUDGED, NOT_LIVE, AnnealingClips, Bounds, Clip, find_clips
from svlm_jax.curate.annealing.live_share import LiveShare
from svlm_jax.curate.sentences import split_sentences
from svlm_jax.curate.transcript import TimedWord, Transcript
from svlm_jax.data.annotation import parse, training_turns


class FixedJudge:
    """The share of each clip by a word in it; 1 without such a word."""

    def __init__(self, **shares: float | None) -> None:
        self.settings, self.shares, self.asked = {"judge": "fixed"}, shares, []

    def judge(self, title, split_sentences):
        self.asked.append((title, tuple(split_sentences)))
        found = [share for word, share in self.shares.items() if any(word in sentence for sentence in split_sentences)]
        return LiveShare(found[0] if found else 1.0, "fixed")


def spoken(*parts: tuple[float, int], each: float = 0.4, seconds: float = 0.5) -> tuple[TimedWord, ...]:
    """Sentences: (start, words of it), a word every `seconds`."""
    words = []
    for start, number in parts:
        for index in range(number):
            time, mark = start + index * seconds, "." * (index == number - 1)
            words.append(TimedWord(round(time, 3), round(time + each, 3), f"w{index}{mark}"))
    return tuple(words)


def clips(words, end: int = 1000, **bounds) -> list[tuple[int, int]]:
    return [(clip.start, clip.end) for clip in find_clips(split_sentences(words), end, Bounds(**bounds))]


def test_a_clip_is_as_long_as_it_may_be_and_ends_with_a_sentence():
    # sentences of 10 s, 2 words a second: six of them fit into 64 s, the seventh does not
    words = spoken(*((10.0 * number, 20) for number in range(12)))
    assert clips(words) == [(0, 60), (60, 120)]


def test_the_longest_clip_is_64_s_exactly():
    assert clips(spoken((0, 32), (16, 32), (32, 32), (48, 32)), longest=64) == [(0, 64)]
    assert clips(spoken((0, 32), (16, 32), (32, 32), (48, 32)), longest=63) == [(0, 48), (48, 64)]
    assert clips(spoken((0, 32), (16, 32), (32, 32), (48.2, 32)), longest=64) == [(0, 48)]  # 17 s for the last 32 words


def test_the_shortest_clip_is_16_s_exactly():
    assert clips(spoken((0, 32))) == [(0, 16)]
    assert clips(spoken((0, 30))) == []  # 15 s


def test_a_clip_has_2_words_for_each_second():
    assert clips(spoken((0, 31), (15.5, 1))) == [(0, 16)]
    assert clips(spoken((0, 30), (15.5, 1))) == []  # 31 words in 16 s


def test_a_gap_of_3_s_is_in_a_clip_and_a_longer_one_is_not():
    # the first ends at 9.9
    assert clips(spoken((0, 40), (12.9, 40), seconds=0.25, each=0.15)) == [(0, 23)]
    assert clips(spoken((0, 40), (13.0, 40), seconds=0.25, each=0.15)) == []  # 10 s each
    gap = spoken((0, 40), (13.0, 80), seconds=0.25, each=0.15)
    assert clips(gap) == [(13, 33)]


def test_clips_share_no_second():
    # the seventh sentence begins at 60.9, in a second that the first clip has: the second one begins with the eighth
    words = spoken(*((10.15 * number, 25) for number in range(13)), seconds=0.4, each=0.3)
    assert clips(words) == [(0, 61), (71, 132)]


def test_a_clip_ends_with_the_video():
    words = spoken((0, 32), (16, 32), (32, 32))
    assert clips(words, end=47) == [(0, 32)]  # the last ends at 47.9, in a second that the video has not whole


sentence_lists = st.lists(
    st.tuples(st.floats(0, 8), st.integers(1, 40), st.floats(0.1, 0.8)), min_size=1, max_size=40
)  # pause before, words, seconds of a word


@given(sentence_lists, st.integers(2, 20), st.integers(20, 70), st.floats(0, 4))
@settings(max_examples=60, deadline=None)
def test_whatever_is_said_clips_keep_their_bounds(parts, shortest, longest, gap):
    words, time = [], 0.0
    for pause, number, seconds in parts:
        time += pause
        for index in range(number):
            words.append(TimedWord(time, time + seconds, f"w{index}{'.' * (index == number - 1)}"))
            time += seconds
    found, bounds = split_sentences(words), Bounds(shortest, longest, gap, 1.5)
    free = 0
    for clip in find_clips(found, math.floor(time), bounds):
        inside = found[clip.first : clip.stop]
        assert isinstance(clip, Clip) and free <= clip.start < clip.end <= time
        assert shortest <= clip.end - clip.start <= longest
        assert sum(len(each.words) for each in inside) >= 1.5 * (clip.end - clip.start) - 1e-5
        assert clip.start <= inside[0].start + 1e-5 and inside[-1].end <= clip.end + 1e-5
        assert all(b.start - a.end <= gap + 1e-5 for a, b in pairwise(inside))
        free = clip.end


def run(words, judge, **options):
    return AnnealingClips(judge, **options).run(Transcript("a.mp4", 200.0, words, "en", "Reds - Blues"))


def test_a_line_is_a_window_with_the_words_of_its_sentences():
    words = spoken(*((10.0 * number, 20) for number in range(12)))
    outcome = run(words, FixedJudge(), query="Comment.")
    first, second = (parse(line) for line in outcome.lines)
    assert (first.video, first.start, first.end, first.query, first.previous) == ("a.mp4", 0, 60, "Comment.", "")
    assert [tuple(word) for word in first.words] == [word[:3] for word in words[:120]]
    assert second.previous == "".join(f" {word.text}" for word in words[:120]) and len(second.words) == 120
    turns = training_turns(second)
    assert len(turns) == 60 and sum(turn.reply.count(" w") for turn in turns) == 120


def test_a_clip_is_kept_above_80_percent_and_the_rest_is_told():
    words = spoken((0, 32), (100, 32), (140, 32))
    words = (*words[:1], words[1]._replace(text="eighty"), *words[2:33], words[33]._replace(text="broken"), *words[34:])
    outcome = run(words, FixedJudge(eighty=0.8, broken=None))
    assert [parse(line).start for line in outcome.lines] == [140]
    assert [(change.rule, change.time) for change in outcome.changes] == [(NOT_LIVE, 0), (NOT_JUDGED, 100)]
    assert outcome.changes[0].before.startswith("80% (fixed): w0 eighty w2")
    assert outcome.counts["clips"] == 3 and outcome.counts["clips kept"] == 1


def test_the_judge_reads_the_title_and_the_sentences():
    judge = FixedJudge()
    run(spoken((0, 16), (8, 16)), judge)
    ((title, asked),) = judge.asked
    assert title == "Reds - Blues" and [len(sentence.split()) for sentence in asked] == [16, 16]


@pytest.mark.parametrize(
    ("words", "judge", "reason"),
    [
        (spoken((0, 10)), FixedJudge(), "no 16 to 64 s with 2 words a second and no gap above 3 s"),
        (spoken((0, 32)), FixedJudge(w0=0.5), "no clip has more than 80% live commentary"),
        ((), FixedJudge(), "no 16 to 64 s with 2 words a second and no gap above 3 s"),
        ((TimedWord(None, None, "Goal!"),), FixedJudge(), "run svlm curate clean first"),
    ],
)
def test_a_video_without_a_clip_is_set_aside_with_its_reason(words, judge, reason):
    outcome = run(words, judge)
    assert not outcome.lines and reason in outcome.reason
