"""Alert mode on the host: when a change is told, what is refused, and that its questions have room for ever."""

import numpy as np
import pytest

from svlm_jax.config import StreamConfig
from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.families.chat import opening
from svlm_jax.inputs import Clip
from svlm_jax.stream import policy, sequence
from svlm_jax.stream.alerts import AlertRule, AlertState, parse_description
from svlm_jax.stream.sequence import Chunk
from svlm_jax.stream.speaking import alert_config, choice_of
from svlm_jax.stream.stream_settings import StreamSettings
from svlm_jax.stream.turn_tokenizer import longest_turn
from tests.support.engine import turns

GRID = (1, 2, 2)
SCHEMA = {"type": "object", "properties": {"team": {"type": "string"}}, "required": ["team"]}
LONG = AlertRule("Who has the ball? " * 3, ("red",), ("blue",), schema=SCHEMA)
LATE = 9_000_000  # seconds: their texts are as long as any
RULE = AlertRule("Who has the ball?", yes=("red",), no=("blue", "nobody"))


def marks(rule: AlertRule, answers: str) -> str:
    """What is told after each answer ("y", "n"): "+" and "-" for changes."""
    state, result = AlertState(), ""
    for answer in answers:
        before, state = state, state.answered(rule, answer == "y")
        result += " " if state.on == before.on else "+" if state.on else "-"
    return result


@pytest.mark.parametrize(
    ("confirm", "answers", "changes"),
    [(1, "nnyynny", "  + - +"), (2, "ynyynyynn", "   +    -"), (3, "yyyyynnyn", "  +      "), (1, "nnn", "   ")],
)
def test_only_a_confirmed_change_is_told(confirm, answers, changes):
    """Else a camera rings the whole night, or for a single wrong answer."""
    assert marks(AlertRule("a?", confirm=confirm), answers) == changes


def asked_for_ever(rule: AlertRule, config: StreamConfig, chunks: int, *, cut: bool = True) -> tuple[int, int]:
    """(slots in use at most, slots there are) of a stream in alert mode that is asked with each chunk; every fifth request is
    one for JSON, if the rule has a schema."""
    config = alert_config(rule, config, turns()) if cut else config
    begin = opening("", turns().tokenizer, turns().config)
    longest = longest_turn(GRID, turns().tokenizer, turns().config)
    capacity = policy.capacity(config, begin.spans, longest, chunks=200)
    seq = sequence.new_stream(begin, StreamSettings(alert=rule), config, Sampling())
    choice = choice_of(rule, turns(), config.max_new_tokens)
    clip = Clip(np.zeros((4, 1176), np.float32), GRID, 1.0, video=True)
    most = 0
    for number in range(chunks):
        describes = rule.schema is not None and number % 5 == 4
        question = rule.json_question if describes else rule.question
        seq, _ = sequence.next_turn(seq, Chunk(LATE + number, LATE + number + 1, clip, question), turns())
        slots, reply_slots = policy.allocate(seq.slots, config.max_new_tokens, capacity)
        most = max(most, len(slots) + len(reply_slots))
        answer = np.array(choice.answers[number % len(choice.answers)], np.int32)
        reply = np.full(config.max_new_tokens, 5, np.int32) if describes else answer
        seq = sequence.with_reply(seq._replace(slots=slots), reply, reply_slots, turns())
    return most, capacity


@pytest.mark.parametrize(
    ("rule", "changes", "chunks"),
    [
        pytest.param(LONG, {}, 3600, marks=pytest.mark.slow),  # an hour
        (LONG, {}, 40),
        (AlertRule("ж" * 60, ("red",), ("blue",)), {}, 20),  # room for two such questions
        (RULE, {"vision_window": 1, "text_rounds": 32}, 40),
        (RULE, {"mode": "window"}, 60),
        (RULE, {"mode": "recompute"}, 20),
        (RULE, {"previous_text_turn": False}, 20),
    ],
)
def test_the_question_has_room_in_every_chunk(rule, changes, chunks):
    """Else a camera is asked for some minutes, and then silently no more."""
    most, capacity = asked_for_ever(rule, StreamConfig(**changes), chunks)
    assert most <= capacity


def test_with_the_usual_windows_the_questions_run_out():
    """What `alert_config` is for."""
    with pytest.raises(InputError, match=r"^question: got \d+ tokens of questions retained, expected at most 256 "):
        asked_for_ever(LONG, StreamConfig(), 16, cut=False)


def test_windows_are_only_made_smaller():
    assert alert_config(RULE, StreamConfig(vision_window=2), turns()).vision_window == 2
    config = alert_config(RULE, StreamConfig(), turns())
    assert (config.vision_window, config.text_rounds) == (4, 4) and config.sink == StreamConfig().sink


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        (AlertRule("a?", ("red ball",), ("red",)), "^alert answer: got 'red', which begins as another one, "),
        (AlertRule("a?", ("ж" * 30,), ("red",)), "^alert answer: got 'ж+', 61 tokens, expected at most 20 "),
        (AlertRule("a?", ("<|im_end|>",), ("red",)), "^alert answer: got special token"),
    ],
)
def test_answers_that_no_reply_can_be_are_refused(rule, line):
    with pytest.raises(InputError, match=line):
        choice_of(rule, turns(), 20)


def test_a_question_without_room_is_refused_at_the_start():
    for rule in (AlertRule("ж" * 200), AlertRule("a?", schema={"type": "object", "description": "ж" * 200})):
        with pytest.raises(InputError, match=r"^alert question: got \d+ tokens, expected at most 256 \(question_tokens\)"):
            alert_config(rule, StreamConfig(), turns())


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ({"question": " "}, "^alert question: "),
        ({"yes": ()}, "^alert yes: "),
        ({"no": ("",)}, "^alert no: "),
        ({"threshold": 0}, "^alert threshold: "),
        ({"confirm": 0}, "^alert confirm: "),
        ({"no": tuple("abcdefgh")}, "^alert yes and no: got 9 answers, expected at most 8"),
        ({"schema": {"type": "set"}}, "^schema: got 'set', expected a type of object, "),
    ],
)
def test_a_rule_of_other_values_is_refused(setting, line):
    with pytest.raises(InputError, match=line):
        AlertRule(**{"question": "a?", **setting})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"team": "Reds"}', ({"team": "Reds"}, "")),
        ('```json\n{"team": "Reds"}\n```', ({"team": "Reds"}, "")),
        ('{"team": "Reds"}\n Reds pass.', ({"team": "Reds"}, "")),
        ('{"team": 3}', (None, "team: got 3, expected string")),
        ("{}", (None, "JSON: got {}, expected the key team")),
        ("Reds.", (None, "no JSON")),
        ('{"team": "Re', (None, "no JSON")),
        ("[" * 100_000, (None, "no JSON")),
    ],
)
def test_what_a_model_writes_is_checked(text, expected):
    """Else a program that reads alerts breaks on the first one that is no JSON."""
    assert parse_description(text, SCHEMA) == expected
