"""Claims about svlm_jax.decode.score: log-probabilities are those of the whole sequence, whatever stands beside it."""

import jax
import numpy as np
import pytest

from svlm_jax.checkpoint import huggingface
from svlm_jax.data.batch import collate
from svlm_jax.decode.generate import generate
from svlm_jax.decode.score import BLOCK, score
from svlm_jax.errors import InputError
from svlm_jax.families import config_json
from svlm_jax.model.parameters import from_parameters
from svlm_jax.spans import Kind, Span
from tests.decode.test_generate import prompt

PROMPTS = (prompt(5, (1, 4, 6), 1), prompt(20, seed=2), prompt(9, (2, 4, 4), 3))
CONTINUATIONS = ([7, 300, 12, 9], [5], list(range(40, 60)))  # the last is longer than a block
ROUNDING = 1e-4  # nats; float32 sums of two orders over logits of order 10


@pytest.fixture(scope="module")
def model(shallow_dir):
    config = config_json.read(shallow_dir)
    return from_parameters(config, huggingface.load(shallow_dir, config))


@pytest.fixture(scope="module")
def pad(model):
    return lambda samples, side="left": collate(samples, model.config.vision, side=side)


def reference(model, sample, ids):
    """Log-probabilities of ids behind a prompt, from the logits of the whole sequence without a cache."""
    spans = (*sample.spans, Span(Kind.REPLY, len(ids)))
    whole = sample._replace(ids=np.r_[sample.ids, ids].astype(np.int32), spans=spans)
    log_probs = jax.nn.log_softmax(model(collate([whole], model.config.vision))[0])
    start = len(sample.ids) - 1
    return np.asarray(log_probs)[np.arange(start, start + len(ids)), ids]


@pytest.fixture(scope="module")
def scores(model, pad):
    return score(model, pad(PROMPTS), CONTINUATIONS)


def test_each_token_has_the_log_probability_that_the_whole_sequence_gives_it(model, scores):
    assert max(map(len, CONTINUATIONS)) > BLOCK
    for sample, ids, by_token in zip(PROMPTS, CONTINUATIONS, scores.token_log_probs, strict=True):
        assert by_token.dtype == np.float32 and by_token.shape == (len(ids),)
        np.testing.assert_allclose(by_token, reference(model, sample, ids), rtol=0, atol=ROUNDING)


def test_a_continuation_has_the_sum_of_its_tokens_or_their_mean(model, pad, scores):
    sums = [row.sum() for row in scores.token_log_probs]
    assert scores.log_probs.dtype == np.float32 and scores.log_probs.tolist() == [float(row) for row in sums]
    means = score(model, pad(PROMPTS), CONTINUATIONS, length_normalized=True).log_probs
    np.testing.assert_allclose(means * [len(ids) for ids in CONTINUATIONS], sums, rtol=1e-6)


def test_options_that_share_a_prompt_score_as_each_with_a_prompt_of_its_own(model, pad):
    """Else multiple choice depends on which other options there are."""
    shared = score(model, pad(PROMPTS[:1]), CONTINUATIONS)
    alone = [score(model, pad(PROMPTS[:1]), [ids]).log_probs[0] for ids in CONTINUATIONS]
    np.testing.assert_allclose(shared.log_probs, alone, rtol=0, atol=ROUNDING)
    reverse = score(model, pad(PROMPTS[:1]), CONTINUATIONS[::-1])
    np.testing.assert_allclose(shared.log_probs[::-1], reverse.log_probs, rtol=0, atol=ROUNDING)


def test_padding_on_either_side_is_not_seen(model, pad, scores):
    np.testing.assert_allclose(
        score(model, pad(PROMPTS, "right"), CONTINUATIONS).log_probs, scores.log_probs, rtol=0, atol=ROUNDING
    )


def test_a_greedy_reply_is_the_best_token_at_every_step(model, pad):
    """Teacher forcing and generation see the same model: no other id scores higher in place of any token."""
    (reply,) = generate(model, pad(PROMPTS[1:2]), max_new_tokens=6)
    for length in range(len(reply)):
        options = [[*reply[:length], token] for token in (*reply, *range(0, 400, 9))]
        last = [row[-1] for row in score(model, pad(PROMPTS[1:2]), options).token_log_probs]
        assert options[int(np.argmax(last))][-1] == reply[length]


@pytest.mark.parametrize(
    ("prompts", "continuations", "line"),
    [
        (1, [], r"^continuations: got 0, expected at least 1; "),
        (3, [[1], [2]], r"^continuations: got 2, expected 3, one for each prompt; "),
        (1, [[1], []], r"^continuation 1: got no tokens, expected at least 1; "),
        (1, [[448]], r"^ids of a continuation: got 448, expected 0 to 447; "),
        (1, [[3, -1]], r"^ids of a continuation: got -1, expected 0 to 447; "),
    ],
)
def test_what_cannot_be_scored_is_refused(model, pad, prompts, continuations, line):
    with pytest.raises(InputError, match=line):
        score(model, pad(PROMPTS[:prompts]), continuations)
