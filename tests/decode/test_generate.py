"""Claims about svlm_jax.decode.generate: how often it compiles, how long replies are, and what they do not depend on."""

import numpy as np
import pytest

from svlm_jax.checkpoint import huggingface
from svlm_jax.data.batch import collate
from svlm_jax.decode.generate import _generate, generate
from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.families import config_json
from svlm_jax.inputs import Clip, Sample
from svlm_jax.model.parameters import from_parameters
from svlm_jax.spans import Kind, Span, vision_span


@pytest.fixture(scope="module")
def model(shallow_dir):
    config = config_json.read(shallow_dir)
    return from_parameters(config, huggingface.load(shallow_dir, config))


def prompt(text, grid=None, seed=0):
    rng = np.random.default_rng(seed)
    spans, clips = [Span(Kind.USER_TEXT, text)], []
    if grid is not None:
        spans += [vision_span(grid), Span(Kind.USER_TEXT, 2)]
        clips.append(Clip(rng.normal(size=(int(np.prod(grid)), 1176)).astype(np.float32), grid))
    return Sample(rng.integers(0, 400, sum(span.length for span in spans)).astype(np.int32), tuple(spans), tuple(clips))


THREE = (prompt(5, (1, 4, 6), 1), prompt(20, seed=2), prompt(9, (2, 4, 4), 3))


def listed(replies):
    return [reply.tolist() for reply in replies]


@pytest.fixture(scope="module")
def pad(model):
    return lambda samples, side="left": collate(samples, model.config.vision, side=side)


@pytest.fixture(scope="module")
def plain(model, pad):
    """Greedy replies of 16 tokens to THREE."""
    return listed(generate(model, pad(THREE), max_new_tokens=16))


@pytest.fixture(scope="module")
def warm(model, pad):
    """Drawn replies of at most 16 tokens to THREE."""
    inputs = pad(THREE)

    def run(seed, eos=(900, 901)):  # ids that no reply can hold
        sampling = Sampling(temperature=1.0, top_k=0)
        return listed(generate(model, inputs, max_new_tokens=16, sampling=sampling, seed=seed, eos=eos))

    return run


# --- compilations ---


def test_only_a_new_bucket_compiles(model, pad):
    compiled = _generate._cache_size
    generate(model, pad([prompt(10, (1, 4, 6))]), max_new_tokens=3)
    before = compiled()
    generate(model, pad([prompt(10, (1, 4, 6), seed=1)]), max_new_tokens=3, seed=1)
    generate(model, pad([prompt(31, (1, 4, 6))]), max_new_tokens=3)  # another length
    generate(model, pad([prompt(10, (2, 4, 8))]), max_new_tokens=3)  # another grid
    generate(model, pad([prompt(10, (1, 4, 6))], "right"), max_new_tokens=2)
    generate(model, pad([prompt(10, (1, 4, 6))]), max_new_tokens=4, eos=(7,))
    assert compiled() == before
    generate(model, pad([prompt(10, (1, 4, 6))]), max_new_tokens=17)  # a longer reply bucket
    assert compiled() == before + 1
    generate(model, pad([prompt(12, (1, 6, 4))]), max_new_tokens=20)
    assert compiled() == before + 1


# --- replies ---


@pytest.mark.parametrize("count", [1, 2, 15, 16])
def test_a_reply_without_end_is_as_long_as_asked_and_a_prefix_of_a_longer_one(model, pad, plain, count):
    replies = generate(model, pad(THREE), max_new_tokens=count)
    assert [reply.dtype for reply in replies] == [np.int32] * 3
    assert listed(replies) == [reply[:count] for reply in plain]


def test_greedy_tokens_are_the_argmax_of_the_whole_sequence_without_a_cache(model, pad, plain):
    whole = []
    for sample, reply in zip(THREE, plain, strict=True):
        spans = (*sample.spans, Span(Kind.REPLY, len(reply)))
        whole.append(sample._replace(ids=np.r_[sample.ids, reply].astype(np.int32), spans=spans))
    best = np.asarray(model(pad(whole, "right"))).argmax(-1)
    for b, (sample, reply) in enumerate(zip(THREE, plain, strict=True)):
        start = len(sample.ids) - 1
        assert best[b, start : start + len(reply)].tolist() == reply


def test_replies_do_not_depend_on_the_side_of_the_padding(model, pad, plain):
    assert listed(generate(model, pad(THREE, "right"), max_new_tokens=16)) == plain


def test_replies_of_a_batch_are_those_of_each_prompt_alone(model, pad, plain):
    for place in (0, 2):
        assert generate(model, pad([THREE[place]]), max_new_tokens=16)[0].tolist() == plain[place]


def test_each_row_stops_at_its_own_end_and_keeps_the_id_that_ended_it(model, warm):
    free = warm(3)
    eos = (free[0][2], free[1][6])
    stops = [min([place for place, token in enumerate(reply) if token in eos], default=15) + 1 for reply in free]
    assert len(set(stops)) > 1
    got = warm(3, eos)
    assert got == [reply[:stop] for reply, stop in zip(free, stops, strict=True)]
    assert got[0][-1] in eos and got[1][-1] in eos


def test_a_seed_gives_the_same_replies_and_another_gives_others(warm):
    before = _generate._cache_size()
    one = warm(0)
    assert _generate._cache_size() <= before + 1
    assert warm(0) == one
    assert all(a != b for a, b in zip(one, warm(1), strict=True))
    assert len({tuple(reply) for reply in one}) == 3
    assert _generate._cache_size() <= before + 1  # an equal Sampling is the same program


def test_greedy_replies_do_not_depend_on_the_seed(model, pad, plain):
    assert listed(generate(model, pad(THREE), max_new_tokens=16, seed=5)) == plain


def test_suppressed_ids_never_appear_and_a_heavy_penalty_repeats_nothing(model, pad, plain):
    sampling = Sampling(repetition_penalty=1e6, suppressed=tuple(sorted({token for reply in plain for token in reply})))
    replies = listed(generate(model, pad(THREE), max_new_tokens=16, sampling=sampling))
    for sample, reply in zip(THREE, replies, strict=True):
        assert not set(reply) & set(sampling.suppressed)
        assert len(set(reply)) == 16 and not set(reply) & set(sample.ids.tolist())


def test_each_prompt_may_have_its_own_settings(model, pad, plain):
    """A row says what it says in a batch where all have its settings."""
    settings = (Sampling(), Sampling(1.0, top_k=0, top_p=0.9), Sampling(0.5, repetition_penalty=1.5, suppressed=(3, 5)))
    lengths = (16, 3, 9)
    mixed = listed(generate(model, pad(THREE), max_new_tokens=lengths, sampling=settings, seed=4))
    for row, (sampling, length) in enumerate(zip(settings, lengths, strict=True)):
        uniform = listed(generate(model, pad(THREE), max_new_tokens=length, sampling=sampling, seed=4))
        assert mixed[row] == uniform[row] and len(mixed[row]) == length
    assert mixed[0] == plain[0] and mixed[2] != plain[2][:9]


@pytest.mark.parametrize("settings", [{"sampling": [Sampling()] * 2}, {"max_new_tokens": (3, 3)}], ids=["sampling", "length"])
def test_settings_for_another_number_of_prompts_are_refused(model, pad, settings):
    with pytest.raises(InputError, match=r"^(sampling|max_new_tokens): got 2 of them, expected 3, one for each prompt; "):
        generate(model, pad(THREE), **settings)


def test_too_long_a_reply_is_one_line(model, pad):
    with pytest.raises(InputError, match=r"^max_new_tokens: got 5000, expected at most 4096; [^\n]*$"):
        generate(model, pad([prompt(3)]), max_new_tokens=5000)


@pytest.mark.parametrize("count", [0, -1])
def test_a_reply_of_no_tokens_is_refused(model, pad, count):
    with pytest.raises(InputError, match="max_new_tokens"):
        generate(model, pad(THREE), max_new_tokens=count)
