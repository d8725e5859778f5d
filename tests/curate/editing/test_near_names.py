"""A word may be a mishearing of a name: if this fails, names stay wrong in training data, or right words become names."""

import pytest

from svlm_jax.curate.editing.near_names import changes, folded, is_near, is_ordinary, sound


@pytest.mark.parametrize(
    "word",
    ["pass", "passes", "Passing", "crosses", "stopping", "tries", "making", "keeper's", "bluest", "They're", "can\u2019t"],
)
def test_ordinary_words_and_their_inflections_are_ordinary(word):
    assert is_ordinary(word)


@pytest.mark.parametrize("word", ["Salah", "Redz", "Wites", "Tottenham", "Olympiakos"])
def test_names_are_not_ordinary(word):
    assert not is_ordinary(word)


def test_accents_and_apostrophes_make_no_other_word():
    assert [folded(word) for word in ("Agüero", "O'Neill", "Højbjerg", "Šeško")] == ["aguero", "oneill", "hojbjerg", "sesko"]


@pytest.mark.parametrize(
    ("a", "b", "number"),
    [("reds", "reds", 0), ("reds", "redz", 1), ("salah", "slaah", 1), ("", "abc", 3), ("kitten", "sitting", 3)],
)
def test_letters_that_differ_are_counted(a, b, number):
    assert changes(a, b) == changes(b, a) == number


def test_what_an_asr_mixes_up_sounds_the_same():
    assert sound("reds") == sound("rets") == sound("redz")
    assert sound("philips") == sound("filips")
    assert sound("salah") != sound("saka")


@pytest.mark.parametrize(
    ("word", "name"),
    [("redz", "reds"), ("rets", "reds"), ("blax", "blacks"), ("pinx", "pinks"),
     ("whights", "whites"), ("totnham", "tottenham"), ("tottenam", "tottenham"), ("kosta", "costa"),
     ("shakiri", "shaqiri"), ("levandowski", "lewandowski"), ("matich", "matic")],
)  # fmt: skip
def test_mishearings_are_near(word, name):
    assert is_near(word, name)


@pytest.mark.parametrize(
    ("word", "name"),
    [("rome", "roma"), ("rama", "roma"), ("vela", "villa"), ("clyne", "glenn"), ("stokes", "stoke"),
     ("kane", "mane"), ("son", "sun"),
     ("everton", "preston"), ("silva", "salah")],
)  # fmt: skip
def test_other_names_are_not(word, name):
    assert not is_near(word, name)
