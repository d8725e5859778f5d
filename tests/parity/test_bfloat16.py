"""In bfloat16 (parameters and computation) the error is at most twice that of plain torch bfloat16.

The reference is torch in float32 with the same weights, rounded to bfloat16; errors are root mean squares over all real rows.
"""

from functools import cache
from itertools import chain
from typing import NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx

from svlm_jax.data.batch import collate
from tests.parity import reference as ref
from tests.parity.reference import image, torch, video

FACTOR = 2.0
PROMPTS = ((9, image(12, 18), 30), (4, video(2, 8, 12), 120), (200,))


class Errors(NamedTuple):
    ours: float
    torch: float


@pytest.fixture(scope="session")
def errors(checkpoint, tmp_path_factory):
    """Errors of every part of a model, by model name."""

    @cache
    def run(name: str) -> dict[str, Errors]:
        directory = tmp_path_factory.mktemp(f"{name}_bfloat16")
        half = ref.read_torch(checkpoint(name), torch.bfloat16)
        half.save_pretrained(directory)
        exact = ref.read_torch(directory, torch.float32)
        model, config = ref.read_jax(directory)
        assert (config.dtype, config.param_dtype) == ("bfloat16", "bfloat16")
        samples = ref.make_samples(PROMPTS, config)
        reference, plain = (ref.trace(each, ref.torch_inputs(samples, config)) for each in (exact, half))
        inputs = collate(samples, config.vision)
        graph, state = nnx.split(model)

        @jax.jit
        def forward(state, inputs, embedded, deepstack):
            model = nnx.merge(graph, state)
            features = model.vision(inputs.vision)
            hidden = model.text(embedded.astype("bfloat16"), inputs.index, inputs.positions, tuple(deepstack))
            return features, hidden, model(inputs)

        def pad(values):
            return ref.pad_tokens(ref.real_tokens(values, samples, "right"), inputs)

        embedded, deepstack = reference.inputs["layer0"][0], reference.deepstack
        features, hidden, logits = forward(state, inputs, pad(embedded), [pad(added) for added in deepstack])
        same = decode(half, samples, config, embedded, deepstack)

        def tower(name: str, rows) -> Errors:
            theirs = (np.concatenate([*chain(*ref.by_clip(seen.outputs[name], samples, 4))]) for seen in (reference, plain))
            return compare(*theirs, np.concatenate(list(tower_rows(rows, samples, config))))

        return {
            "tower": tower("tower", features.rows),
            **{f"DeepStack {i}": tower(f"deepstack{i}", rows) for i, rows in enumerate(features.by_layer)},
            "decoder": compare(*(flat(values, samples) for values in (reference.outputs["norm"][0], same, hidden))),
            "logits": compare(*(flat(values, samples) for values in (reference.logits, plain.logits, logits))),
        }

    return run


def decode(model, samples, config, embedded, deepstack) -> torch.Tensor:
    """The library's decoder in bfloat16 on the embeddings and the DeepStack features of the float32 run."""
    x, *added = (torch.from_numpy(values).to(torch.bfloat16) for values in (embedded, *deepstack))
    given = ref.torch_inputs(samples, config)
    inputs = {"position_ids": ref.our_positions(samples, "right"), "attention_mask": given["attention_mask"]}
    if added:
        is_vision = given["mm_token_type_ids"] > 0
        inputs |= {"visual_pos_masks": is_vision, "deepstack_visual_embeds": [values[is_vision] for values in added]}
    with torch.no_grad():
        return model.model.language_model(inputs_embeds=x, **inputs).last_hidden_state


def tower_rows(rows, samples, config):
    for row, sample in zip(ref.as_numpy(rows), samples, strict=True):
        start = 0
        for clip in sample.clips:
            count = len(clip.patches) // config.vision.merge_unit
            yield ref.from_our_windows(row[start : start + count], clip.grid, config.vision)
            start += count


def flat(values, samples) -> np.ndarray:
    return np.concatenate(ref.real_tokens(values, samples, "right"))


def compare(reference: np.ndarray, plain: np.ndarray, ours: np.ndarray) -> Errors:
    assert ours.shape == plain.shape == reference.shape
    return Errors(*(float(np.sqrt(np.mean((values - reference) ** 2))) for values in (ours, plain)))


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2_vl_256", "qwen3_vl_256")]


@pytest.mark.parametrize("name", ["tiny", "wide_256", *OTHERS])
def test_error_is_at_most_twice_that_of_plain_torch(errors, name):
    found = errors(name)
    assert {"tower", "decoder", "logits"} <= set(found)
    for part, error in found.items():
        print(f"{name} {part}: {error.ours:.2e} / {error.torch:.2e} = {error.ours / error.torch:.2f}")
    assert {part: error for part, error in found.items() if not 0 < error.ours <= FACTOR * error.torch} == {}
