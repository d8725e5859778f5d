"""An editor without a key: if this fails, adverts are trained on, or commentary is deleted."""

import pytest

from svlm_jax.curate.editing.edit import Context, Decision, EditStep
from svlm_jax.curate.editing.glossary import Glossary
from svlm_jax.curate.editing.rule_editor import RuleEditor
from svlm_jax.curate.patterns import Patterns
from svlm_jax.curate.transcript import TimedWord, Transcript, parse
from svlm_jax.errors import InputError

EDITOR = RuleEditor()
UNWANTED = {
    "advert": ["This match is brought to you by Acme Motors.", "Use code GOAL for ten percent off your first order.",
               "Download the app and place your bets now.", "Visit our website for tickets and merchandise."],
    "sponsor": ["Our sponsor today is Northern Bank.", "The replay is sponsored by Acme."],
    "channel": ["Don't forget to like and subscribe.", "Thanks for watching!", "Subtitles by the community"],
    "greeting": ["Thank you.", "Hello everyone and welcome back to the channel.", "Good evening from Anfield.",
                 "Hello, and a very warm welcome.", "Welcome back."],
    "studio": ["We will be right back after a short break.", "Stay tuned.", "Back to the studio.", "We'll be right back."],
    "music": ["[Music]", "♪ we are the champions ♪", "la la la la", "(Applause)"],
    "unintelligible": ["...", "uh, um", "[inaudible]"],
}  # fmt: skip
WANTED = (
    "Welcome to the Gold Cup.",
    "Kick-off, Reds. Reds 0-0 Blues.",
    "Goal! Goal! Goal! Goal!",
    "Oh, what a save!",
    "He scored just after the break.",
    "He breaks down the left, and it's a corner.",
    "That's a good evening for the away side.",
    "Liverpool wear the shirt of their sponsors.",
    "You don't go anywhere near him in that form.",
    "Hey, that's a foul.",
    "And they'll be right back in this game.",
    "The 4-2-3-1, with 45 per cent of the ball.",
)


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in UNWANTED.items() for text in texts])
def test_what_is_no_commentary_is_deleted(kind, text):
    assert EDITOR.patterns.kind(text) in UNWANTED and EDITOR.decide(text, EDITOR.glossary) == Decision("delete"), kind


@pytest.mark.parametrize("text", WANTED)
def test_commentary_is_kept(text):
    assert EDITOR.decide(text, EDITOR.glossary) == Decision("keep")


def transcript(text: str, title: str = "") -> Transcript:
    words = tuple(TimedWord(index * 0.5, index * 0.5 + 0.4, word) for index, word in enumerate(text.split()))
    return Transcript("a.mp4", 60.0, words, "en", title)


def edited(text: str, editor: RuleEditor = EDITOR, title: str = "") -> str:
    (record,) = EditStep(editor).run(transcript(text, title)).lines
    return " ".join(word.text for word in parse(record, "line").words)


def test_a_transcript_with_a_title_is_edited():
    text = "Redz pass. This match is brought to you by Acme. Bluse win it! Reads it well."
    assert edited(text, title="Reds - Blues") == "Reds pass. Blues win it! Reads it well."


def test_names_of_one_game_are_not_those_of_the_next():
    assert edited("Redz pass.", title="Greens - Blues") == "Redz pass."


def test_a_glossary_goes_before_the_title():
    editor = RuleEditor(Glossary({"Reds": ["Greenz"]}))
    assert edited("Greenz pass.", editor, title="Greens - Blues") == "Reds pass."


def test_settings_tell_one_editor_from_another():
    others = [RuleEditor(Glossary({"Reds": []})), RuleEditor(Glossary({"Reds": ["Redz"]})), RuleEditor(patterns=Patterns({}))]
    assert len({str(editor.settings) for editor in (EDITOR, *others)}) == 4 and RuleEditor().settings == EDITOR.settings


def test_context_without_a_title_is_enough():
    assert EDITOR.edit(Context("", None, 0, 120), []) == []


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[", "TOML"),
        ("advert = 'x'", "lists"),
        ("advert = ['(']", "regular expression"),
        ("advert = [1]", "lists"),
        ("advert = ['x{99999999999}']", "regular expression"),
        (f"advert = ['{'(' * 5000}{')' * 5000}']", "regular expression"),
        (f"advert = {'[' * 5000}", "recursion"),
    ],
    ids=range(7),
)
def test_a_bad_file_of_patterns_is_one_line(tmp_path, text, part):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=part) as error:
        Patterns.read(path, "--patterns")
    assert "mine.toml" in str(error.value) and len(str(error.value)) < 300


def test_expressions_with_groups_and_flags_mean_what_they_mean_alone():
    """Joined to one expression, the second would look for "oo" and the third would be an error."""
    patterns = Patterns({"odd": [r"(o)x\1", r"(l)\1", r"(?x) Goal # any"], "even": [r"(?P<a>b)", r"(?P<a>c)"]})
    assert [patterns.kind(text) for text in ("Well", "too", "goal", "oxo", "c")] == ["odd", "", "odd", "odd", "even"]
    assert patterns.count("odd", "all goal, well") == 3 and patterns.count("none", "all") == 0


def test_patterns_of_a_users_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("chatter = ['weather']\n")
    mine = RuleEditor(patterns=Patterns.read(path, "--patterns"))
    assert edited("Lovely weather. Good evening everyone.", mine) == "Good evening everyone."
