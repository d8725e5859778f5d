"""What a reply says. A parse that is too kind gives a model points for words it never said; one too harsh takes them away."""

import pytest

from svlm_jax.eval import answers


@pytest.mark.parametrize(
    "reply, expected",
    [
        ("A", "A"),
        ("A.", "A"),
        (" (B) ", "B"),
        ("b", "B"),
        ("(c).", "C"),
        ("**D**", "D"),
        ("C)", "C"),
        ("B:", "B"),
        ("A. A red kite", "A"),
        ("B. A red kite", "B"),
        ("C. B flat", "C"),
        ("D - the keeper", "D"),
        ("The answer is C", "C"),
        ("The answer is (C).", "C"),
        ("the correct answer is: **B**", "B"),
        ("Answer: D", "D"),
        ("Answer:\nB. a red kite", "B"),
        ("I would choose option B.", "B"),
        ("I think B", "B"),
        ("It is B, because a man runs.", "B"),
        ("A man runs, so the answer is D.", "D"),
        ("A is correct", "A"),
        ("B is correct, A is not", None),
        ("B\nB is the one on the left", "B"),
        ("All of them", None),
        ("A red kite", None),
        ("A or B", None),
        ("A, B", None),
        ("(A) or (B)", None),
        ("B and C", None),
        ("The answer is A or the answer is B", None),
        ("neither B nor C", None),
        ("E", None),  # of four options
        ("I think so", None),
        ("", None),
        (None, None),
        ("...", None),
        ("ABCD", None),
        ("Because", None),
        ("3", None),
    ],
)
def test_letter(reply, expected):
    assert answers.letter(reply, 4) == expected


def test_a_letter_is_among_the_options_of_its_item():
    assert answers.letter("C", 2) is None
    assert answers.letter("E", ["v", "w", "x", "y", "z"]) == "E"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("A red kite.", "B"),
        ("a red  kite", "B"),
        ("Reds 1-0 Blues", "A"),
        ("Reds 1-0 Blues.\n Blues pass.", "A"),  # commentary follows the answer in a stream
        ("Blues pass.\n Reds 1-0 Blues.", None),
        ("C", "C"),  # a letter, though it is the text of the fourth
        ("I", None),
        ("A red kite or a blue one", None),
        ("A kite", None),
        ("twice", None),
        ("", None),
    ],
)
def test_a_reply_that_repeats_the_text_of_one_option_names_it(reply, expected):
    assert answers.letter(reply, ["Reds 1-0 Blues.", "a red kite", "twice", "C", "Twice"]) == expected
    assert answers.letter(reply, ["A. Reds 1-0 Blues.", "B. a red kite", "C. twice", "D. C", "E. Twice"]) == expected


@pytest.mark.parametrize(
    "reply, expected",
    [
        ("Yes", True),
        ("no.", False),
        ("**No**, not yet", False),
        ("Yes, 3", True),
        ("Yes. There is no doubt", True),
        ("The answer is yes", True),
        ("Answer: No", False),
        ("Y", True),
        ("n", False),
        ("Not sure", None),
        ("Nobody", None),
        ("yesterday", None),
        ("I have no idea", None),
        ("Yes and no", None),
        ("No, yes", None),
        ("Yes/No", None),
        ("", None),
        (None, None),
        ("1", None),
    ],
)
def test_yes_or_no(reply, expected):
    assert answers.yes_no(reply) is expected


@pytest.mark.parametrize(
    "reply, expected",
    [
        ("3", 3),
        ("3.", 3),
        ("10", 10),
        ("Yes, 3", 3),
        ("They did it 3 times.", 3),
        ("(4)", 4),
        ("one", 1),
        ("Ten.", 10),
        ("**0**", 0),
        ("no one", None),
        ("one of them", None),
        ("1 0", None),
        ("3-4", None),
        ("3 or 4", None),
        ("2.5", None),
        ("2:1", None),
        ("-1", None),
        ("3rd", None),
        ("1,000", None),
        ("9" * 30, None),
        ("", None),
        (None, None),
    ],
)
def test_number(reply, expected):
    assert answers.number(reply) == expected


def test_official_rules_are_as_kind_as_the_published_scripts():
    assert answers.official_contains("All of them", "A")
    assert answers.official_contains("B, not A", "A")
    assert not answers.official_contains("a", "A")
    assert not answers.official_contains(None, "A")
    assert answers.official_yes_no("Not sure", False)
    assert answers.official_yes_no("Y", True)
    assert answers.official_yes_no("Yes and No", True) and answers.official_yes_no("Yes and No", False)
    assert not answers.official_yes_no("yes", True)
    assert not answers.official_yes_no("y", True)
    assert not answers.official_yes_no(None, True)
    assert answers.official_count("1 or 0", 10)
    assert answers.official_count("3 times", 3)
    assert not answers.official_count("three", 3)
    assert not answers.official_count(None, 0)
    assert answers.official_first("All of them", "A")
    assert not answers.official_first(" A", "A")
    assert not answers.official_first("", "A")
    assert not answers.official_first(None, "A")


@pytest.mark.parametrize(
    "reply, phrase, expected",
    [
        ("Now it is 3!", "3", True),
        ("13 points", "3", False),
        ("it is 2:3", "3", False),
        ("40 - 30", "40", True),
        ("The score is 2-1.", "2-1", True),
        ("12-1", "2-1", False),
        ("GOAL by  white team", "Goal by white team", True),
        ("", "3", False),
        ("anything", "", False),
    ],
)
def test_a_phrase_is_found_as_words(reply, phrase, expected):
    assert answers.contains_phrase(reply, phrase) is expected
