"""Streams of a model of each family: they say what one forward pass over all their tokens says, and go on for ever with the
programs and the slots that they begin with. Two temporal patches a chunk, as at 4 fps: a step of 2 positions, of 1, or a block
of its own with a time stamp."""

from typing import Any

import numpy as np
import pytest

from svlm_jax.checkpoint import huggingface
from svlm_jax.config import StreamConfig
from svlm_jax.data.batch import collate
from svlm_jax.decode.sampling import Sampling
from svlm_jax.families import FAMILIES, config_json
from svlm_jax.inputs import Clip, Sample
from svlm_jax.media.processor import load_tokenizer
from svlm_jax.model.parameters import from_parameters
from svlm_jax.spans import Kind, Part, positions
from svlm_jax.stream.results import Reply
from svlm_jax.stream.sequence import Chunk
from svlm_jax.stream.session import Session
from svlm_jax.stream.stream_settings import StreamSettings
from svlm_jax.stream.warmup import warm
from tests.support.families import tiny_checkpoint
from tests.support.sessions import Compiled

GRID = (2, 4, 6)
GREEDY, DRAWN = Sampling(), Sampling(temperature=1.5, top_k=0)
TOLERANCE = 1e-4  # of the largest logit: rounding in float32, which attention over the cache adds up in another order
# Qwen3-VL has everything that is new; the decoder of the others is that of the recorded runs (tests/replay).
MODELS = [pytest.param(name, marks=() if name == "qwen3_vl" else pytest.mark.slow) for name in FAMILIES]


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    directory = tiny_checkpoint(FAMILIES[request.param], tmp_path_factory.mktemp("model") / "0")
    config = config_json.read(directory)
    return from_parameters(config, huggingface.load(directory, config)), load_tokenizer(directory)


def session(model, sampling: Sampling, **settings: Any) -> Session:
    return Session(*model, StreamConfig(fps=4, max_new_tokens=6, **settings), GRID, sampling=sampling)


def chunk(number: int, vision) -> Chunk:
    rng = np.random.default_rng(number)
    patches = rng.normal(size=(int(np.prod(GRID)), vision.patch_dim)).astype(np.float32)
    times = (number + 0.125, number + 0.625)
    return Chunk(number, number + 1, Clip(patches, GRID, vision.temporal_step(4), video=True, times=times))


def test_a_stream_that_forgets_nothing_says_what_one_forward_pass_says(model):
    stream, config = session(model, GREEDY), model[0].config
    chunks = [chunk(number, config.vision) for number in range(4)]
    state, replies = stream.join(stream.init_state(), settings=StreamSettings(query="Commentate")), []
    for each in chunks:
        state, (reply,) = stream.step(state, [each], record=True)
        replies.append(reply)
    (held,) = state.streams
    assert held is not None
    np.testing.assert_array_equal(held.positions, positions(held.spans, config.vision.spatial_merge_size))
    sample = Sample(held.ids, held.spans, tuple(each.clip for each in chunks))
    logits = np.asarray(model[0](collate([sample], config.vision)))[0]
    starts = np.cumsum([0] + [span.length for span in held.spans])
    heads = [end for span, end in zip(held.spans, starts[1:], strict=True) if (span.kind, span.part) == (Kind.REPLY, Part.HEAD)]
    for first, reply in zip(heads, replies, strict=True):
        length = len(reply.tokens)
        assert held.ids[first : first + length].tolist() == reply.tokens.tolist()
        want = logits[first - 1 : first - 1 + length]
        np.testing.assert_allclose(reply.logits, want, rtol=0, atol=TOLERANCE * np.abs(want).max())


@pytest.mark.slow
def test_a_thousand_chunks_compile_nothing_and_take_no_more_slots(model):
    stream, vision = session(model, DRAWN, vision_window=3, text_rounds=3, sink=6, text_window=6), model[0].config.vision
    state = warm(stream, stream.init_state(), chunk(0, vision).clip)
    capacity, used = state.cache.capacity, []
    state = stream.join(state, settings=StreamSettings(query="Commentate"))
    state, _ = stream.step(state, [chunk(0, vision)])
    with Compiled() as compiled:
        for number in range(1, 1001):
            state, replies = stream.step(state, [chunk(number, vision)])
            used += [reply.after for reply in replies if isinstance(reply, Reply)]
    assert len(used) == 1000 and compiled.count == 0 and state.cache.capacity == capacity
    assert max(used) + 2 <= stream.capacity and max(used[500:]) <= max(used[:500]) + 8  # seconds get another digit
