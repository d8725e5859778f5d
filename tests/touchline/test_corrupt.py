"""Claims about damaged transcripts, which prove curation: what was done is known, and the rule that is for it undoes it."""

import pytest

from benchmarks.curated import EDITORS, LISTED, curate
from benchmarks.word_accuracy import Accuracy, word_accuracy
from svlm_jax.cli import world
from svlm_jax.curate import transcript
from svlm_jax.curate.transcribing.subtitles import parse, transcription
from svlm_jax.data.annotation import Annotation, Word, parse_line
from svlm_jax.touchline.corrupt import RATES, Damage, corrupt, repair_minimally
from svlm_jax.touchline.film import annotate, play
from svlm_jax.touchline.subtitles import rough_words, to_webvtt
from tests.support.commands import command

SECONDS = 300


@pytest.fixture(scope="module")
def game() -> Annotation:
    return annotate(play(3, SECONDS), "match_3.mp4", SECONDS)


def curated(damaged: transcript.Transcript) -> transcript.Transcript:
    return curate(damaged, EDITORS[LISTED]).edited


def test_damage_is_a_function_of_its_seed(game):
    assert corrupt(game, "", 1) == corrupt(game, "", 1)
    assert corrupt(game, "", 1) != corrupt(game, "", 2)


def test_a_transcript_without_damage_is_the_truth_and_stays_so(game):
    untouched, log = corrupt(game, "Reds - Blues", 1, {})
    assert not log and word_accuracy(game.words, untouched.words).share == 1
    assert word_accuracy(game.words, curated(untouched).words).share == 1


def test_what_was_done_is_written_down_and_can_be_seen(game):
    damaged, log = corrupt(game, "", 1)
    assert {done.kind for done in log} == set(Damage)
    texts = [word.text for word in damaged.words]
    for done in log:
        assert 0 <= done.time <= game.end + 3 and done.before != done.after
        if done.kind in (Damage.MISHEARD, Damage.ADVERT):
            assert done.after.split()[0] in texts
    assert transcript.parse(transcript.to_record(damaged), "line") == damaged


# What the rules leave: loops right before the same words are said again, music of a word or two, and times off by 0.51 s.
@pytest.mark.parametrize(
    ("kind", "most_wrong"),
    [
        (Damage.MISHEARD, 0),
        (Damage.ADVERT, 0),
        (Damage.LOOP, 0.01),
        (Damage.MUSIC, 0.01),
        (Damage.STUCK, 0),
        (Damage.LOST, 0.005),
        (Damage.BACKWARD, 0.005),
        (Damage.OUTSIDE, 0),
        (Damage.DISORDER, 0),
    ],
)
def test_each_damage_is_undone_by_the_rule_that_is_for_it(game, kind, most_wrong):
    damaged, log = corrupt(game, "", 5, {kind: RATES[kind]})
    assert log and {done.kind for done in log} == {kind}
    before = word_accuracy(game.words, damaged.words).share
    assert before < 1 and 1 - word_accuracy(game.words, curated(damaged).words).share <= most_wrong


def test_a_game_with_all_damages_is_as_in_the_truth_again(game):
    damaged, _ = corrupt(game, "", 5)
    assert word_accuracy(game.words, damaged.words).share < 0.75
    assert word_accuracy(game.words, curated(damaged).words).share >= 0.99


def test_the_least_that_training_accepts_has_times_in_order(game):
    words = repair_minimally(corrupt(game, "", 5)[0])
    assert all(word.start <= word.end for word in words)
    assert list(words) == sorted(words, key=lambda word: word.start) == sorted(words, key=lambda word: word.end)


def test_subtitles_are_read_back_as_they_were_said(game):
    words = transcription(parse(to_webvtt(game.words))).words
    assert [word.text for word in words] == [word.text for word in game.words]
    assert max(abs(got.end - word.end) for got, word in zip(words, game.words, strict=True)) <= 0.1
    rough = [word.text for word in rough_words(game, 5)]
    assert rough != [word.text for word in game.words]
    assert [word.text for word in transcription(parse(to_webvtt(rough_words(game, 5)))).words] == rough


@pytest.mark.parametrize("subtitles", ["", "exact", "rough"])
def test_subtitles_lie_beside_their_film_under_its_name(tmp_path, subtitles):
    annotation = world._make_film(3, filming=world.Filming(tmp_path, 60, words_only=True, subtitles=subtitles))
    assert [path.name for path in tmp_path.iterdir()] == (["match_3.vtt"] if subtitles else [])
    if subtitles == "exact":
        words = transcription(parse((tmp_path / "match_3.vtt").read_text())).words
        assert [word.text for word in words] == [word.text for word in annotation.words]


@pytest.mark.slow
def test_a_folder_of_videos_with_subtitles_becomes_a_training_set(tmp_path):
    """The README's way, and what is in the windows is what was said."""
    games, files = tmp_path / "games", {name: tmp_path / f"{name}.jsonl" for name in ("words", "clean", "edited", "train")}
    small = ("--seconds", 300, "--size", "84x56")
    ways = (
        ("world", "--out", games, "--seeds", "0:2", "--subtitles", "rough", *small),
        ("curate", "transcribe", games, "--out", files["words"]),
        ("curate", "clean", "--in", files["words"], "--out", files["clean"]),
        ("curate", "edit", "--in", files["clean"], "--out", files["edited"], "--glossary", games / "glossary.json"),
        ("curate", "windows", "--in", files["edited"], "--out", files["train"], "--words-per-second", 0, "--stride", 24),
    )
    for name, *rest in ways:
        result = command(str(name), *rest)
        assert result.returncode == 0, result.stderr
    said = [parse_line(line, "train") for line in files["train"].read_text().splitlines()]
    truths = [parse_line(line, "truth") for line in (games / "matches.jsonl").read_text().splitlines()]
    for truth in truths:
        words = [word for window in said if str(window.video).endswith(str(truth.video)) for word in window.words]
        assert word_accuracy(truth.words, words).share >= 0.98


def test_words_are_counted_by_the_best_alignment():
    truth = [Word(1, 1.2, "Reds"), Word(1.2, 1.4, "pass."), Word(5, 5.2, "Reds"), Word(5.2, 5.4, "pass.")]
    assert word_accuracy(truth, truth) == Accuracy(4)
    assert word_accuracy(truth, truth[2:]) == Accuracy(4, deleted=2)
    assert word_accuracy(truth, [truth[0]._replace(text="Redz"), *truth[1:]]) == Accuracy(4, substituted=1)
    assert word_accuracy(truth, [*truth[:2], Word(3, 3.1, "Hi."), *truth[2:]]) == Accuracy(4, inserted=1)
    assert word_accuracy(truth, [*truth[:3], truth[3]._replace(end=5.95)]) == Accuracy(4, mistimed=1)
    assert word_accuracy(truth, [transcript.TimedWord(None, None, "Reds"), *truth[1:]]) == Accuracy(4, mistimed=1)
    assert word_accuracy(truth, []).share == 0
