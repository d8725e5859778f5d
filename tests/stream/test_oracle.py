"""The oracle of tests/support/oracle.py against the recorded runs of the original code, and at edges that no recording has.

At the edges a token is one letter: Y system; [p: and [u: and [r: heads of previous text, user turn and reply; digits the time;
(####) a vision block; > <|im_end|>; / the "\\n" after it.
"""

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
from tests.support.oracle import Oracle, Part, Place, Step, Windows, opening_parts, turn_parts
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


# Edges, in letters.

END, NEWLINE = ord(">"), ord("/")


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def begun(asked: Windows, words: str = "abc") -> Oracle:
    stream = Oracle(asked, END, NEWLINE)
    runs = [("previous", "head", "[p:"), ("previous", "words", words), ("previous", "end", ">"), ("previous", "newline", "/")]
    stream.begin([Part("system", "words", letters("Y")), *(Part(role, part, letters(text)) for role, part, text in runs)])
    return stream


def user(number: int, *, grid: tuple[int, int, int] = (1, 4, 4), step: float = 2.0) -> list[Part]:
    runs = [("head", "[u:"), ("time", str(number)), ("vision", "("), ("vision", ")"), ("query", "" if number else "?")]
    parts = [Part("user", part, letters(text)) for part, text in [*runs, ("end", ">"), ("newline", "/")]]
    pads = Part("user", "vision", letters("#" * (grid[0] * grid[1] * grid[2] // 4)), grid, step)
    return [*parts[:3], pads, *parts[3:], Part("reply", "head", letters("[r:"))]


def show(stream: Oracle) -> str:
    return "".join(chr(id) for id in stream.ids)


def sequences(asked: Windows, replies: list[str], words: str = "abc") -> list[str]:
    """The retained sequence of each turn when the replies before it were these."""
    stream = begun(asked, words)
    shown: list[str] = []
    for number in range(len(replies) + 1):
        stream.turn(user(number))
        shown.append(show(stream))
        if number < len(replies):
            stream.reply(letters(replies[number]))
    return shown


V = "(####)"  # a vision block


def test_a_turn_is_evicted_whole_when_both_windows_are_one():
    """The newest reply is the oldest: its words move although its end was never computed, and no second "\\n" is added."""
    stream = begun(Windows(1, 1, text_window=None))
    stream.turn(user(0))
    stream.reply(letters("xyz.>"))
    stream.turn(user(1))
    assert show(stream) == f"Y[p:abcxyz>/[u:1{V}>/[r:"
    stream.reply(letters(">"))
    assert stream.turn(user(2)).cached_before == len("Y[p:abcxyz>/")
    assert show(stream) == f"Y[p:abcxyz>/[u:2{V}>/[r:"


def test_vision_window_longer_than_one_round_of_text():
    assert sequences(Windows(3, 1, text_window=None), ["xy.>", "z.>", "w.>"]) == [
        f"Y[p:abc>/[u:0{V}?>/[r:",
        f"Y[p:abcxy>/[u:{V}?>/[u:1{V}>/[r:",
        f"Y[p:abcxyz>/[u:{V}?>/[u:{V}>/[u:2{V}>/[r:",
        f"Y[p:abcxyzw>/[u:{V}>/[u:{V}>/[u:3{V}>/[r:",
    ]


def test_vision_window_of_one_leaves_time_query_and_replies():
    assert sequences(Windows(1, 2, text_window=None), ["xy.>", "z.>", "w.>"]) == [
        f"Y[p:abc>/[u:0{V}?>/[r:",
        f"Y[p:abc>/[u:0?>/[r:xy.>/[u:1{V}>/[r:",
        f"Y[p:abcxy>/[u:1>/[r:z.>/[u:2{V}>/[r:",
        f"Y[p:abcxyz>/[u:2>/[r:w.>/[u:3{V}>/[r:",
    ]


def test_an_empty_reply_moves_nothing():
    shown = sequences(Windows(2, 2, text_window=None), [">", "z.>", "w.>"])
    assert shown[1] == f"Y[p:abc>/[u:0{V}?>/[r:>/[u:1{V}>/[r:"
    assert shown[2] == f"Y[p:abc>/[u:1{V}>/[r:z.>/[u:2{V}>/[r:"
    assert shown[3] == f"Y[p:abcz>/[u:2{V}>/[r:w.>/[u:3{V}>/[r:"


def test_a_reply_that_was_cut_is_closed_and_loses_its_last_word():
    stream = begun(Windows(1, 1, text_window=None))
    stream.turn(user(0))
    computed = stream.reply(letters("xyz")).computed
    assert show(stream).endswith("[r:xyz>")
    assert [chr(token.id) for token in computed] == ["x", "y"]
    stream.turn(user(1))
    assert show(stream) == f"Y[p:abcxy>/[u:1{V}>/[r:"


def test_the_end_of_a_cut_reply_is_computed_with_the_next_turn():
    stream = begun(Windows())
    stream.turn(user(0))
    stream.reply(letters("xyz"))
    step = stream.turn(user(1))
    assert "".join(chr(token.id) for token in step.computed) == f"z>/[u:1{V}>/[r:"
    assert step.cached_before == len(show(stream)) - len(step.computed)


CUTS = [(2, 3, "abef"), (0, 3, "ef"), (2, 1, "ab"), (0, 1, ""), (3, 3, "abcef"), (3, 4, "abcdef"), (9, 9, "abcdef")]


@pytest.mark.parametrize(("sink", "text_window", "kept"), [*CUTS, (2, None, "abcdef")])
def test_sink_and_slide_keep_first_and_last_words_and_never_cross(sink: int, text_window: int | None, kept: str):
    stream = begun(Windows(sink=sink, text_window=text_window), "abcdef")
    stream.turn(user(0))
    assert show(stream).startswith("Y[p:abcdef>/")  # the first turn finds all of it
    stream.reply(letters("."))
    stream.turn(user(1))
    assert show(stream).startswith(f"Y[p:{kept}>/[u:0")


def test_words_move_before_the_previous_text_is_cut():
    assert sequences(Windows(1, 1, sink=1, text_window=3), ["uvwxyz.>"])[1].startswith("Y[p:ayz>/[u:1")


def test_a_word_that_moved_is_the_same_token_and_is_not_computed_again():
    stream = begun(Windows(1, 1, text_window=None))
    stream.turn(user(0))
    stream.reply(letters("xyz.>"))
    word = next(token for token in stream.retained if chr(token.id) == "x")
    seen, place = word.seen, word.place
    computed = stream.turn(user(1)).computed
    assert stream.retained[show(stream).index("x")] is word
    assert word.seen is seen
    assert word.serial not in [token.serial for token in computed]
    assert word.place == (7, 7, 7) != place


def test_tokens_see_what_was_retained_then_and_not_what_is_now():
    stream = begun(Windows(1, 1, text_window=None))
    stream.turn(user(0))
    stream.reply(letters("xyz.>"))
    gone = [token.serial for token in stream.retained if token.part == "vision"]
    step = stream.turn(user(1))
    words = [token for token in stream.retained if chr(token.id) in "xyz"]
    assert all(set(gone) <= {serial for serial, _ in token.seen or ()} for token in words)
    for number, token in enumerate(step.computed, start=step.cached_before):
        expected = [(other.serial, other.place) for other in stream.retained[: number + 1]]
        assert token.seen == expected


@pytest.mark.parametrize("step", [2.0, 0.5, 4 / 3])
def test_vision_counts_on_three_axes_and_text_goes_on_after_the_largest(step: float):
    stream = begun(Windows(), "")
    stream.turn(user(0, grid=(3, 4, 8), step=step))
    start = len("Y[p:>/[u:0(")
    block = np.indices((3, 2, 4)).reshape(3, -1) * np.array([[step], [1], [1]]) + start
    np.testing.assert_array_equal(stream.positions[:, start : start + 24], block.astype(np.float32))
    after = start + max(3, 2 * step) + 1
    np.testing.assert_allclose(stream.positions[:, start + 24], [after] * 3, rtol=1e-6)
    text = stream.positions[:, [*range(start), *range(start + 24, stream.cached)]]
    assert np.ptp(text, axis=0).max() == 0
    np.testing.assert_allclose(np.delete(np.diff(text[0]), start - 1), 1, rtol=1e-6)


def test_shrunk_positions_stay_bounded_and_appended_ones_never_move():
    ends: dict[str, list[float]] = {"contiguous": [], "native": []}
    base = Windows(2, 2, sink=2, text_window=3)
    for mode, asked in {"contiguous": base, "native": replace(base, rope_positions="native")}.items():
        stream, largest = begun(asked), ends[mode]
        places: dict[int, Place | None] = {}
        for number in range(8):
            step = stream.turn(user(number))
            if mode == "native":
                assert all(places.setdefault(token.serial, token.place) == token.place for token in stream.retained)
                assert step.computed[0].seen[-1][1][0] == (largest[-1] + 1 if largest else 0)
            stream.reply(letters("xyz.>"))
            largest.append(stream.positions.max())
    assert ends["contiguous"][3:] == [ends["contiguous"][3]] * 5
    assert ends["native"] == sorted(set(ends["native"]))


def test_appended_positions_go_on_after_a_reply_that_is_gone():
    stream = begun(Windows(1, 1, text_window=None, rope_positions="native"))
    stream.turn(user(0))
    last = stream.reply(letters("xyz.>")).computed[-1].seen[-1][1][0]
    assert stream.turn(user(1)).computed[0].seen[-1][1] == (last + 1,) * 3


def test_one_axis_counts_tokens():
    stream = begun(Windows(mrope_axes=1))
    stream.turn(user(0, grid=(2, 4, 8)))
    np.testing.assert_array_equal(stream.positions, [np.arange(stream.cached)] * 3)


def test_full_attention_forgets_nothing():
    shown = sequences(Windows(1, 1, 0, 1, mode="full"), ["xy.>", "zw"])
    assert shown[-1] == f"Y[p:abc>/[u:0{V}?>/[r:xy.>/[u:1{V}>/[r:zw>/[u:2{V}>/[r:"


def test_a_window_without_overlap_begins_anew():
    stream = begun(Windows(1, 1, 0, 1, mode="window", window_chunks=2))
    first: list[int] = []
    for number in range(4):
        step = stream.turn(user(number))
        assert step.cached_before == (0 if number % 2 == 0 else len(first) + len("xy."))
        first = stream.ids
        stream.reply(letters("xy.>"))
    assert show(stream) == f"Y[p:abc>/[u:2{V}>/[r:xy.>/[u:3{V}>/[r:xy.>"
    assert len({token.serial for token in stream.retained}) == len(stream.retained)
    assert min(token.serial for token in stream.retained) > len(first)


@pytest.mark.parametrize("rope_positions", ["contiguous", "native"])
def test_positions_of_a_new_window_begin_at_zero(rope_positions):
    stream = begun(Windows(rope_positions=rope_positions, mode="window", window_chunks=1))
    ends = []
    for number in (1, 2):
        stream.turn(user(number))
        ends.append(stream.positions)
        stream.reply(letters("xy.>"))
    assert ends[0][0, 0] == 0
    np.testing.assert_array_equal(*ends)


def test_recomputing_evicts_as_streaming_does_and_computes_all_of_it_again():
    kept, replies = Windows(2, 2, 2, 3), ["xyz.>", "w", ">", "uv.>"]
    assert sequences(kept, replies) == sequences(replace(kept, mode="recompute"), replies)
    stream = begun(replace(kept, mode="recompute"))
    for number, reply in enumerate(replies):
        step = stream.turn(user(number))
        assert step.cached_before == 0
        every = [(token.serial, token.place) for token in stream.retained]
        assert [token.seen for token in step.computed] == [every[:n] for n in range(1, len(every) + 1)]
        stream.reply(letters(reply))
