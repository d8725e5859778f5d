"""Streams of a small Qwen3-VL: every logit against the decoder in numpy and what the oracle says it sees, DeepStack included,
through every kind of eviction; and that stamps cost no compilation and no slot for ever."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from svlm_jax.checkpoint import huggingface
from svlm_jax.config import StreamConfig
from svlm_jax.decode.sampling import Sampling
from svlm_jax.families import FAMILIES, config_json
from svlm_jax.families.chat import Tokenizer
from svlm_jax.inputs import Clip, pack_vision
from svlm_jax.media.processor import load_tokenizer
from svlm_jax.model.parameters import from_parameters
from svlm_jax.model.vlm import QwenVL
from svlm_jax.spans import Kind, Part
from svlm_jax.stream import state_io
from svlm_jax.stream.results import require_reply
from svlm_jax.stream.sequence import Chunk
from svlm_jax.stream.session import Session
from svlm_jax.stream.stream_settings import StreamSettings
from svlm_jax.stream.warmup import warm
from tests.support.families import tiny_checkpoint
from tests.support.oracle import Computed, Oracle, Windows, opening_parts, turn_parts
from tests.support.oracle_numeric import NumpyDecoder
from tests.support.sessions import Compiled

GRID = (2, 4, 6)  # 4 frames a second: two frame pairs, two stamps
TOLERANCE = 1e-4  # of a difference of logits, which are of order 1: float32 against float64, thirty times what rounding gives
GREEDY = Sampling(repetition_penalty=1.05)
QUERY = "Commentate"


class Model(NamedTuple):
    directory: Path
    model: QwenVL
    tokenizer: Tokenizer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Model:
    directory = tiny_checkpoint(FAMILIES["qwen3_vl"], tmp_path_factory.mktemp("qwen3_vl") / "model")
    config = config_json.read(directory)
    assert config.vision.deepstack_visual_indexes == (0, 1) and config.text.mrope_interleaved
    return Model(directory, from_parameters(config, huggingface.load(directory, config)), load_tokenizer(directory))


def session(tiny: Model, vision: int, rounds: int, **config) -> Session:
    stream = StreamConfig(vision_window=vision, text_rounds=rounds, sink=6, text_window=6, fps=4.0, max_new_tokens=6, **config)
    return Session(tiny.model, tiny.tokenizer, stream, GRID, sampling=GREEDY)


@pytest.fixture(scope="module")
def evicting(tiny) -> tuple[Session, object]:
    """A session whose vision outlives its replies, which are computed anew when they move; and a state of it."""
    opened = session(tiny, 3, 2, moved_reply_kv="recompute")
    return opened, opened.init_state()


def chunk(number: int, grid: tuple[int, int, int] = GRID) -> Chunk:
    patches = np.random.default_rng([3, number]).normal(size=(int(np.prod(grid)), 1536)).astype(np.float32)
    return Chunk(number, number + 1, Clip(patches, grid, 1.0, video=True))


class Reference:
    """The stream told by the oracle and computed by numpy, given what the vision tower makes of each chunk."""

    def __init__(self, tiny: Model, opened: Session) -> None:
        self.encode = partial(tiny.tokenizer.encode, add_special_tokens=False)
        config = opened.config
        windows = Windows(
            config.vision_window,
            config.text_rounds,
            config.sink or 0,
            config.text_window,
            mode=config.mode,
            recompute_moved=config.moved_reply_kv == "recompute",
        )
        self.oracle = Oracle(windows, opened.turn_tokenizer.end_of_turn, int(opened.turn_tokenizer.newline[0]))
        self.oracle.begin(opening_parts(self.encode, "", system=False))
        self.decoder, self.opened = NumpyDecoder(tiny.directory), opened
        self.tower = jax.jit(lambda frames: tiny.model.vision(frames))
        self.features: dict[int, list[np.ndarray]] = {}  # of each turn: the rows, and what is added after each first layer

    def logits(self, number: int, this: Chunk, tokens: list[int]) -> np.ndarray:
        """Of all that is computed for a chunk, the reply included."""
        frames, (rows,) = pack_vision([[(this.clip.patches, GRID)]], self.opened.model_config.vision, int(np.prod(GRID)))
        found = self.tower(frames)
        self.features[number] = [np.asarray(part)[0, rows] for part in (found.rows, *found.by_layer)]
        query = "" if number else QUERY
        parts = turn_parts(self.encode, number, number + 1, GRID, step=1.0, query=query, stamped=True)
        computed = [*self.oracle.turn(parts).computed, *self.oracle.reply(tokens).computed]
        return np.array([self._compute(token) for token in computed])

    def _compute(self, token: Computed) -> np.ndarray:
        if token.pad is None:
            return self.decoder.compute(token)
        row, *deep = (part[token.pad.index] for part in self.features[token.turn])
        return self.decoder.compute(token, row, deep)


def check(tiny: Model, opened: Session, state, chunks: int) -> None:
    reference, differences = Reference(tiny, opened), []
    state = opened.join(state, settings=StreamSettings(query=QUERY))
    for number in range(chunks):
        this = chunk(number)
        state, (result,) = opened.step(state, [this], record=True)
        reply = require_reply(result)
        assert reply.logits is not None
        logits = reference.logits(number, this, reply.tokens.tolist())
        differences.append(np.abs(logits[-len(reply.logits) :] - reply.logits))
        seq = state.streams[0]
        assert seq is not None and seq.ids.tolist() == reference.oracle.ids
    assert max(one.max() for one in differences) <= TOLERANCE


def test_logits_are_those_of_what_is_retained(tiny, evicting):
    check(tiny, *evicting, chunks=7)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        {"vision": 2, "rounds": 4},
        {"vision": 4, "rounds": 2},
        {"vision": 2, "rounds": 2, "moved_reply_kv": "recompute"},
        {"vision": 2, "rounds": 3, "mode": "recompute"},
        {"vision": 3, "rounds": 2, "mode": "recompute"},
        {"vision": 9, "rounds": 9, "mode": "full"},
    ],
)
def test_logits_are_those_of_what_is_retained_in_all_modes(tiny, config):
    """`recompute` gives the decoder the DeepStack features of all retained frames; the others those of new ones alone."""
    opened = session(tiny, **config)
    check(tiny, opened, opened.init_state(), chunks=8)


def test_nothing_compiles_and_no_stamp_is_left_over_while_stamps_grow_longer(evicting):
    opened, state = evicting[0], warm(evicting[0], evicting[0].init_state(), chunk(0).clip)
    state, clip = opened.join(state, settings=StreamSettings(query=QUERY)), chunk(0).clip
    with Compiled() as compiled:
        for number in range(8):
            second = 9_997 + number
            state, (result,) = opened.step(state, [Chunk(second, second + 1, clip)])
            assert require_reply(result).after <= opened.capacity == state.cache.capacity
            seq = state.streams[0]
            assert seq is not None and len(set(seq.slots[seq.slots >= 0].tolist())) == seq.cached
            kinds = [(span.part, span.grid is not None) for span in seq.spans if span.kind == Kind.VISION]
            block = [(Part.HEAD, False), (Part.BODY, True), (Part.TAIL, False)]
            assert kinds == 2 * min(number + 1, opened.config.vision_window) * block
    assert compiled.count == 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["streaming", "recompute"])
def test_a_saved_state_goes_on_with_the_same_logits(tiny, tmp_path, mode):
    opened = session(tiny, 2, 3, mode=mode)
    state = opened.join(opened.init_state(), settings=StreamSettings(query=QUERY))
    for number in range(4):
        state, _ = opened.step(state, [chunk(number)])
    state_io.save(tmp_path / "a.state", opened, state)
    loaded = state_io.load(tmp_path / "a.state", opened)
    for number in range(4, 7):
        state, ours = opened.step(state, [chunk(number)], record=True)
        loaded, theirs = opened.step(loaded, [chunk(number)], record=True)
        np.testing.assert_array_equal(require_reply(ours[0]).logits, require_reply(theirs[0]).logits)
