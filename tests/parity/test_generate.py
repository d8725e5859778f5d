"""Greedy replies are those of `transformers.generate`, token for token; sampling keeps what the library's processors keep."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svlm_jax.data.batch import collate
from svlm_jax.decode import sampling
from svlm_jax.decode.generate import generate
from svlm_jax.decode.sampling import Sampling, SamplingParams
from svlm_jax.inputs import Sample
from tests.parity import reference as ref
from tests.parity.reference import image, torch, transformers, video

NEW = 64
MODELS = ("tiny", "tiny_tied", "seven_to_one")
ALONE = {  # frames of 33 to 64 patches and prompts of one bucket: one compilation a model
    "an image": (7, image(6, 10), 5),
    "two images": (3, image(6, 6), 4, image(8, 6), 5),
    "a clip": (6, video(2, 6, 8), 9),
    "a long clip": (6, video(5, 4, 6), 9),
}
BATCH = ((5, image(6, 10), 9), (20,), (3, video(2, 8, 6), 4, image(4, 4), 2), (40, image(2, 6), 11))
# Their replies to the batch below are enough by default: it has text, images, a clip, and padding.
OTHER_FAMILIES = ("qwen2_vl", "qwen2_vl_tied", "qwen3_vl", "qwen3_vl_tied")
SLOW = {name: pytest.param(name, marks=pytest.mark.slow) for name in OTHER_FAMILIES}
every_model = pytest.mark.parametrize("name", [*MODELS, *SLOW.values()])


def their_replies(model, samples, config, monkeypatch, eos=None, new=NEW, **options) -> list[list[int]]:
    """Replies of the library to a left-padded batch, which is given our positions (it agrees on all but long clips: see
    test_positions); a reply ends with its first eos."""
    place = ref.our_positions(samples, "left").long()
    mask = ref.torch_inputs(samples, config, "left")["attention_mask"]
    delta = torch.stack([row.max() + 1 for row in place.unbind(1)])[:, None] - mask.sum(1, keepdim=True)
    monkeypatch.setattr(model.model, "get_rope_index", lambda *args, **kwargs: (place, delta))
    return plain_replies(model, samples, config, eos, new, **options)


def plain_replies(model, samples, config, eos=None, new=NEW, **options) -> list[list[int]]:
    inputs = ref.torch_inputs(samples, config, "left")
    settings = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=new, eos_token_id=list(eos) if eos else None, pad_token_id=0, **options
    )
    model.generation_config = settings
    with torch.no_grad():
        rows = model.generate(**inputs, generation_config=settings)[:, inputs["input_ids"].shape[1] :].tolist()
    return [cut(row, eos or ()) for row in rows]


def cut(row: list[int], eos) -> list[int]:
    ends = [n for n, token in enumerate(row) if token in eos]
    return row[: ends[0] + 1] if ends else row


def our_replies(model, samples: list[Sample], config, **options) -> list[list[int]]:
    inputs = collate(samples, config.vision, side="left", token_buckets=(64, 128), patch_buckets=(128,))
    return [reply.tolist() for reply in generate(model, inputs, max_new_tokens=NEW, **options)]


@pytest.fixture(scope="session")
def batch(pair):
    """(pair, samples, our free-running replies) of the mixed batch, by model."""

    @cache
    def run(name: str):
        both = pair(name)
        samples = ref.make_samples(BATCH, both.config)
        return both, samples, our_replies(both.model, samples, both.config)

    return run


@every_model
@pytest.mark.parametrize("prompt", [name for name in ALONE if name != "a long clip"])
def test_reply_is_that_of_the_library(pair, name, prompt):
    both = pair(name)
    samples = ref.make_samples([ALONE[prompt]], both.config)
    ours = our_replies(both.model, samples, both.config)
    assert len(ours[0]) == NEW
    assert ours == plain_replies(both.torch, samples, both.config)


@every_model
def test_reply_to_a_long_clip_is_that_of_the_library_at_our_positions(pair, name, monkeypatch):
    both = pair(name)
    samples = ref.make_samples([ALONE["a long clip"]], both.config)
    assert our_replies(both.model, samples, both.config) == their_replies(both.torch, samples, both.config, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_vl_tied"])
def test_reply_to_a_long_clip_with_time_stamps_is_that_of_the_library_at_its_own_positions(pair, name):
    both = pair(name)
    samples = ref.make_samples([ALONE["a long clip"]], both.config)
    assert our_replies(both.model, samples, both.config) == plain_replies(both.torch, samples, both.config)


@every_model
def test_reply_to_text_alone_is_that_of_the_library(pair, name):
    both = pair(name)
    samples = ref.make_samples([(25,)], both.config)
    assert our_replies(both.model, samples, both.config) == plain_replies(both.torch, samples, both.config)


@pytest.mark.parametrize("name", [*MODELS, "qwen2_vl", SLOW["qwen2_vl_tied"], "qwen3_vl", SLOW["qwen3_vl_tied"]])
def test_replies_to_a_padded_batch_are_those_of_the_library(batch, name):
    both, samples, ours = batch(name)
    assert {len(reply) for reply in ours} == {NEW}
    assert ours == plain_replies(both.torch, samples, both.config)


def test_rows_stop_at_their_own_eos(batch):
    both, samples, free = batch("seven_to_one")
    eos = tuple(sorted({free[0][3], free[1][30], free[2][11]}))
    expected = plain_replies(both.torch, samples, both.config, eos)
    assert len({len(reply) for reply in expected}) > 2
    assert our_replies(both.model, samples, both.config, eos=eos) == expected


def test_repetition_penalty_counts_the_prompt_as_the_library_does(pair):
    both = pair("seven_to_one")
    samples = ref.make_samples([ALONE["an image"]], both.config)
    penalty = {"repetition_penalty": 1.4}
    ours = our_replies(both.model, samples, both.config, sampling=Sampling(**penalty))
    assert ours == plain_replies(both.torch, samples, both.config, **penalty)
    assert ours != plain_replies(both.torch, samples, both.config)


def test_same_seed_same_reply_other_seed_another(batch):
    both, samples, greedy = batch("seven_to_one")
    draw = {seed: our_replies(both.model, samples, both.config, sampling=Sampling(1.0), seed=seed) for seed in (0, 1)}
    assert draw[0] == our_replies(both.model, samples, both.config, sampling=Sampling(1.0), seed=0)
    assert draw[0] != draw[1]
    assert greedy not in draw.values()


VOCABULARY = 200


def params(settings: Sampling, batch: int) -> SamplingParams:
    return SamplingParams.stack([settings] * batch, [NEW] * batch)


def random_logits(batch: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=3, size=(batch, VOCABULARY)).astype(np.float32)


def test_repetition_penalty_is_that_of_the_library():
    logits, ids = random_logits(), np.random.default_rng(1).integers(0, VOCABULARY, (3, 40))
    expected = transformers.RepetitionPenaltyLogitsProcessor(1.3)(torch.from_numpy(ids), torch.from_numpy(logits.copy()))
    nothing = jnp.zeros(logits.shape, bool)
    generated = sampling.mark_generated(nothing, jnp.asarray(ids), jnp.ones(ids.shape, bool))
    ours = sampling.process_logits(jnp.asarray(logits), generated, nothing, params(Sampling(repetition_penalty=1.3), 3))
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_ids_on_padding_are_not_penalised():
    generated = sampling.mark_generated(jnp.zeros((1, 5), bool), jnp.array([[0, 3, 4]]), jnp.array([[False, True, True]]))
    assert generated.tolist() == [[False, False, False, True, True]]


def test_suppressed_ids_are_those_of_the_library():
    logits = random_logits()
    processor = transformers.generation.SuppressTokensLogitsProcessor([3, 7], device="cpu")
    expected = processor(torch.zeros((3, 0), dtype=torch.long), torch.from_numpy(logits.copy()))
    nothing = jnp.zeros(logits.shape, bool)
    ours = sampling.process_logits(
        jnp.asarray(logits), nothing, nothing.at[:, jnp.array([3, 7])].set(True), params(Sampling(), 3)
    )
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("temperature", [0.3, 0.9, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 50])
@pytest.mark.parametrize("top_p", [0.1, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("max_top_k", [60, 0])
def test_candidates_and_their_probabilities_are_those_of_the_library(temperature, top_k, top_p, max_top_k):
    """Whatever the largest top_k of a batch is."""
    if max_top_k and not top_k:
        pytest.skip("a row that considers all ids needs a sort of all")
    logits = random_logits(batch=8)
    expected = transformers.TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits.copy()))
    if top_k:
        expected = transformers.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = transformers.TopPLogitsWarper(top_p)(None, expected)
    top, ids = sampling.top_k_top_p(jnp.asarray(logits), params(Sampling(temperature, top_k, top_p), 8), max_top_k)
    ours = np.full(logits.shape, -np.inf, np.float32)
    np.put_along_axis(ours, np.asarray(ids), np.asarray(top), axis=1)
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(expected.numpy()))
    np.testing.assert_allclose(jax.nn.softmax(ours), torch.softmax(expected, dim=-1), rtol=0, atol=1e-6)


def test_draws_follow_the_probabilities_of_the_candidates():
    settings = Sampling(temperature=0.8, top_k=5, top_p=0.9)
    logits = jnp.asarray(random_logits(batch=1))
    top, ids = sampling.top_k_top_p(logits, params(settings, 1), 20)
    expected = np.zeros(VOCABULARY)
    expected[np.asarray(ids[0])] = jax.nn.softmax(top[0])
    draws = 20_000
    keys = jax.random.split(jax.random.key(0), draws)
    nothing = jnp.zeros((draws, VOCABULARY), bool)
    tokens = sampling.sample(jnp.repeat(logits, draws, axis=0), nothing, nothing, keys, params(settings, draws), 20)
    frequency = np.bincount(np.asarray(tokens), minlength=VOCABULARY) / draws
    assert np.all(frequency[expected == 0] == 0)
    np.testing.assert_allclose(frequency, expected, atol=4 * 0.5 / draws**0.5)  # four standard deviations of the worst case
