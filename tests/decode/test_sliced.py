"""Claims about svlm_jax.decode.sliced: the tokens of a reply in slices are those of `generate`, and they compile nothing."""

from itertools import chain

import jax
import numpy as np
import pytest

from svlm_jax import from_pretrained
from svlm_jax.data.batch import collate
from svlm_jax.decode.generate import generate
from svlm_jax.decode.sampling import Sampling
from svlm_jax.decode.sliced import SlicedGeneration, SliceSizes
from svlm_jax.errors import InputError
from svlm_jax.families.chat import Turn, encode

LENGTH = {"max_new_tokens": 20}
DRAWN = Sampling(temperature=1.0, top_p=0.9, repetition_penalty=1.1)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def vlm(shallow_dir, processor_dir):
    return from_pretrained(shallow_dir, processor=processor_dir)


@pytest.fixture(scope="module")
def conversation(vlm):
    """Two images of different sizes and a video, in two turns, with an answer between them."""
    processor = vlm.processor
    video = processor.video(np.stack([picture(56, 84, seed) for seed in range(5)]))
    turns = [
        Turn("system", ("Be brief.",)),
        Turn("user", (processor.image(picture(56, 84)), "and", processor.image(picture(84, 112, 1)), "What differs?")),
        Turn("assistant", ("The size.",)),
        Turn("user", ("And in this film?", video)),
    ]
    return encode(turns, vlm.tokenizer, vlm.model.config)


@pytest.fixture(scope="module")
def sliced(vlm):
    """Slices of a frame or two, of a part of the prompt, of three tokens."""
    sizes = SliceSizes(patches=64, tokens=64, reply=3)
    return SlicedGeneration(vlm.model, vlm.eos_token_ids, sizes=sizes, max_reply_tokens=32)


def joined(slices):
    return list(chain.from_iterable(slices))


def whole(vlm, sample, **options):
    """The ids of `Pretrained.replies`."""
    inputs = collate([sample], vlm.model.config.vision, side="left")
    return generate(vlm.model, inputs, eos=vlm.eos_token_ids, **options)[0].tolist()


@pytest.fixture(scope="module")
def first(sliced, conversation):
    """(prompt, its slices, what compiled in them) of the first reply, whose programs were compiled before."""
    prompt, compiled = sliced.prompt(conversation, **LENGTH), []
    sliced.compile(prompt)

    def listen(event, duration_secs, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        slices = list(sliced.slices(prompt))
        sliced.compile(sliced.prompt(conversation, max_new_tokens=3))  # of the same sizes
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return prompt, slices, compiled


def test_a_compiled_prompt_compiles_nothing_in_its_slices(first):
    """Else the streams of a server stand still while a chat request compiles."""
    assert not first[2]


def test_tokens_in_slices_are_those_of_generate(vlm, first, conversation):
    """Else a chat request of the server is answered otherwise than by `Pretrained.replies`."""
    prompt, slices, _ = first
    num_silent = len(prompt.vision) + len(prompt.prefill)
    assert len(prompt.vision) >= 3 and len(prompt.prefill) >= 2
    assert slices[:num_silent] == [[]] * num_silent
    assert all(1 <= len(tokens) <= 3 for tokens in slices[num_silent:])
    assert joined(slices) == whole(vlm, conversation, **LENGTH)


def test_drawn_tokens_in_slices_are_those_of_generate(vlm, sliced, conversation):
    options = {**LENGTH, "sampling": DRAWN, "seed": 7}
    assert joined(sliced.slices(sliced.prompt(conversation, **options))) == whole(vlm, conversation, **options)


def test_a_reply_has_the_length_that_was_asked_for(vlm, sliced):
    sample = vlm.processor.prompt("Hello")
    reply = whole(vlm, sample, **LENGTH)
    for count in (1, 5):
        assert joined(sliced.slices(sliced.prompt(sample, max_new_tokens=count))) == reply[:count]


def test_replies_advanced_in_turns_do_not_mix(vlm, sliced, conversation):
    """Else two users of a server get each other's words."""
    samples = (conversation, vlm.processor.prompt("Hello"))
    running = [sliced.slices(sliced.prompt(sample, **LENGTH)) for sample in samples]
    replies = [[], []]
    while any(running):
        for number, slices in enumerate(running):
            tokens = next(slices, None) if slices else None
            if tokens is None:
                running[number] = None
            else:
                replies[number] += tokens
    assert replies == [whole(vlm, sample, **LENGTH) for sample in samples]


def test_device_memory_of_a_reply_is_freed_with_it(vlm, sliced, conversation):
    """Else a server's memory grows with its requests, finished or cancelled."""

    def live_bytes():
        return sum(array.nbytes for array in jax.live_arrays())

    prompt = sliced.prompt(conversation, **LENGTH)
    list(sliced.slices(prompt))
    before = live_bytes()
    slices = sliced.slices(prompt)
    for _ in range(len(prompt.vision) + len(prompt.prefill) + 1):
        next(slices)
    assert live_bytes() > before
    slices.close()
    assert live_bytes() == before
    list(sliced.slices(prompt))
    assert live_bytes() == before


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"max_new_tokens": 0}, "^max_new_tokens: got 0, expected 1 to 32; "),
        ({"max_new_tokens": 33}, "^max_new_tokens: got 33, expected 1 to 32; "),
        ({"max_new_tokens": 4, "sampling": Sampling(top_k=51)}, "^top_k: got 51, expected 1 to 50; "),
    ],
)
def test_what_the_programs_do_not_hold_is_one_line(vlm, sliced, options, line):
    with pytest.raises(InputError, match=line):
        sliced.prompt(vlm.processor.prompt("Hello"), **options)
