"""Claims about the shipped model: small, in the layout it says, and right about games it has never seen."""

import json

import numpy as np
import pytest

import svlm_jax
from svlm_jax.decode.detokenize import split_reply
from svlm_jax.pretrained import SHIPPED
from svlm_jax.touchline.film import HELD_OUT, play
from svlm_jax.touchline.judge import judge
from svlm_jax.touchline.scratch import STREAMING
from svlm_jax.touchline.source import open_match

DIRECTORY = SHIPPED["touchline"]
SECONDS = 120


@pytest.fixture(scope="module")
def vlm():
    return svlm_jax.from_pretrained("touchline")


def test_what_ships_is_small():
    assert sum(path.stat().st_size for place in SHIPPED.values() for path in place.iterdir()) < 15e6


def test_it_ships_its_streaming_settings(vlm):
    settings = json.loads((DIRECTORY / "streaming_config.json").read_text())
    assert settings == STREAMING
    assert (vlm.stream.vision_window, vlm.stream.sink, vlm.stream.text_window, vlm.stream.moved_reply_kv) == (
        8,
        64,
        576,
        "recompute",
    )
    assert vlm.sampling.temperature == 0


def test_it_mentions_the_events_of_a_held_out_game_and_counts_its_first_goals(vlm):
    replies = {int(reply.start): split_reply(reply.raw)[1] for reply in vlm.watch(open_match(HELD_OUT, duration=SECONDS))}
    tally = judge(replies, play(HELD_OUT, SECONDS).events, 0, SECONDS)
    assert len(replies) == SECONDS and tally.events > 20
    assert tally.f1 > 0.95 and tally.silence_precision > 0.95
    assert tally.correct_scores == tally.scores == tally.expected_scores > 5


def test_it_loads_in_transformers_and_gives_the_same_logits(vlm):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from svlm_jax.data.batch import collate

    hf_model, loading_info = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        DIRECTORY, output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
    )
    assert not any(loading_info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    vlm_f32 = svlm_jax.from_pretrained("touchline", dtype="float32")
    with open_match(HELD_OUT, duration=1) as source:
        clip = vlm_f32.processor.video(next(iter(source)).frames, fps=2)
    sample = vlm_f32.processor.prompt("Who has the ball?", clip)
    inputs = collate([sample], vlm_f32.model.config.vision)
    length = len(sample.ids)
    logits = np.asarray(vlm_f32.model(inputs))[0, :length]
    with torch.no_grad():
        expected = hf_model(
            input_ids=torch.tensor(sample.ids[None].astype(np.int64)),
            attention_mask=torch.ones(1, length, dtype=torch.int64),
            pixel_values_videos=torch.tensor(clip.patches),
            video_grid_thw=torch.tensor([clip.grid]),
            second_per_grid_ts=torch.tensor([1.0]),
            mm_token_type_ids=torch.tensor(np.where(sample.ids == vlm_f32.model.config.video_token_id, 2, 0)[None]),
        ).logits[0]
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
