"""What a decision does to words and their times, and that nothing is edited twice, lost, or left without a record."""

from hypothesis import given, settings
from hypothesis import strategies as st

from svlm_jax.curate.editing.edit import Decision, EditStep, apply, ask, shares
from svlm_jax.curate.sentences import Sentence, split_sentences
from svlm_jax.curate.transcript import TimedWord, Transcript, parse, to_record
from svlm_jax.data.annotation import Annotation, Word
from svlm_jax.data.annotation import parse as parse_annotation
from svlm_jax.data.windows import to_record as window_record
from tests.curate.test_sentences import said

KEEP, DELETE = Decision("keep"), Decision("delete")


class Scripted:
    """An editor that decides by what a sentence is."""

    def __init__(self, **decisions: Decision) -> None:
        self.settings = {"editor": "scripted"}
        self.decisions, self.asked = decisions, []

    def edit(self, context, split_sentences):
        self.asked.append((context, [sentence.text for sentence in split_sentences]))
        return [self.decisions.get(sentence.text.rstrip(".!?"), KEEP) for sentence in split_sentences]


def transcript(words: list[TimedWord], **fields) -> Transcript:
    return Transcript("game.mp4", 600.0, tuple(words), "en", "Reds - Blues", **fields)


def edited(outcome) -> Transcript:
    [line] = outcome.lines
    return parse(line, "line")


def test_kept_words_keep_their_times_corrected_ones_share_the_sentences_and_deleted_ones_go():
    words = said("Redz shoot. Buy now! Wide.", 10.0)
    outcome = EditStep(Scripted(**{"Redz shoot": Decision("edit", "The Reds shoot again."), "Buy now": DELETE})).run(
        transcript(words)
    )
    assert [(w.start, w.end, w.text) for w in edited(outcome).words] == [
        (10.0, 10.25, "The"),
        (10.25, 10.5, "Reds"),
        (10.5, 10.75, "shoot"),
        (10.75, 11.0, "again."),
        (12.0, 12.5, "Wide."),
    ]
    assert outcome.changes == (
        ("edit", 10.0, "Redz shoot.", "The Reds shoot again."),
        ("delete", 11.0, "Buy now!", ""),
    )
    assert edited(outcome).steps == ("edit",)


def test_counts_by_sentences_words_and_segments():
    words = (
        said("One two three.") + said("Ad.", 130.0) + said("Wrong here.", 250.0) + said("Right.", 260.0) + said("Odd.", 370.0)
    )
    decisions = {
        "Ad": DELETE,
        "Wrong here": Decision("edit", "Good here."),
        "Odd": Decision("keep", flag="no JSON in the answer"),
    }
    outcome = EditStep(Scripted(**decisions)).run(transcript(words))
    expected = {"segments": 4, "sentences kept": 3, "sentences edited": 1, "sentences deleted": 1, "sentences flagged": 1}
    expected |= {"words kept": 5, "words edited": 2, "words deleted": 1}
    expected |= {"segments kept": 2, "segments edited": 1, "segments deleted": 1}
    assert outcome.counts == expected
    assert outcome.changes[-1] == ("flag: no JSON in the answer", 370.0, "Odd.", "Odd.")
    assert shares(outcome.counts) == {"kept": 0.6, "edited": 0.2, "deleted": 0.2}
    assert shares(outcome.counts, "words") == {"kept": 0.625, "edited": 0.25, "deleted": 0.125}
    assert shares(outcome.counts, "segments") == {"kept": 0.5, "edited": 0.25, "deleted": 0.25}
    assert shares({}) == {"kept": 0, "edited": 0, "deleted": 0}


def test_what_was_edited_before_passes_as_it_is_and_nobody_is_asked():
    editor = Scripted(**{"Buy now": DELETE})
    before = transcript(said("Buy now."), steps=("clean", "edit"))
    outcome = EditStep(editor).run(before)
    assert outcome.lines == (to_record(before),) and outcome.counts == {"videos edited before": 1} and not editor.asked


def test_an_editor_knows_the_title_and_the_sentences_before_as_they_came_in():
    editor = Scripted(**{"One": Decision("edit", "Won.")})
    words = said("Zero. One. Two. Three.") + said("Four.", 130.0)
    EditStep(editor).run(transcript(words, others={"competition": "Gold Cup", "date": 3}))
    (first, _), (second, asked) = editor.asked
    assert first.title == "Reds - Blues, Gold Cup" and first.previous == ()
    assert (second.start, second.end, second.previous) == (120, 240, ("One.", "Two.", "Three.")) and asked == ["Four."]


def test_a_video_of_which_nothing_is_left_is_set_aside_with_its_changes():
    outcome = EditStep(Scripted(**{"Buy now": DELETE})).run(transcript(said("Buy now.")))
    assert outcome.reason == "all sentences are deleted" and outcome.changes == (("delete", 0.0, "Buy now.", ""),)
    assert EditStep(Scripted()).run(transcript([])).reason == "no words"


def test_a_video_with_words_without_times_is_set_aside_with_the_remedy():
    outcome = EditStep(Scripted()).run(transcript([TimedWord(None, None, "Goal!")]))
    assert outcome.lines == () and outcome.reason == "not to be edited, expected both times; clean first: svlm curate clean"
    assert outcome.changes == (("not to be edited", None, "game.mp4 content[0]: 'Goal!' without times", ""),)


def test_characters_of_a_script_without_blanks_are_words_of_their_own():
    sentence = Sentence(0, (TimedWord(0.0, 2.0, "我们"), TimedWord(2.0, 3.0, "赢!")))
    assert [word.text for word in apply(sentence, Decision("edit", "他们赢。"))] == ["他", "们", "赢。"]


def test_aligned_words_that_did_not_change_keep_their_times():
    times = [
        (0.0, 0.4, "Then"),
        (0.5, 0.9, "Redz"),
        (1.0, 1.5, "Untied"),
        (3.0, 3.2, "shoot"),
        (3.2, 3.6, "uh"),
        (5.0, 5.5, "wide."),
    ]
    sentence = Sentence(0, tuple(TimedWord(*time) for time in times))
    decision = Decision("edit", "Then the Reds shoot well wide. Oh")
    assert [tuple(word[:3]) for word in apply(sentence, decision, "aligned")] == [
        (0.0, 0.4, "Then"),
        (0.5, 1.0, "the"),
        (1.0, 1.5, "Reds"),
        (3.0, 3.2, "shoot"),
        (3.2, 3.6, "well"),
        (5.0, 5.5, "wide."),
        (5.5, 5.5, "Oh"),
    ]
    assert apply(sentence, Decision("edit", "Well, Then wide."), "aligned")[0] == (0.0, 0.0, "Well,", None)
    assert [word.start for word in apply(sentence, Decision("edit", "a b c d e"))] == [0.0, 1.1, 2.2, 3.3, 4.4]


TIMES = st.lists(st.tuples(st.floats(0, 50), st.floats(0, 5)), min_size=1, max_size=30)


@settings(max_examples=25, deadline=None)
@given(
    TIMES,
    st.lists(st.sampled_from(["a.", "b", "c!", "d"]), min_size=30, max_size=30),
    st.integers(0, 3),
    st.sampled_from(["even", "aligned"]),
)
def test_corrected_words_are_in_the_order_that_training_wants_also_where_words_overlap(times, texts, extra, mode):
    starts, now = sorted(start for start, _ in times), 0.0
    words = []
    for start, (_, length), text in zip(starts, times, texts, strict=False):
        now = max(now, start + length)
        words.append(TimedWord(start, now, text))

    editor = Scripted()
    editor.edit = lambda context, split_sentences: [
        Decision("edit", f"x {s.text} " + "y " * extra) if s.first % 3 else KEEP for s in split_sentences
    ]
    result = edited(EditStep(editor, times=mode).run(transcript(words)))
    spoken = tuple(Word(word.start, word.end, word.text) for word in result.words)
    parse_annotation(window_record(Annotation("game.mp4", 0, 600, "", "", spoken)))
    assert max(word.end for word in result.words) == words[-1].end and result.words[0].start == words[0].start


def test_questions_are_of_all_sentences_once():
    words = [word for minute in range(10) for word in said("Go on. And so.", 60.0 * minute)]
    asked = [sentence for _, segment in ask(transcript(words)) for sentence in segment.sentences]
    assert asked == split_sentences(words)
