"""Log-probabilities of given continuations are those of torch's log_softmax over the logits of transformers."""

import numpy as np
import pytest

from svlm_jax.data.batch import collate
from svlm_jax.decode.score import score
from svlm_jax.spans import Kind, Span
from tests.parity import reference as ref
from tests.parity.reference import image, torch, video

PROMPTS = ((7, image(6, 10), 5), (20,), (6, video(2, 6, 8), 9))
CONTINUATIONS = ([3, 250, 17, 17, 8], [90, 4], [11, 12, 13])
ROUNDING = 2e-4  # nats: `reference.TOLERANCE` of logits of order 10


@pytest.mark.parametrize("name", ["tiny", "seven_to_one"])
def test_log_probabilities_are_those_of_torch(pair, name):
    both = pair(name)
    samples = ref.make_samples(PROMPTS, both.config)
    inputs = collate(samples, both.config.vision, side="left", token_buckets=(64,), patch_buckets=(128,))
    ours = score(both.model, inputs, CONTINUATIONS)
    for sample, ids, by_token, log_prob in zip(samples, CONTINUATIONS, ours.token_log_probs, ours.log_probs, strict=True):
        spans = (*sample.spans, Span(Kind.REPLY, len(ids)))
        sequence = sample._replace(ids=np.r_[sample.ids, ids].astype(np.int32), spans=spans)
        with torch.no_grad():
            logits = both.torch(**ref.torch_inputs([sequence], both.config)).logits[0]
        log_probs = torch.log_softmax(logits.float(), dim=-1).numpy()
        start = len(sample.ids) - 1
        expected = log_probs[np.arange(start, start + len(ids)), ids]
        np.testing.assert_allclose(by_token, expected, rtol=0, atol=ROUNDING)
        np.testing.assert_allclose(log_prob, expected.sum(), rtol=0, atol=len(ids) * ROUNDING)
