"""Where chunks of a sound meet no word is lost and none is told twice."""

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svlm_jax.curate.transcribing.audio import RATE
from svlm_jax.curate.transcribing.sound_chunks import OVERLAP, cut_into_chunks, stitch
from svlm_jax.curate.transcript import TimedWord

BLOCK = 4000


def blocks(samples: np.ndarray) -> list[np.ndarray]:
    return [samples[first : first + BLOCK] for first in range(0, len(samples), BLOCK)]


@given(st.floats(0.0, 130.0), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_chunks_cover_a_sound_share_their_ends_and_are_never_too_long(seconds, seed):
    samples = np.random.default_rng(seed).integers(-3000, 3000, round(seconds * RATE)).astype(np.int16)
    chunks = list(cut_into_chunks(blocks(samples), 30.0))
    for chunk in chunks:
        first = round(chunk.start * RATE)
        np.testing.assert_array_equal(chunk.samples, samples[first : first + len(chunk.samples)])
        assert chunk.seconds <= 30.0
        assert chunk.seconds >= min(len(samples) / RATE, 10.0)  # seconds alone are hard to understand
    for chunk, following in pairwise(chunks):
        assert chunk.last_cut == following.first_cut
        assert chunk.start + chunk.seconds == pytest.approx(chunk.last_cut + OVERLAP)
        assert following.start == pytest.approx(following.first_cut - OVERLAP)
    if chunks:
        assert (chunks[0].first_cut, chunks[-1].last_cut) == (0.0, len(samples) / RATE)


def test_a_cut_is_where_it_is_quietest():
    samples = np.random.default_rng(0).integers(-3000, 3000, 45 * RATE).astype(np.int16)
    samples[round(22.0 * RATE) : round(22.6 * RATE)] //= 100  # a breath, in a stadium
    first, _ = cut_into_chunks(blocks(samples), 30.0)
    assert 22.0 < first.last_cut < 22.6


def spoken(texts: list[str], step: float = 0.3, length: float = 0.25) -> list[TimedWord]:
    return [TimedWord(step * index, step * index + length, text) for index, text in enumerate(texts)]


def heard(words: list[TimedWord], start: float, end: float, chance: random.Random, jitter: float) -> list[TimedWord]:
    """What an engine makes of start..end: times off by a little, and a word that is cut through heard as something else."""
    result = []
    for word in words:
        if word.end <= start or word.start >= end:
            continue
        text = word.text if start <= word.start and word.end <= end else "uh"
        off = chance.uniform(-jitter, jitter)
        result.append(TimedWord(max(word.start + off, start), min(word.end + off, end), text))
    return result


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 5, 200]), st.floats(0.0, 0.14))
@settings(max_examples=40, deadline=None)
def test_each_word_of_one_who_never_pauses_is_told_once(seed, vocabulary, jitter):
    """Few words, said again and again ("goal goal goal"), are the hard case: any of them could be any other."""
    chance = random.Random(seed)
    words = spoken([f"w{chance.randrange(vocabulary)}" for _ in range(100)])
    cuts = [chance.uniform(9.0, 11.0), chance.uniform(19.0, 21.0)]
    bounds = [(0.0, cuts[0] + OVERLAP), (cuts[0] - OVERLAP, cuts[1] + OVERLAP), (cuts[1] - OVERLAP, 30.0)]
    joined = stitch([heard(words, start, end, chance, jitter) for start, end in bounds], cuts)
    assert [word.text for word in joined] == [word.text for word in words]
    for word, true in zip(joined, words, strict=True):
        assert word.start == pytest.approx(true.start, abs=0.15)


def test_case_and_commas_make_no_second_word():
    left, right = spoken(["and", "Red,", "scores"]), spoken(["And", "red", "scores!"])
    assert [word.text for word in stitch([left, right], [0.4])] == ["and", "Red,", "scores!"]


@pytest.mark.parametrize("cut", [1.28, 1.4, 1.52])
def test_a_word_that_two_chunks_hear_differently_is_told_once(cut):
    """By their middles alone, "2" before the cut and "two" after it would both count, or neither."""
    for off in (-0.09, 0.0, 0.09):
        left = [TimedWord(0.0, 0.5, "it's"), TimedWord(1.3, 1.5, "2")]
        right = [TimedWord(1.3 + off, 1.5 + off, "two"), TimedWord(2.0, 2.4, "nil")]
        joined = [word.text for word in stitch([left, right], [cut])]
        assert joined in (["it's", "2", "nil"], ["it's", "two", "nil"])


def test_words_without_times_stay_with_their_neighbours():
    left = [TimedWord(0.0, 0.4, "it's"), TimedWord(None, None, "2-1"), TimedWord(0.9, 1.2, "now")]
    right = [TimedWord(None, None, "2-1"), TimedWord(0.9, 1.2, "now"), TimedWord(None, None, "90"), TimedWord(1.8, 2.0, "gone")]
    assert [word.text for word in stitch([left, right], [1.0])] == ["it's", "2-1", "now", "90", "gone"]


def test_a_chunk_of_which_nothing_is_heard_takes_nothing_from_its_neighbours():
    words = spoken(["a", "b", "c", "d"])
    assert stitch([words, [], []], [2.0, 3.0]) == words
    assert stitch([[], words], [0.0]) == words
    assert stitch([[], []], [1.0]) == []
    assert stitch([], []) == []
