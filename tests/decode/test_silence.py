"""LiveCC's silence rule: " ..." is forbidden where its probability is at most a threshold that moves with each token."""

from functools import partial

import jax
import numpy as np
import pytest

from svlm_jax.decode.generate import generate
from svlm_jax.decode.sampling import Sampling, SamplingParams, Silence, SilenceTokens, process_logits
from svlm_jax.errors import InputError
from svlm_jax.inputs import Inputs
from svlm_jax.stream import state_io
from svlm_jax.stream.session import Session
from svlm_jax.stream.stream_settings import StreamSettings
from tests.support.sessions import GREEDY, chunk, make, model, said, tokenizer, watch  # noqa: F401

VOCABULARY, SILENCE, NEWLINE, END = 64, 7, 8, 9


def reference(
    logits: np.ndarray, generated: np.ndarray, penalty: float, threshold: float | None, step: float, count: int, token: int
) -> np.ndarray:
    """What transformers' generation makes of the logits [V] of one sequence with LiveCC's processor, in float64: the repetition
    penalty, then the rule."""
    scores = logits.astype(np.float64)
    scores[generated] = np.where(scores[generated] < 0, scores[generated] * penalty, scores[generated] / penalty)
    if threshold is not None:
        probabilities = np.exp(scores - scores.max())
        probabilities /= probabilities.sum()
        if probabilities[token] <= threshold + step * count:
            scores[token] = -np.inf
    return scores


def test_the_rule_is_that_of_the_published_code():
    """Else a commentary is silent where LiveCC speaks. The penalty comes before the softmax: " ..." has been said before in
    every stream, and counts for less."""
    rng = np.random.default_rng(0)
    batch = 300
    logits = rng.normal(scale=3, size=(batch, VOCABULARY)).astype(np.float32)
    logits[:, SILENCE] += 4
    generated = rng.random((batch, VOCABULARY)) < 0.3
    count = rng.integers(0, 20, batch).astype(np.int32)
    settings = [
        Sampling(
            repetition_penalty=1.05 + b % 3,
            silence_threshold=(None, 0.0, 0.1, 0.5, 1.0)[b % 5],
            silence_threshold_step=b % 7 / 100,
        )
        for b in range(batch)
    ]
    params = SamplingParams.stack(settings, [20] * batch)
    suppressed = np.zeros((batch, VOCABULARY), bool)
    reply, end = np.zeros((batch, 20), np.int32), np.array([END])
    rules = partial(Silence, SilenceTokens(SILENCE, NEWLINE), reply, eos_ids=end)
    process = jax.jit(lambda count: process_logits(logits, generated, suppressed, params, rules(count=count)))
    got, forbidden = np.asarray(process(count)), 0
    for b, row in enumerate(settings):
        rule = row.silence_threshold, row.silence_threshold_step
        want = reference(logits[b], generated[b], row.repetition_penalty, *rule, int(count[b]), SILENCE)
        np.testing.assert_allclose(got[b], want, rtol=1e-6)
        forbidden += np.isinf(want).sum()
    assert 50 < forbidden < 250
    without = np.asarray(process_logits(logits, generated, suppressed, params))
    off = [b for b, row in enumerate(settings) if row.silence_threshold is None]
    np.testing.assert_array_equal(got[off], without[off])


def decided(shares: dict[int, float], silence: float | None, tokens: tuple[int, ...] = ()) -> set[int]:
    """The ids that may come after these tokens of a reply, from a distribution with these shares; the rest is evenly spread."""
    probabilities = np.full(VOCABULARY, (1 - sum(shares.values())) / (VOCABULARY - len(shares)))
    probabilities[list(shares)] = list(shares.values())
    logits = np.log(probabilities).astype(np.float32)[None]
    reply = np.zeros((1, 20), np.int32)
    reply[0, : len(tokens)] = tokens
    rules = Silence(SilenceTokens(SILENCE, NEWLINE), reply, np.array([len(tokens)]), np.array([END]))
    params = SamplingParams.stack([Sampling(silence=silence)], [20])
    nothing = np.zeros((1, VOCABULARY), bool)
    return set(np.flatnonzero(np.isfinite(np.asarray(process_logits(logits, nothing, nothing, params, rules))[0])).tolist())


WORDS = set(range(VOCABULARY)) - {SILENCE, NEWLINE, END}


@pytest.mark.parametrize(
    ("shares", "silence", "tokens", "allowed"),
    [
        ({SILENCE: 0.6}, 0.7, (), WORDS),  # it has words where silence is as likely as that, or less
        ({SILENCE: 0.6}, 0.5, (), {SILENCE}),
        ({SILENCE: 0.3, END: 0.3}, 0.5, (), {SILENCE}),  # a reply that ends at once is silent too
        ({SILENCE: 0.3, END: 0.3}, 0.7, (), WORDS),
        ({SILENCE: 0.6}, 1.0, (), WORDS),
        ({SILENCE: 0.001}, 0.0, (), {SILENCE}),
        ({NEWLINE: 0.9, SILENCE: 0.01}, 0.5, (), {NEWLINE}),  # the newline of trained replies decides nothing
        ({SILENCE: 0.6}, 0.5, (NEWLINE,), {SILENCE}),
        ({SILENCE: 0.6}, 0.7, (NEWLINE,), WORDS),
        ({1: 0.9}, 0.5, (SILENCE,), {END}),  # silence is all that a silent reply says
        ({1: 0.9}, 0.5, (NEWLINE, SILENCE), {END}),
        ({SILENCE: 0.9}, 0.5, (1,), set(range(VOCABULARY))),  # after the first word the model is free
        ({SILENCE: 0.9}, 0.5, (NEWLINE, 1), set(range(VOCABULARY))),
        ({SILENCE: 0.9}, 0.5, (1, SILENCE), set(range(VOCABULARY))),
        ({SILENCE: 0.9}, None, (), set(range(VOCABULARY))),
    ],
)
def test_one_threshold_decides_between_words_and_silence(shares, silence, tokens, allowed):
    """Else the number that a viewer sets says nothing of when a stream speaks."""
    assert decided(shares, silence, tokens) == allowed


@pytest.fixture(scope="module")
def plain(make):
    """What a session without the rule says."""
    return said(watch(make(), 3)[0])


@pytest.fixture(scope="module")
def session(make, plain):
    """Two streams whose silence token is the word that the model says most, so that the rule has work."""
    words = [token for reply in plain for token in reply]
    session: Session = make(num_streams=2, silence_rule=True)
    session.turn_tokenizer = session.turn_tokenizer._replace(silence=max(set(words), key=words.count))
    return session


def continued(session: Session, settings, chunks: int = 3):
    """Replies of every row, the ids that each stream retained as it began, and the state after them."""
    state = session.init_state()
    for row, sampling in enumerate(settings):
        state = session.join(state, row, StreamSettings(sampling=sampling))
    replies, prompts = [[] for _ in settings], [[] for _ in settings]
    for number in range(chunks):
        prepared = [session.prepare(state, row, chunk(number)) for row in range(len(settings))]
        state, stepped = session.step(state, prepared, record=True)
        for row, reply in enumerate(stepped):
            replies[row].append(reply)
            prompts[row].append(prepared[row].scheduled.seq.ids.tolist())
    return replies, prompts, state


def test_each_stream_of_a_batch_has_its_own_rule(session, plain):
    """Else a viewer who wants more words makes the streams of others talk."""
    never = Sampling(repetition_penalty=1.05, silence_threshold=1.0)
    (ruled, free), _, _ = continued(session, [never, GREEDY])
    silence = session.turn_tokenizer.silence
    assert said(free) == plain and any(silence in reply for reply in plain)
    assert not any(silence in reply for reply in said(ruled))


def test_a_stream_decodes_as_the_reference_does_token_by_token(session):
    """The count begins anew with each reply, and counts its tokens, not silent chunks."""
    silence = session.turn_tokenizer.silence
    (probe, _), _, _ = continued(session, [GREEDY, GREEDY], chunks=1)
    shares = [float(np.exp(row - np.logaddexp.reduce(row))[silence]) for row in probe[0].logits]
    # Thresholds on both sides of what the model says: some tokens are forbidden, others are not.
    base, step = float(np.quantile(shares, 0.2)), float(np.ptp(shares)) / 20
    rule = Sampling(repetition_penalty=1.05, silence_threshold=base, silence_threshold_step=step)
    (ruled, _), (prompts, _), _ = continued(session, [rule, GREEDY], chunks=2)
    forbidden = 0
    for reply, prompt in zip(ruled, prompts, strict=True):
        generated = np.zeros(len(session.suppressed), bool)
        generated[prompt] = True
        for count, token in enumerate(reply.tokens.tolist()):
            scores = reference(reply.logits[count], generated, 1.05, base, step, count, silence)
            forbidden += bool(np.isinf(scores[silence]))
            scores[session.suppressed] = -np.inf
            assert token == scores.argmax()
            generated[token] = True
    assert 0 < forbidden < sum(len(reply.tokens) for reply in ruled)


def test_a_session_without_the_rule_refuses_it(make, model):
    """Its programs do not look for silence: nothing would happen."""
    rule, plain = Sampling(silence_threshold=0.5), make()
    line = r"^silence_threshold of a stream: got 0.5, expected none in this session; make the session with silence_rule=True$"
    with pytest.raises(InputError, match=line):
        plain.check(StreamSettings(sampling=rule))
    assert make(sampling=rule).silence_rule and not plain.silence_rule
    with pytest.raises(InputError, match=r"^silence: "):
        generate(model, Inputs(np.zeros((1, 4), np.int32), None, None, None), sampling=rule)


def test_a_saved_stream_keeps_its_rule(session, tmp_path):
    rule = Sampling(silence_threshold=0.25, silence_threshold_step=-0.125)
    state = session.join(session.init_state(), settings=StreamSettings(sampling=rule))
    state_io.save(tmp_path / "a.state", session, state)
    assert state_io.load(tmp_path / "a.state", session).streams[0].sampling == rule


@pytest.mark.parametrize("setting", [{"silence_threshold": 1.5}, {"silence_threshold": np.nan}, {"silence_threshold_step": -2}])
def test_a_threshold_is_a_probability(setting):
    with pytest.raises(InputError, match=r"^sampling silence_threshold"):
        Sampling(**setting)


def test_two_rules_of_silence_at_a_time_are_refused():
    with pytest.raises(InputError, match=r"^sampling silence: got 0.5 with silence_threshold 0.1, expected one rule"):
        Sampling(silence=0.5, silence_threshold=0.1)
