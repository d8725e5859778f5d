"""Claims about svlm_jax.decode.detokenize: words that come token by token are those of the reply, and whole characters."""

import numpy as np
import pytest

from svlm_jax.decode.detokenize import Detokenizer, reply_text
from svlm_jax.media.processor import load_tokenizer

TEXTS = (
    "\n Welcome to the Emerald Cup. ...",
    "Go 🏆 你好 é ⚽!",  # every character of several tokens
    "\n ...",  # a reply of nothing
    "...",
    "He waits ... and scores ...",
    "a .. ..",
    "a  b \n c ... .",
    "🏆 ...",
    "",
)


@pytest.fixture(scope="module")
def tokenizer(processor_dir):
    return load_tokenizer(processor_dir)


def parts(tokenizer, ids):
    words = Detokenizer(tokenizer)
    return [*(words.add(token) for token in ids), words.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_words_that_come_token_by_token_are_those_of_the_reply(tokenizer, text):
    """Else what a viewer of --tokens reads is not what the captions say."""
    ids = tokenizer.encode(text + "<|im_end|>", add_special_tokens=False)
    came = parts(tokenizer, ids)
    assert "".join(came) == reply_text(ids, tokenizer) == text.removesuffix(" ...").strip()
    assert not any("\ufffd" in part for part in came)


@pytest.mark.parametrize("text", TEXTS)
def test_a_reply_that_is_cut_anywhere_ends_with_a_whole_character(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    for length in range(len(ids) + 1):
        came = parts(tokenizer, ids[:length])
        assert "".join(came) == reply_text(ids[:length], tokenizer)
        assert "\ufffd" not in reply_text(ids[:length], tokenizer)


def test_any_ids_at_all_come_as_the_text_of_the_reply(tokenizer):
    """A model at a high temperature says bytes that are no text."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        ids = rng.integers(0, len(tokenizer), rng.integers(1, 21)).tolist()
        assert "".join(parts(tokenizer, ids)) == reply_text(ids, tokenizer)


def test_words_are_shown_as_soon_as_they_are_whole(tokenizer):
    ids = tokenizer.encode("The ball goes to the red goal", add_special_tokens=False)
    came = parts(tokenizer, ids)
    assert came[-1] == "" and sum(map(bool, came)) > len(ids) // 2


def test_a_replacement_character_that_was_written_is_no_partial_one(tokenizer):
    """A subtitle that was broken before it became training data has it, and so may a reply."""
    for text, shown in {"a \ufffd": "a \ufffd", "\ufffd\ufffd ...": "\ufffd\ufffd", "x\ufffdy": "x\ufffdy"}.items():
        ids = tokenizer.encode(text + "<|im_end|>", add_special_tokens=False)
        assert "".join(parts(tokenizer, ids)) == reply_text(ids, tokenizer) == shown
    flag = tokenizer.encode("🇪", add_special_tokens=False)
    ids = tokenizer.encode("\ufffd", add_special_tokens=False)
    assert reply_text(ids + flag[:-1], tokenizer) == "\ufffd" and reply_text(flag[:-1], tokenizer) == ""


def test_bytes_in_any_order_come_as_the_text_of_the_reply(tokenizer):
    """Of those that make the replacement character, an emoji, marks and the end that is dropped."""
    ids = sorted({id for text in ("\ufffd", "🏆", "e\u0301", " ...", "a", "\u200d") for id in
                  tokenizer.encode(text, add_special_tokens=False)})  # fmt: skip
    rng = np.random.default_rng(1)
    for _ in range(120):
        drawn = rng.choice(ids, rng.integers(1, 13)).tolist()
        assert "".join(parts(tokenizer, drawn)) == reply_text(drawn, tokenizer)
