"""Names that are wrong in a commentary become right, and nothing else changes: else training data gets new mistakes."""

import json

import pytest

from svlm_jax.curate.editing.glossary import Glossary, Replacement, names_in_title
from svlm_jax.errors import InputError

GAME = Glossary({"Reds": ["Redz", "the Rets"], "Blues": [], "Kevin De Bruyne": ["the brain"], "Agüero": [], "Leeds United": []})


@pytest.mark.parametrize(
    ("text", "corrected"),
    [
        ("Redz pass.", "Reds pass."),
        ("And the rets, again!", "And Reds, again!"),  # a phrase, whatever its capitals
        ("Bluse shoot!", "Blues shoot!"),  # near to a name alone
        ('"Redz\'s corner" he says', '"Reds\'s corner" he says'),  # marks and the possessive stay
        ("Aguero scores", "Agüero scores"),
        ("Kevin De Bruyna turns", "Kevin De Bruyne turns"),  # a word of a longer name
        ("The brain, what a pass", "Kevin De Bruyne, what a pass"),
    ],
)
def test_misheard_names_become_right(text, corrected):
    assert GAME.corrected(text)[0] == corrected


@pytest.mark.parametrize(
    "text",
    [
        "Reds pass.",
        "Reads the game well.",  # ordinary, with a capital
        "He sees red and blue, the beds and the rods.",
        "redz",  # a listed text is
        "Unitad",  # near to an ordinary word of a longer name, which is no name by itself
        "Real Madrid, Salah, Kane.",
        "the, rets",  # marks within: two phrases
        "",
    ],
)
def test_right_names_and_ordinary_words_stay(text):
    expected = "Reds" if text == "redz" else text
    assert GAME.corrected(text)[0] == expected


def test_replacements_are_told_in_order():
    assert GAME.corrected("Redz to the Rets, (Bluse)")[1] == [
        Replacement("Redz", "Reds"), Replacement("the Rets", "Reds"), Replacement("Bluse", "Blues"),
    ]  # fmt: skip


def test_a_text_that_is_right_is_right_the_second_time():
    once = GAME.corrected("Redz to the Rets, (Bluse) and Aguero's friend De Bruyna")[0]
    assert GAME.corrected(once) == (once, [])


def test_a_word_near_two_names_is_left():
    assert Glossary({"Matic": [], "Matip": []}).corrected("Matis wins it") == ("Matis wins it", [])


def test_a_name_that_is_listed_is_not_taken_for_another():
    assert Glossary({"Matic": [], "Matip": []}).corrected("Matip wins it") == ("Matip wins it", [])


def test_other_scripts_pass_unharmed():
    text = "ゴール 曼联 进球 了 Гол é 🎉"
    assert GAME.corrected(text) == (text, [])


@pytest.mark.parametrize(
    ("title", "names"),
    [
        ("Reds - Blues", ["Reds", "Blues"]),
        ("Manchester United vs. West Ham | Premier League 2015", ["Manchester United", "West Ham"]),
        ("2015-10-31 - 15-45 Chelsea 1 - 3 Liverpool", ["Chelsea", "Liverpool"]),
        ("Real Madrid 2-1 Barça (Full Match)", ["Real Madrid", "Barça"]),
        ("Highlights of Salah at Anfield", ["Salah", "Anfield"]),
        ("FULL MATCH HD", []),
        (" " * 300_000 + "Reds\n-\nBlues", ["Reds", "Blues"]),
        ("", []),
    ],
)
def test_a_title_names_its_teams(title, names):
    assert names_in_title(title) == names


def test_names_of_a_title_leave_the_glossary_as_it_is():
    both = GAME.with_names(["Redz", "Reds", "Greens"])  # the first is a mishearing: no name
    assert list(both.names) == [*GAME.names, "Greens"] and both.names["Reds"] == ["Redz", "the Rets"]
    assert both.corrected("Redz to Greans") == (
        "Reds to Greens",
        [Replacement("Redz", "Reds"), Replacement("Greans", "Greens")],
    )


def read(tmp_path, value):
    path = tmp_path / "names.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return Glossary.read(path)


def test_a_file_of_names(tmp_path):
    assert read(tmp_path, {"Reds": ["Redz"], "Blues": []}).corrected("Redz beat Bloes")[0] == "Reds beat Blues"


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("[", "names"),
        ([], "names"),
        ({"Reds": "Redz"}, "a list of texts"),
        ({"Reds": [""]}, "a list of texts"),
        ({" ": []}, "without letters"),
        ({"Reds": ["Rets"], "Rats": ["rets"]}, "leave one out"),
        ({"Reds": ["blues"], "Blues": []}, "no name itself"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, value, part):
    with pytest.raises(InputError, match=part) as error:
        read(tmp_path, value)
    assert "names.json" in str(error.value) and len(str(error.value)) < 300
