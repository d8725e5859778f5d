"""The oracle of tests/support/oracle.py against the recorded runs of the original code. Edges that no recording has:
tests/stream/test_oracle_edges.py."""

import json
from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple

import jax
import numpy as np
import pytest

from svlm_jax.checkpoint import huggingface
from svlm_jax.data.batch import collate
from svlm_jax.families import config_json
from svlm_jax.inputs import Clip, Sample
from svlm_jax.media.pixels import normalise, patchify
from svlm_jax.media.processor import load_tokenizer
from svlm_jax.model.parameters import from_parameters
from svlm_jax.spans import vision_span
from tests.support import FIXTURES
from tests.support.oracle import Oracle, Step, Windows, opening_parts, turn_parts
from tests.support.oracle_numeric import NumpyDecoder
from tests.support.pixels import STREAM_FRAME

RECORDED = sorted(path.stem for path in (FIXTURES / "streams").glob("*.json"))
TOKENS_PER_SECOND = 2  # of both recorded models
MOST, MEDIAN = 2e-3, 2e-4  # agreement of logits that the recordings promise
every_recording = pytest.mark.parametrize("name", RECORDED)


class Round(NamedTuple):
    """What the oracle says of one round, at the same moments as the recording."""

    ids: list[int]
    turn: Step
    reply: Step
    cached: int
    before: np.ndarray  # positions of all that is computed, before the reply and after it
    after: np.ndarray


@cache
def read(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    path = FIXTURES / "streams" / name
    return json.loads(path.with_suffix(".json").read_text()), dict(np.load(path.with_suffix(".npz")))


def windows(config: dict) -> Windows:
    return Windows(
        vision_window=config["window_size"],
        text_rounds=config["text_round"],
        sink=config["text_sink"] or 0,
        text_window=config["text_sliding_window"],
        rope_positions={"shrink": "contiguous", "append": "native"}[config["pos_mode"]],
        mrope_axes=1 if config["all_text"] else 3,
        mode="recompute" if config["recompute"] else "streaming",
    )


def replay(recording: dict, asked: Windows) -> list[Round]:
    """The replies of a recording through an oracle."""
    config = recording["config"]
    encode = partial(load_tokenizer(FIXTURES / "processor").encode, add_special_tokens=False)
    stream = Oracle(asked, im_end=encode("<|im_end|>")[0], newline=encode("\n")[0])
    stream.begin(opening_parts(encode, config["previous_text"]))
    rounds: list[Round] = []
    for number, this in enumerate(recording["rounds"]):
        query = "" if number else config["query"]
        step = TOKENS_PER_SECOND * 2 / config["fps"]
        turn = stream.turn(turn_parts(encode, this["start"], this["end"], this["grid_thw"][-1], step=step, query=query))
        ids, before = stream.ids, stream.positions
        reply = stream.reply(this["generated"])
        rounds.append(Round(ids, turn, reply, stream.cached, before, stream.positions))
    return rounds


@cache
def replayed(name: str) -> list[Round]:
    recording = read(name)[0]
    return replay(recording, windows(recording["config"]))


@every_recording
def test_recorded_ids_and_lengths_are_the_oracles(name: str):
    rounds = read(name)[0]["rounds"]
    assert len(rounds) >= 12
    for ours, theirs in zip(replayed(name), rounds, strict=True):
        assert ours.ids == theirs["input_ids"]
        assert (ours.turn.cached_before, ours.cached) == (theirs["cached_before"], theirs["cached_after"])
        assert len(ours.turn.computed) == len(ours.ids) - theirs["cached_before"]
        assert len(ours.reply.computed) == len(theirs["generated"]) - 1


@every_recording
def test_recorded_positions_are_the_oracles(name: str):
    recording, arrays = read(name)
    compared = 0
    for number, ours in enumerate(replayed(name)):
        native = recording["config"]["pos_mode"] == "append"
        expected = {"prefill": ours.before, "last": ours.after}
        if native:
            expected = {"prefill": ours.before[:, ours.turn.cached_before :], "last": ours.after[:, -1:]}
        for moment, positions in expected.items():
            if f"pos_{moment}_{number}" in arrays:
                np.testing.assert_array_equal(positions, arrays[f"pos_{moment}_{number}"])
                compared += 1
    assert compared == len([key for key in arrays if key.startswith("pos_")]) >= 20


@cache
def features(name: str) -> list[np.ndarray]:
    """Rows [M, D] of every round's frames, from the model's vision tower."""
    recording, arrays = read(name)
    config, model = recording["config"], FIXTURES / "models" / recording["model"]
    shape = (3, config["frame_height"], config["frame_width"])
    settings = config_json.read(model)
    tower = from_parameters(settings, huggingface.load(model, settings)).vision
    run = jax.jit(lambda vision: tower(vision).rows)
    rows: list[np.ndarray] = []
    for number, this in enumerate(recording["rounds"]):
        seeds = [1000 + config["seed"] * 7919 + frame for frame in this["frames"]]
        frames = np.stack([np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8) for seed in seeds])
        patches, grid = patchify(normalise(frames.transpose(0, 2, 3, 1), STREAM_FRAME), STREAM_FRAME)
        assert list(grid) == this["grid_thw"][-1]
        if f"pixels_{number}" in arrays:  # those of a recomputed round show all retained chunks, this one last
            np.testing.assert_allclose(patches, arrays[f"pixels_{number}"][-len(patches) :], rtol=0, atol=1e-6)
        span = vision_span(grid)
        clip = Clip(patches, grid, video=True)
        inputs = collate([Sample(np.zeros(span.length, np.int32), (span,), (clip,))], settings.vision)
        rows.append(np.asarray(run(inputs.vision))[0, inputs.vision_index[0, : span.length]])
    return rows


def differences(name: str, rounds: list[Round]) -> list[np.ndarray]:
    """|logits of the numpy decoder - recorded ones|, for the rounds that have any."""
    recording, arrays = read(name)
    rows, decoder = features(name), NumpyDecoder(FIXTURES / "models" / recording["model"])
    found: list[np.ndarray] = []
    for number, this in enumerate(rounds):
        logits = [
            decoder.compute(token, None if token.pad is None else rows[token.turn][token.pad.index])
            for token in [*this.turn.computed, *this.reply.computed]
        ]
        if f"logits_{number}" in arrays:
            recorded = arrays[f"logits_{number}"]
            found.append(np.abs(np.array(logits[-len(recorded) :]) - recorded))
    return found


QUICK = ["equal_windows", "native_rope_append"]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in RECORDED if name not in QUICK]


@pytest.mark.parametrize("name", QUICK + SLOW)
def test_recorded_logits_are_those_of_what_the_oracle_sees(name: str):
    found = differences(name, replayed(name))
    assert len(found) == len([key for key in read(name)[1] if key.startswith("logits_")]) >= 3
    assert max(d.max() for d in found) <= MOST
    assert max(np.median(d) for d in found) <= MEDIAN


def test_logits_differ_once_what_is_retained_is_recomputed():
    recording = read("equal_windows")[0]
    short = {**recording, "rounds": recording["rounds"][:6]}
    rounds = replay(short, replace(windows(recording["config"]), mode="recompute"))
    assert [ours.ids for ours in rounds] == [theirs["input_ids"] for theirs in short["rounds"]]
    recorded = [number for number in range(6) if f"logits_{number}" in read("equal_windows")[1]]
    largest = dict(zip(recorded, (d.max() for d in differences("equal_windows", rounds)), strict=True))
    assert max(largest[number] for number in recorded if number < 4) <= MOST  # nothing was evicted yet
    assert min(largest[number] for number in recorded if number >= 4) > 100 * MOST
