"""The host side of the engine beside the oracle of tests/support/oracle.py: what a stream retains, in which slots, and what its
tokens see. Owns one stream through sequence, policy and tables without a device, and the comparison chunk by chunk."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np

from svlm_jax.config import StreamConfig
from svlm_jax.decode.sampling import Sampling
from svlm_jax.families import chat, config_json, family_of
from svlm_jax.inputs import Clip
from svlm_jax.media.processor import load_tokenizer
from svlm_jax.spans import merged_tokens, total
from svlm_jax.stream import batch, policy, sequence
from svlm_jax.stream.sequence import Chunk
from svlm_jax.stream.stream_settings import StreamSettings
from svlm_jax.stream.turn_tokenizer import TurnTokenizer, longest_turn
from tests.support import FIXTURES, oracle
from tests.support.oracle import Oracle, Windows, opening_parts, turn_parts

LONGEST = 6  # tokens of a reply
GRIDS = ((1, 2, 2), (1, 2, 4), (2, 4, 2), (1, 4, 6))
WORDS = ("red ", "blue ball ", "goal", "the team scores ")


@cache
def turns(family: str = "qwen2_5_vl") -> TurnTokenizer:
    """Of the tiny model, with the chat format of a family."""
    config = replace(config_json.read(FIXTURES / "models" / "tiny"), model_type=family)
    return TurnTokenizer.of(load_tokenizer(FIXTURES / "processor"), config)


def is_stamped(turns: TurnTokenizer) -> bool:
    """Whether each frame pair has a time stamp."""
    return family_of(turns.config).chat.frame_text is not None


def encode(text: str) -> list[int]:
    return turns().tokenizer.encode(text, add_special_tokens=False)


class Engine:
    """One stream through sequence, policy and tables, with the device told by numpy: which token each slot holds."""

    def __init__(
        self,
        config: StreamConfig,
        previous: str,
        query: str,
        turns: TurnTokenizer = turns(),  # noqa: B008
        grid: tuple[int, int, int] = max(GRIDS, key=np.prod),
    ) -> None:
        self.config, self.turns = config, turns
        opening = chat.opening(previous, turns.tokenizer, turns.config)
        turn = longest_turn(grid, turns.tokenizer, turns.config)
        self.capacity = policy.capacity(config, opening.spans, turn, chunks=200)
        self.state = sequence.new_stream(
            opening, StreamSettings(query=query), replace(config, max_new_tokens=LONGEST), Sampling()
        )
        self.slots = np.full(self.capacity, -1)  # serial number of what each slot holds

    def turn(self, chunk: Chunk, serials: list[int], size: int) -> list[list[tuple[int, tuple]]]:
        """Take a chunk; the new tokens have these serial numbers. What each of them sees, as the oracle tells it."""
        turn, _ = sequence.next_turn(self.state, chunk, self.turns)
        self.check(turn)
        kept = turn.slots[turn.slots >= 0]
        assert len(set(kept.tolist())) == len(kept)
        self.scheduled = batch.ScheduledSequence(turn, *policy.allocate(turn.slots, LONGEST, self.capacity))
        every = np.concatenate([self.scheduled.slots, self.scheduled.reply_slots])
        assert len(set(every.tolist())) == len(every) and every.max() < self.capacity
        np.testing.assert_array_equal(self.scheduled.slots[: turn.cached], turn.slots[: turn.cached])  # nothing cached moves
        self.index, self.positions = (array[0] for array in batch.slot_metadata([self.scheduled], self.capacity))
        seen, left, self.vision_index = [], iter(serials), []
        vision = self.turns.config.vision
        _, where = batch.vision_input([[clip for _, clip in turn.clips]], self.turns.config, 64 * 8, 64)
        sizes = [merged_tokens(clip.grid) for _, clip in turn.clips]
        tower_rows = np.split(where[0], np.cumsum(sizes)[:-1])
        self.tower_rows = {number: rows for (number, _), rows in zip(turn.clips, tower_rows, strict=True)}
        newest = []
        for piece in batch.prefill_batches([self.scheduled], where, size, self.capacity, vision.spatial_merge_size):
            real = np.flatnonzero(piece.inputs.index[0] >= 0)
            for column in real:
                self.slots[piece.slots[0, column]] = next(left)
            for column in real:
                place = piece.inputs.index[0, column]
                assert piece.inputs.ids[0, column] == turn.ids[place]
                self.vision_index.append(int(piece.inputs.vision_index[0, column]))
                np.testing.assert_array_equal(piece.inputs.positions[0, :, column], turn.positions[:, place])
                seen.append(self.visible(place))
            assert (piece.slots[0][piece.inputs.index[0] < 0] == self.capacity).all()
            newest += [real[-1]] if piece.newest[0] >= 0 else []
            assert piece.newest[0] in (-1, real[-1])
        assert len(newest) == 1 and next(left, None) is None and vision.spatial_merge_size == 2
        return seen

    def reply(self, tokens: list[int], serials: list[int]) -> list[list[tuple[int, tuple]]]:
        inputs = batch.decode_inputs([self.scheduled], [None], LONGEST, np.zeros(448, bool), self.turns.end_of_turn)
        assert set(np.flatnonzero(inputs.generated[0])) == set(self.scheduled.seq.ids.tolist())
        seen = []
        for count, serial in enumerate(serials):
            slot, place = inputs.slots[0, count], inputs.index[0] + count
            assert self.index[slot] == place and (self.positions[:, slot] == inputs.position[0] + count).all()
            self.slots[slot] = serial
            seen.append(self.visible(place))
        state = self.scheduled.seq._replace(slots=self.scheduled.slots)
        self.state = sequence.with_reply(state, np.array(tokens, np.int32), self.scheduled.reply_slots, self.turns)
        self.check(self.state)
        return seen

    def visible(self, place: int) -> list[tuple[int, tuple]]:
        """(serial, position) of the slots that a token at `place` sees, in the order of their indexes."""
        slots = np.flatnonzero((self.index >= 0) & (self.index <= place))
        slots = slots[np.argsort(self.index[slots])]
        return [(int(self.slots[slot]), tuple(self.positions[:, slot].tolist())) for slot in slots]

    @staticmethod
    def check(state: sequence.StreamSequence) -> None:
        assert total(state.spans) == len(state.ids) == len(state.slots) == state.positions.shape[1]
        assert (state.slots[: state.cached] >= 0).all() and (state.slots[state.cached :] < 0).all()


def told(seen: list[tuple[int, tuple]]) -> list[tuple[int, tuple]]:
    return [(serial, tuple(np.float32(place).tolist())) for serial, place in seen]


def question_parts(parts: list[oracle.Part], chunk: Chunk, asked: str, stamped: bool = False) -> list[oracle.Part]:
    """A user turn whose time text has a question after it; `stamped`: a question and no time text."""
    time = encode(asked.lstrip() if stamped else f"Time={chunk.start:.1f}-{chunk.end:.1f}s{asked}")
    return [part._replace(ids=time) if part.part == oracle.TIME else part for part in parts]


def compare(
    config: StreamConfig,
    previous: str,
    query: str,
    draw: Callable,
    chunks: int,
    size: int,
    *,
    engine: Engine | None = None,
    start: int = 0,
) -> int:
    """Run both; the largest number of spans that there was.

    Args:
        draw: (number of the chunk) -> its grid and step, the words of the reply and whether it ends, a question, a mask.
        size: tokens of a prefill batch.
        engine: of another family.
        start: the second at which the stream begins.
    """
    ours = engine or Engine(config, previous, query)
    stamped = is_stamped(ours.turns)
    windows = Windows(
        vision_window=config.vision_window,
        text_rounds=config.text_rounds,
        sink=config.sink or 0,
        text_window=config.text_window,
        rope_positions=config.rope_positions,
        mrope_axes=config.mrope_axes,  # pyright: ignore[reportArgumentType]
        mode=config.mode,
        window_chunks=config.window_chunks,
    )
    theirs = Oracle(windows, turns().end_of_turn, int(turns().newline[0]))
    theirs.begin(opening_parts(encode, previous, system=not stamped))
    most = 0
    for number in range(chunks):
        grid, step, words, ends, asked, keep = draw(number)
        clip = Clip(np.zeros((int(np.prod(grid)), 1176), np.float32), grid, step, video=True)
        seconds = (start + number, start + number + 1)
        chunk = Chunk(*seconds, clip, asked, None if keep is None else np.array(keep, bool))
        first = number == 0 or (config.mode == "window" and number % config.window_chunks == 0)
        parts = turn_parts(encode, *seconds, grid, step=step, query=query if first else "", keep=keep, stamped=stamped)
        if asked:
            parts = question_parts(parts, chunk, asked if first else f" {asked}", stamped)
        turn = theirs.turn(parts)
        seen = ours.turn(chunk, [one.serial for one in turn.computed], size)
        assert ours.scheduled.seq.ids.tolist() == theirs.ids
        assert ours.scheduled.seq.cached == turn.cached_before
        np.testing.assert_array_equal(ours.scheduled.seq.positions, theirs.positions)
        assert seen == [told(one.seen) for one in turn.computed]
        rows = [ours.tower_rows[one.turn][one.pad.index] if one.pad else -1 for one in turn.computed]
        assert ours.vision_index == rows
        tokens = [*words, turns().end_of_turn] if ends else [*words, 7][:LONGEST]
        reply = theirs.reply(tokens)
        seen = ours.reply(tokens, [one.serial for one in reply.computed])
        assert seen == [told(one.seen) for one in reply.computed]
        assert ours.state.ids.tolist() == theirs.ids and ours.state.cached == theirs.cached
        most = max(most, len(ours.state.spans))
    return most
