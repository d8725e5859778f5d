"""What a session runs on the device: what is compiled, what is copied, which rows are computed."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svlm_jax.stream import batch, groups, programs
from svlm_jax.stream.stream_settings import StreamSettings
from svlm_jax.stream.warmup import compile_programs, warm
from tests.support.sessions import DRAWN, Compiled, chunk, make, model, tokenizer, watch  # noqa: F401

# --- what is compiled ---


def computations(hlo: str) -> dict[str, str]:
    """Instructions by computation; the one that the program begins with is "ENTRY"."""
    blocks = re.findall(r"^(ENTRY )?%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", hlo, re.M | re.S)
    return {entry.strip() or name: body for entry, name, body in blocks}


def instructions(parts: dict[str, str], name: str) -> str:
    """Instructions of a computation and of all that it calls; what is inside a fusion is no pass over memory of its own."""
    called = re.findall(r" (?:call|while|conditional)\(.*(?:to_apply|body)=%?([\w.\-]+)", parts[name])
    return "\n".join([parts[name], *(instructions(parts, other) for other in called)])


def large_moves(hlo: str, elements: int) -> Counter:
    """Copies, transposes and concatenations of at least so many elements, by operation."""
    counts: Counter = Counter()
    for name, shape, operation in re.findall(r"%?([\w.\-]+) = \w+\[([\d,]+)\]\S* (copy|transpose|concatenate|fusion)\(", hlo):
        large = np.prod([int(size) for size in shape.split(",")]) >= elements
        if large and (operation != "fusion" or re.search("copy|transpose|concatenate", name)):
            counts[operation if operation != "fusion" else name.split(".")[0]] += 1
    return counts


@pytest.mark.parametrize("rows", [1, 3])
def test_no_cache_and_no_weight_is_copied_in_the_decode_loop(make, rows):
    session = make(num_streams=rows, vision_window=16, text_rounds=16, sink=512, text_window=512)
    state = session.init_state()
    for row in range(rows):
        state = session.join(state, row)
    prepared = [session.prepare(state, row, chunk(0)).scheduled for row in range(rows)]
    inputs = batch.decode_inputs(prepared, [None] * rows, 20, session.suppressed, session.turn_tokenizer.end_of_turn)
    hidden = jnp.zeros((rows, session.model_config.text.hidden_size))
    static = {**session.static_args, "record": False}
    hlo = programs.decode.lower(session.text_params, inputs, hidden, state.cache, 20, **static).compile().as_text()
    parts, keys = computations(hlo), state.cache.keys[0]
    shape = f"f32[{','.join(map(str, keys.shape))}]"
    inside = [instructions(parts, name) for name in set(re.findall(r"body=%?([\w.\-]+)", hlo)) if shape in parts[name]]
    assert len(inside) == 1  # the decode loop: no other carries the cache
    assert not large_moves(inside[0], min(keys.size, 64 * 64))  # 64 x 64: the smallest weight matrix
    # What draws a token stands in a branch, which a batch of greedy rows does not enter.
    drawing = re.compile(r"top-?k|sort\(|xor\(", re.I)
    assert drawing.search(hlo) and not drawing.search(inside[0])
    assert (
        sum(large_moves(parts["ENTRY"], keys.size).values()) == session.model_config.text.num_hidden_layers
    )  # rotated once a reply


def test_the_search_for_copies_finds_them():
    body = "  %copy.3 = f32[1,2,128,64]{3,2,1,0} copy(%p)\n  %a_transpose_fusion.1 = f32[2,128,64]{2,1,0} fusion(%p)\n"
    assert large_moves(body, 16384) == {"copy": 1, "a_transpose_fusion": 1} and not large_moves(body, 16385)
    hlo = f"%deep (p: f32[2]) -> f32[2] {{\n{body}}}\n\nENTRY %main (p: f32[2]) -> f32[2] {{\n  call(%p), to_apply=%deep\n}}\n"
    parts = computations(hlo)
    assert not large_moves(parts["ENTRY"], 16384) and large_moves(instructions(parts, "ENTRY"), 16384)["copy"] == 1


@pytest.mark.parametrize("changes", [{}, {"mode": "window", "window_chunks": 4}, {"moved_reply_kv": "recompute"}])
def test_nothing_compiles_after_warming_up(make, changes):
    session = make(num_streams=2, sampling=DRAWN, **changes)
    state = session.join(warm(session, session.init_state(), chunk(0).clip), 0, StreamSettings(query="Commentate"))
    state, _ = session.step(state, [chunk(0), None])
    lengths = set()
    with Compiled() as compiled:
        for number in range(1, 12):
            if number == 3:
                state = session.join(state, 1, StreamSettings(previous="red blue ball " * 6, query="Who has the ball?", seed=7))
            if number == 9:
                state = session.leave(state, 0)
            first = chunk(number, question="who scored?" if number == 5 else "") if number < 9 else None
            second = chunk(number, grid=(1, 6, 4)) if number >= 3 and number != 6 else None
            short = np.array([5, 6, session.turn_tokenizer.end_of_turn])[-1 - number % 3 :]
            state, replies = session.step(state, [first, second], forced=[short if number % 2 else None, None])
            lengths |= {len(reply.tokens) for reply in replies if reply is not None}
    assert compiled.count == 0 and len(lengths) > 2


def test_warming_up_compiles_all_there_is(make):
    session = make(num_streams=1, max_new_tokens=7)  # a length of its own: nothing is compiled for it yet
    progress: list[tuple[int, int]] = []
    with Compiled() as warming:
        state = warm(session, session.init_state(), chunk(0).clip, tokens=True, progress=lambda *done: progress.append(done))
    # What other tests have compiled for the same shapes is not compiled again; the decode programs are new.
    assert warming.count >= 2 and state.streams == (None,)
    assert progress == [(done, 6) for done in range(7)]  # three programs, one token, and the copy of the cache that it needs
    state = session.join(state, settings=StreamSettings(query="Commentate"))
    with Compiled() as compiled:
        state, _ = session.step(state, [chunk(0)])
        state, _ = session.step(state, [chunk(1)], on_token=lambda row, token: None)
    assert compiled.count == 0


def test_what_is_compiled_beside_steps_is_all_they_run(make):
    """Else the live page stops for seconds when a second viewer starts a stream."""
    session = make(num_streams=3, max_new_tokens=6)  # a length of its own: nothing is compiled for it yet
    session.batch_sizes, sizes = (1,), session.batch_sizes
    state = session.join(warm(session, session.init_state(), chunk(0).clip), 1)
    assert sizes == (1, 2, 3)
    for size in sizes[1:]:
        compile_programs(session, (size,), state, chunk(0).clip)
    session.batch_sizes = sizes
    state = session.join(session.join(state, 0), 2)
    with Compiled() as compiled:
        for number, taken in enumerate(([1], [0, 2], [0, 1, 2], [1, 2], [2])):
            state, _ = session.step(state, [chunk(number) if row in taken else None for row in range(3)])
    assert compiled.count == 0


def test_layers_that_are_alike_are_lowered_once(make):
    """Else every start of a model of 28 layers traces and lowers 28 of them, which takes longer than a filled cache saves."""
    session = make(vision_window=16, text_rounds=16, sink=512, text_window=512)
    state = session.join(session.init_state())
    frames, rows = session.vision_input([[chunk(0).clip]])
    inputs = session.program_inputs([session.prepare(state, 0, chunk(0)).scheduled], None, session.capacity, rows)
    hidden = jnp.zeros((1, session.model_config.text.hidden_size))
    static = {**session.static_args, "record": False}
    decode = programs.decode.lower(session.text_params, inputs.decode, hidden, state.cache, 20, **static).as_text()
    vision = programs.encode_vision.lower(session.vision_params, frames, config=session.model_config).as_text()
    assert session.model_config.text.num_hidden_layers > 1
    for text, kinds in ((decode, 1), (vision, 2)):  # windows, and frames
        assert len(re.findall(r"func private @_call_layer", text)) <= kinds


def test_rows_are_taken_out_of_the_cache_and_put_back_in_place(make):
    """Else a step of one stream moves the memory of all."""
    session = make(num_streams=4)
    cache, rows = session.init_state().cache, np.array([1, 3], np.int32)
    part = groups.gather(cache, rows)
    size = sum(one.nbytes for one in jax.tree.leaves(cache))
    out, back = (program.compile() for program in (groups.gather.lower(cache, rows), groups.scatter.lower(cache, part, rows)))
    assert out.memory_analysis().output_size_in_bytes < 0.51 * size and out.memory_analysis().temp_size_in_bytes < 0.01 * size
    assert back.memory_analysis().alias_size_in_bytes >= size and back.memory_analysis().temp_size_in_bytes < 0.01 * size
    for hlo in (out.as_text(), back.as_text()):
        assert not large_moves(hlo, cache.keys[0].size)


def test_keys_are_not_rotated_again_for_each_token_that_is_told(make):
    """Else words that come one by one take four times as long as a whole reply."""
    session = make(vision_window=16, text_rounds=16, sink=512, text_window=512)
    state = session.join(session.init_state())
    prepared = [session.prepare(state, 0, chunk(0)).scheduled]
    inputs = session.program_inputs(prepared, None, session.capacity, [np.zeros(0, np.int32)]).decode
    hidden = jnp.zeros((1, session.model_config.text.hidden_size))
    decoded = programs.decode(session.text_params, inputs, hidden, state.cache, 1, **session.static_args, record=False)
    program = programs.resume_decode.lower(
        session.text_params, inputs, decoded, np.array([2], np.int32), **session.static_args
    ).compile()
    size = sum(one.nbytes for one in jax.tree.leaves(decoded.cache))
    assert not large_moves(program.as_text(), decoded.cache.keys[0].size)
    assert program.memory_analysis().alias_size_in_bytes >= size and program.memory_analysis().temp_size_in_bytes < 0.1 * size
