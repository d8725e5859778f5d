"""Rung by rung against transformers in float32. Every module gets the library's own input: the first red rung is guilty.

The vision tower works in window order here and in the library; both sides are brought back to patchify order to compare.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import xla as attention
from svlm_jax.config import VISION_ROPE_THETA
from svlm_jax.data.batch import collate
from svlm_jax.inputs import Inputs, Sample
from svlm_jax.model.rope import vision_rotary
from svlm_jax.model.text import AttentionMetadata
from tests.parity import reference as ref
from tests.parity.reference import image, torch, video


class Scene(NamedTuple):
    """Prompts of one batch; `agree` says whether transformers gives them our positions (else it is given ours)."""

    prompts: tuple[tuple[ref.Piece, ...], ...]
    side: str = "right"
    agree: bool = True


MIXED = ((5, image(6, 10), 9), (7,), (3, video(3, 8, 12), 4, image(16, 16), 2))
SCENES = {
    "ragged image": Scene(((7, image(6, 10), 5),)),
    "tall image": Scene(((4, image(26, 14), 5),)),
    "image that fills its windows": Scene(((4, image(16, 16), 5),)),
    "clip": Scene(((6, video(3, 8, 12), 5),)),
    "two images": Scene(((3, image(6, 10), 4, image(26, 14), 5),)),
    "left-padded batch": Scene(MIXED, side="left"),
    "right-padded batch": Scene(MIXED, side="right"),
    "long prompt": Scene(((500, image(6, 10), 480, video(2, 8, 6), 40),)),
    "long clip at 8 fps": Scene(((6, video(9, 4, 6, fps=8.0), 5),), agree=False),
}
CLIMBS = [("seven_to_one", scene) for scene in SCENES]
CLIMBS += [("tied_wide_heads", scene) for scene in ("left-padded batch", "long prompt")]
CLIMBS += [("qwen2_vl", "left-padded batch")]  # has every kind of grid
CLIMBS += [pytest.param("qwen2_vl", scene, marks=pytest.mark.slow) for scene in SCENES if scene != "left-padded batch"]
CLIMBS += [pytest.param("qwen2_vl_tied", "long clip at 8 fps", marks=pytest.mark.slow)]
CLIMBS += [("qwen3_vl", "left-padded batch")]
CLIMBS += [pytest.param("qwen3_vl", scene, marks=pytest.mark.slow) for scene in SCENES if scene != "left-padded batch"]
CLIMBS += [
    pytest.param("qwen3_vl_tied", scene, marks=pytest.mark.slow) for scene in ("right-padded batch", "long clip at 8 fps")
]
TOKEN_BUCKETS = (64, 128, 256, 1088)  # the long prompt has 1063 tokens


class Climb(NamedTuple):
    """Everything both libraries computed for one scene."""

    pair: ref.Pair
    samples: list[Sample]
    side: str
    inputs: Inputs
    seen: ref.Trace
    ours: dict[str, np.ndarray]


def climb(both: ref.Pair, scene: Scene) -> Climb:
    samples = ref.make_samples(scene.prompts, both.config)
    given = ref.torch_inputs(samples, both.config, scene.side)
    if not scene.agree:
        given["position_ids"] = ref.our_positions(samples, scene.side)
    seen = ref.trace(both.torch, given)
    inputs = collate(samples, both.config.vision, side=scene.side, token_buckets=TOKEN_BUCKETS)
    graph, state = nnx.split(both.model)
    ours = forward(graph, state, inputs, feed(seen, samples, scene.side, inputs, both.config))
    return Climb(both, samples, scene.side, inputs, seen, {name: np.asarray(value) for name, value in ours.items()})


def feed(seen: ref.Trace, samples, side, inputs: Inputs, config) -> dict[str, np.ndarray]:
    """The library's inputs of every rung, where our arrays have them."""
    fed = {}
    for name, calls in seen.inputs.items():
        if name.startswith(("layer", "norm")):
            fed[name] = ref.pad_tokens(ref.real_tokens(calls[0], samples, side), inputs)
        elif name.startswith(("block", "merger", "deepstack")):
            fed[name] = np.zeros((*inputs.vision.patches.shape[:2], config.vision.hidden_size), np.float32)
            for b, parts in enumerate(ref.by_clip(calls, samples, 1)):
                for (start, clip), rows in zip(starts(samples[b]), parts, strict=True):
                    rows = ref.from_their_windows(rows, clip.grid, config.vision)
                    fed[name][b, start : start + len(rows)] = ref.to_our_windows(rows, clip.grid, config.vision)
    return fed


@partial(jax.jit, static_argnames="graph")
def forward(graph, state, inputs: Inputs, fed) -> dict[str, jax.Array]:
    """Every rung on the library's input of that rung, the decoder and the whole model on their own."""
    model = nnx.merge(graph, state)
    tower, decoder = model.vision, model.text
    features, (embedded, deepstack) = tower(inputs.vision), model.embed(inputs)
    out = {"patch_embed": tower.patch_embed(inputs.vision.patches), "tower": features.rows, "embed": embedded}
    out["positions"] = tower._embed(inputs.vision)
    out |= {f"features{i}": rows for i, rows in enumerate(features.by_layer)}
    index = jnp.where(
        inputs.vision.frame_range[..., 0] <= inputs.vision.frame_range[..., 1], jnp.arange(out["patch_embed"].shape[1]), -1
    )
    rotary = vision_rotary(inputs.vision.positions, tower.config.head_dim, VISION_ROPE_THETA)
    for i, block in enumerate(tower.blocks):
        full = i in tower.config.fullatt_block_indexes
        segment = inputs.vision.frame_range if full else inputs.vision.window_range
        span = inputs.vision.frame_span if full else tower.config.window_patches
        out[f"block{i}"] = block(fed[f"block{i}"], rotary, segment, index, span)
    out["merger"] = tower.merger(fed["merger"])
    out |= {f"deepstack{i}": merger(fed[f"deepstack{i}"]) for i, merger in enumerate(tower.deepstack)}
    rotary = decoder._rotary(inputs.positions)
    out["rotary"] = jnp.concatenate(rotary, axis=-1)
    for i, layer in enumerate(decoder.layers):
        out[f"layer{i}"] = layer(fed[f"layer{i}"], AttentionMetadata(rotary, inputs.index, inputs.index))[0]
    out |= {f"added{i}": rows for i, rows in enumerate(deepstack)}
    out["norm"] = decoder.norm(fed["norm"])
    out["decoder"] = decoder(fed["layer0"], inputs.index, inputs.positions, deepstack)
    out["head"] = decoder.logits(out["norm"])
    out["logits"] = model(inputs)
    return out


def starts(sample: Sample):
    """(first patch, clip) of every clip of a sample."""
    return zip(np.cumsum([0] + [len(clip.patches) for clip in sample.clips]), sample.clips, strict=False)


def vision_rows(
    climbed: Climb, rung: str, merged: bool, theirs_in_windows: bool, theirs: list[np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Ours and theirs of a vision rung, in patchify order, all clips of all samples one after the other."""
    config, calls = climbed.pair.config.vision, climbed.seen.outputs[rung] if theirs is None else theirs
    unit = config.merge_unit if merged else 1
    ours, theirs = [], []
    for b, parts in enumerate(ref.by_clip(calls, climbed.samples, unit)):
        for (start, clip), rows in zip(starts(climbed.samples[b]), parts, strict=True):
            here = climbed.ours[rung][b, start // unit :][: len(rows)]
            ours.append(ref.from_our_windows(here, clip.grid, config))
            theirs.append(ref.from_their_windows(rows, clip.grid, config) if theirs_in_windows else rows)
    return np.concatenate(ours), np.concatenate(theirs)


def token_rows(climbed: Climb, rung: str, theirs) -> tuple[np.ndarray, np.ndarray]:
    """Ours and theirs of a text rung at the real tokens of all samples."""
    sides = (climbed.ours[rung], theirs)
    return tuple(np.concatenate(ref.real_tokens(values, climbed.samples, climbed.side)) for values in sides)


def rungs(climbed: Climb) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, ours, theirs) from the bottom of the ladder to its top."""
    config, seen = climbed.pair.config, climbed.seen
    yield "patch embedding", *vision_rows(climbed, "patch_embed", merged=False, theirs_in_windows=False)
    yield "with learned positions", *vision_rows(climbed, "positions", False, True, theirs=seen.inputs["block0"])
    for i in range(config.vision.depth):
        kind = "full" if i in config.vision.fullatt_block_indexes else "window"
        yield f"{kind} block {i}", *vision_rows(climbed, f"block{i}", merged=False, theirs_in_windows=True)
    yield "merger", *vision_rows(climbed, "merger", merged=True, theirs_in_windows=True)
    stacked = range(len(config.vision.deepstack_visual_indexes))
    for i in stacked:
        yield f"DeepStack merger {i}", *vision_rows(climbed, f"deepstack{i}", merged=True, theirs_in_windows=False)
    yield "whole tower", *vision_rows(climbed, "tower", merged=True, theirs_in_windows=False)
    for i in stacked:
        yield f"whole tower, DeepStack {i}", *vision_rows(climbed, f"features{i}", True, False, seen.outputs[f"deepstack{i}"])
    yield "vision rows in the place of the pads", *token_rows(climbed, "embed", seen.inputs["layer0"][0])
    yield (
        "rotary cosines and sines",
        *token_rows(climbed, "rotary", np.broadcast_to(seen.rotary, (len(climbed.samples), *seen.rotary.shape[1:]))),
    )
    for i in stacked:
        yield f"DeepStack {i} in the place of the pads", *token_rows(climbed, f"added{i}", seen.deepstack[i])
    for i in range(config.text.num_hidden_layers):
        yield f"decoder layer {i}", *token_rows(climbed, f"layer{i}", seen.outputs[f"layer{i}"][0])
    yield "final norm", *token_rows(climbed, "norm", seen.outputs["norm"][0])
    yield "all layers and final norm", *token_rows(climbed, "decoder", seen.outputs["norm"][0])
    yield "head", *token_rows(climbed, "head", seen.logits)
    yield "end to end", *token_rows(climbed, "logits", seen.logits)


@pytest.mark.parametrize(("name", "scene"), CLIMBS)
def test_every_rung_is_that_of_the_library(pair, name, scene):
    climbed = climb(pair(name), SCENES[scene])
    found = {rung: ref.ratio(ours, theirs) for rung, ours, theirs in rungs(climbed)}
    print("".join(f"{rung}: {value:.1e}\n" for rung, value in found.items()))
    red = [rung for rung, value in found.items() if not value <= ref.TOLERANCE]
    assert not red, f"first red rung: {red[0]} (off by {found[red[0]]:.1e} of its largest value), then {red[1:]}"
    assert [rung for rung, values in climbed.ours.items() if not np.isfinite(values).all()] == []  # padding too


@pytest.mark.parametrize("name", ["seven_to_one", "qwen3_vl"])
@pytest.mark.parametrize("scene", SCENES)
def test_positions_are_those_of_the_library_where_the_rules_agree(pair, name, scene):
    both, (prompts, side, agree) = pair(name), SCENES[scene]
    agree = agree or name == "qwen3_vl"  # whose time is text: each temporal patch is a block with one t
    samples = ref.make_samples(prompts, both.config)
    ours = collate(samples, both.config.vision, side=side).positions.swapaxes(1, 2)
    theirs = ref.their_positions(both.torch, samples, both.config, side)
    assert np.array_equal(np.concatenate(ref.real_tokens(ours, samples, side)), np.concatenate(theirs)) == agree


def test_attention_in_blocks_of_queries_changes_nothing(pair, monkeypatch, measure):
    monkeypatch.setattr(attention, "SCORE_BUDGET", 1 << 14)  # far below what these prompts need
    monkeypatch.setattr(attention, "QUERY_BLOCK", 48)  # does not divide the prompt
    both = pair("seven_to_one")
    samples = ref.make_samples(MIXED, both.config)
    with torch.no_grad():
        theirs = both.torch(**ref.torch_inputs(samples, both.config, "left")).logits
    graph, state = nnx.split(both.model)
    inputs = collate(samples, both.config.vision, side="left")
    ours = jax.jit(lambda state, inputs: nnx.merge(graph, state)(inputs))(state, inputs)
    ours, theirs = (np.concatenate(ref.real_tokens(values, samples, "left")) for values in (ours, theirs))
    measure("end to end in blocks", ours, theirs)
