"""When streams of one batch speak: each goes by its own silence, pacing and alert, and says otherwise what it says alone."""

from dataclasses import replace

import numpy as np
import pytest

from svlm_jax.errors import InputError
from svlm_jax.stream import state_io
from svlm_jax.stream.alerts import AlertRule
from svlm_jax.stream.events import Alert, Caption, TokenDelta
from svlm_jax.stream.pacing import Pacing
from svlm_jax.stream.runner import Runner
from svlm_jax.stream.session import Session
from svlm_jax.stream.speaking import Speaking
from svlm_jax.stream.stream_settings import StreamSettings
from tests.support.sessions import GREEDY, WINDOWS, chunk, model, tokenizer  # noqa: F401
from tests.support.sessions import StreamConfig as Config

GRID = (1, 4, 6)
CHUNKS = 6
RULE = AlertRule("Is it red?", yes=("Yes",), no=("No",))


@pytest.fixture(scope="module")
def session(model, tokenizer):
    config = Config(**WINDOWS, max_new_tokens=8, question_tokens=300)
    return Session(model, tokenizer, config, GRID, sampling=GREEDY, num_streams=2, silence_rule=True, choices=True)


def watched(session: Session, settings: dict[str, StreamSettings], numbers=range(CHUNKS), runner=None, **options):
    """The events of streams of these settings, and their runner."""
    if runner is None:
        runner = Runner(session)
        for name, each in settings.items():
            runner.join(name, each)
    events = []
    for number in numbers:
        events += runner.tick({name: chunk(number, seed) for seed, name in enumerate(runner.batch_index)}, **options)
    return events, runner


def said(events, stream: str) -> list[list[int]]:
    return [event.tokens.tolist() for event in events if isinstance(event, Caption) and event.stream == stream]


@pytest.fixture(scope="module")
def free(session):
    return watched(session, {"a": StreamSettings(), "b": StreamSettings()})[0]


def test_a_threshold_makes_one_stream_silent_and_leaves_the_other_as_it_was(session, free):
    """Else the slider of one viewer silences everybody."""
    events, _ = watched(session, {"a": StreamSettings(), "b": StreamSettings(sampling=replace(GREEDY, silence=0.0))})
    silent = [session.turn_tokenizer.silence, session.turn_tokenizer.end_of_turn]
    assert said(events, "a") == said(free, "a")
    assert said(events, "b") == [silent] * CHUNKS
    captions = [event for event in events if isinstance(event, Caption)]
    assert all(0 <= caption.probability <= 1 for caption in captions) and {c.text for c in captions if c.stream == "b"} == {""}


def test_who_asks_is_answered_in_spite_of_silence_and_pacing(session):
    quiet = StreamSettings(sampling=replace(GREEDY, silence=0.0), pacing=Pacing(min_gap=100))
    (first, _), runner = watched(session, {"a": quiet, "b": StreamSettings()}, range(1))
    asked, _ = runner.tick({"a": chunk(1, question="What is it?"), "b": chunk(1)})
    assert isinstance(first, Caption) and isinstance(asked, Caption)
    assert first.text == "" and len(asked.tokens) > 2 and asked.probability is None
    assert asked.question == "What is it?" and asked.answer and asked.text.startswith(asked.answer)


def test_a_paced_stream_retains_the_silence_that_its_model_would_say(session, free):
    """Else what it says next differs from what it would have said after a silence of its own."""
    pacing = Pacing(min_gap=2, max_talk=1)
    events, runner = watched(session, {"a": StreamSettings(pacing=pacing), "b": StreamSettings()})
    spoken = [event.text != "" for event in events if isinstance(event, Caption) and event.stream == "a"]
    assert spoken == [True, False, False] * 2
    forced = {number: np.array(tokens, np.int32) for number, tokens in enumerate(said(events, "a")) if not spoken[number]}
    _, by_hand = watched(session, {"a": StreamSettings(), "b": StreamSettings()}, ())
    for number in range(CHUNKS):
        ids = {"a": forced[number]} if number in forced else None
        by_hand.tick({"a": chunk(number), "b": chunk(number, 1)}, forced=ids)
    assert by_hand.sequence("a").ids.tolist() == runner.sequence("a").ids.tolist()
    assert said(events, "b") == said(free, "b")


def test_an_alert_is_told_on_change_and_its_answers_are_no_commentary(session, free):
    """Else a page shows a No each second, or rings each second."""
    deltas = []
    rule = replace(RULE, threshold=1e-6)
    events, _ = watched(session, {"a": StreamSettings(), "b": StreamSettings(alert=rule)}, on_token=deltas.append)
    assert said(events, "a") == said(free, "a") and {delta.stream for delta in deltas} == {"a"}
    alerts = [event for event in events if isinstance(event, Alert)]
    assert [(alert.stream, alert.state, alert.start, alert.text, alert.name) for alert in alerts] == [
        ("b", True, 0, "Yes", "Is it red?")
    ]
    turns = session.turn_tokenizer
    yes = [*turns.tokenizer.encode("Yes", add_special_tokens=False), turns.end_of_turn]
    assert said(events, "b") == [yes] * CHUNKS
    captions = [event for event in events if isinstance(event, Caption) and event.stream == "b"]
    assert all(not caption.text and not caption.question and 0 < caption.probability < 1 for caption in captions)
    assert not any(isinstance(event, TokenDelta) and event.stream == "b" for event in events)


@pytest.mark.slow  # programs that record are compiled for it
def test_the_probability_of_yes_is_that_of_the_logits(session):
    runner = Runner(session)
    runner.join("a", StreamSettings(alert=RULE))
    caption, *_ = runner.tick({"a": chunk(0)}, record=True)
    assert isinstance(caption, Caption) and caption.logits is not None
    yes, no = (session.turn_tokenizer.tokenizer.encode(text, add_special_tokens=False)[0] for text in ("Yes", "No"))
    scores = np.exp(caption.logits[0, [yes, no]].astype(np.float64))
    np.testing.assert_allclose(caption.probability, scores[0] / scores.sum(), rtol=1e-5)


def test_a_change_to_yes_is_described_as_json_or_told_to_be_none(session):
    """The chunk after the change asks for it; the condition is asked again in the next one."""
    rule = replace(RULE, threshold=1e-6, schema={"type": "object"})
    events, runner = watched(session, {"a": StreamSettings(alert=rule), "b": StreamSettings()}, range(3))
    first, second = (event for event in events if isinstance(event, Alert))
    assert first.state and first.data is None and not first.error
    assert second.state and second.start == 1 and second.error == "no JSON" and second.text
    assert not runner.speaking["a"].alert.describes


def test_a_saved_stream_goes_on_in_the_same_talk_and_with_the_same_alert(session, tmp_path):
    """Else a restart rings again for what was told before."""
    rule, pacing = replace(RULE, threshold=1e-6), Pacing(min_gap=3, max_talk=1)
    settings = {"a": StreamSettings(pacing=pacing), "b": StreamSettings(alert=rule)}
    whole, _ = watched(session, settings)
    first, runner = watched(session, settings, range(3))
    with state_io.Writer(tmp_path / "a.state", session) as writer:
        runner.save(writer, {})
        writer.wait()
    resumed = Runner(session)
    resumed.resume(tmp_path / "a.state")
    rest, _ = watched(session, settings, range(3, CHUNKS), resumed)
    assert [said(first, name) + said(rest, name) for name in "ab"] == [said(whole, name) for name in "ab"]
    assert sum(isinstance(event, Alert) for event in [*first, *rest]) == 1


@pytest.mark.parametrize(
    "saved", [[], {"a": 3}, {"a": {}}, {"a": {"talk": [1], "newline": 0, "yes": 0, "alert": [False, 0, False]}}]
)
def test_a_state_of_another_form_is_refused(session, saved, tmp_path):
    with pytest.raises(InputError, match="when streams have spoken, of another form"):
        Speaking(session.turn_tokenizer).restore({"speaking": saved}, "a", tmp_path / "a.state")


def test_rules_change_while_a_stream_plays(session):
    """A rule that stays goes on, another one begins anew."""
    rule = replace(RULE, threshold=1e-6)
    _, runner = watched(session, {"a": StreamSettings(alert=rule), "b": StreamSettings()}, range(2))
    runner.change("a", StreamSettings(alert=rule, pacing=Pacing(min_gap=1)))
    events, _ = watched(session, {}, range(2, 4), runner)
    assert not [event for event in events if isinstance(event, Alert)]
    runner.change("a", StreamSettings(alert=replace(rule, name="again")))
    events, _ = watched(session, {}, range(4, 6), runner)
    assert [event.name for event in events if isinstance(event, Alert)] == ["again"]


def test_a_session_without_answers_to_choose_from_refuses_a_rule(model, tokenizer):
    session = Session(model, tokenizer, Config(**WINDOWS), GRID)
    with pytest.raises(InputError, match=r"^alert of a stream: got Is it red\?, expected none in this session; "):
        session.join(session.init_state(), 0, StreamSettings(alert=RULE))
