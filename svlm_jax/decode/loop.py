"""The decode loop: replies to a batch of prefilled sequences, inside one jitted call.

`decode` chooses the first token of each reply and continues; `decode_until` computes the newest token and chooses the next, up
to a limit that is no static number: to the end in one call, or token by token, with the same program. The newest token of a
reply is chosen but not yet computed, so its key and value are in no slot.

Axes: B batch, D width, R longest reply, V vocabulary, E ids that end a reply.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Integer, Key

from svlm_jax.decode.choice import Choices, choose
from svlm_jax.decode.sampling import (
    SamplingParams,
    Silence,
    SilenceTokens,
    mark_generated,
    penalize,
    sample,
    silence_probability,
)
from svlm_jax.model.cache import KVCache
from svlm_jax.model.fused_decode import slot_tiles
from svlm_jax.model.vlm import QwenVL

Limit = Int[Array | np.ndarray, " B"] | Int[Array, ""] | int  # tokens of a reply, for each row or for all


class DecodeInputs(NamedTuple):
    """What the host knows of the replies (numpy there, jax inside jit).

    index, position: of the first token of the reply in its sequence, and on all three axes.
    slots: where the tokens of the reply go.
    eos_ids: ids that end a reply.
    rng_seeds: seed of the stream and number of the reply; with the number of the token they make the random key, so a draw
        depends on nothing else.
    generated: ids that the repetition penalty counts, those of the prompt too.
    suppressed: ids that a reply may not hold.
    forced_ids: ids that a reply has to hold, -1 where the model chooses.
    done: rows that make no reply.
    choices: answers that replies have to be one of; None: there are none, and nothing is computed for them.
    """

    index: Int32[Array | np.ndarray, " B"]
    position: Float32[Array | np.ndarray, " B"]
    slots: Int32[Array | np.ndarray, "B R"]
    eos_ids: Int32[Array | np.ndarray, " E"]
    rng_seeds: Integer[Array | np.ndarray, "B 2"]
    generated: Bool[Array | np.ndarray, "B V"]
    suppressed: Bool[Array | np.ndarray, "B V"]
    forced_ids: Int32[Array | np.ndarray, "B R"]
    done: Bool[Array | np.ndarray, " B"]
    sampling: SamplingParams
    choices: Choices | None = None


class DecodeState(NamedTuple):
    """Replies that are being decoded.

    count: tokens chosen so far, of each row. tokens: those, 0 after them. done: rows whose reply has ended. generated: as in
    `DecodeInputs`. cache: with its rotated keys, until the replies have ended. logits: before each token, if they are recorded.
    probability: of yes (`choice.choose`) in rows with answers to choose from, of silence (`silence_probability`) in the others,
    -1 where the reply has not come so far, and where the programs look at neither.
    """

    tokens: Int32[Array, "B R"]
    count: Int32[Array, " B"]
    done: Bool[Array, " B"]
    generated: Bool[Array, "B V"]
    cache: KVCache
    logits: Float32[Array, "B R V"] | None
    probability: Float32[Array, " B"]


def decode(
    model: QwenVL,
    hidden: Float[Array, "B D"],
    cache: KVCache,
    inputs: DecodeInputs,
    limit: Limit,
    *,
    max_top_k: int,
    silence: SilenceTokens | None = None,
    record: bool = False,
) -> DecodeState:
    """Replies of at most `limit` tokens (1 or more) from the hidden state [B, D] of the newest token of each row.

    Args:
        max_top_k: the largest top_k of a row, 0: the whole vocabulary; static.
        silence: for rows with a rule of silence; None: there are none, and nothing is computed for the rules; static.
        record: keep the raw logits before each token.
    """
    batch, longest = inputs.slots.shape
    logits = jnp.zeros((batch, longest, inputs.generated.shape[1]), jnp.float32) if record else None
    state = DecodeState(
        tokens=jnp.zeros((batch, longest), jnp.int32),
        count=jnp.zeros(batch, jnp.int32),
        done=jnp.asarray(inputs.done),
        generated=jnp.asarray(inputs.generated),
        # Once for all tokens of a reply: no position changes in it, and rotating the cache for each token takes longer than
        # all else that a token needs.
        cache=model.text.with_rotated_keys(cache),
        logits=logits,
        probability=jnp.full(batch, -1.0, jnp.float32),
    )
    state = _choose_token(model, hidden, state, inputs, ~state.done, max_top_k, silence)
    return decode_until(model, state, inputs, limit, max_top_k=max_top_k, silence=silence)


def decode_until(
    model: QwenVL,
    state: DecodeState,
    inputs: DecodeInputs,
    limit: Limit,
    *,
    max_top_k: int,
    silence: SilenceTokens | None = None,
) -> DecodeState:
    """Compute the newest token and choose the next one, until each reply has `limit` tokens or has ended."""

    # The slots of a reply are described before it, so which hold anything does not change in the loop. XLA does not see it.
    tiles = slot_tiles(state.cache.index)

    def active(state: DecodeState) -> Bool[Array, " B"]:
        return ~state.done & (state.count < limit)

    def step(state: DecodeState) -> DecodeState:
        rows, newest = active(state), jnp.maximum(state.count - 1, 0)
        token, slot = (jnp.take_along_axis(jnp.asarray(x), newest[:, None], axis=1) for x in (state.tokens, inputs.slots))
        # Rows that wait or have ended are computed too (shapes are static) but write nothing: their slot is dropped.
        slot = jnp.where(rows[:, None], slot, state.cache.capacity)
        index = (jnp.asarray(inputs.index) + newest)[:, None]
        positions = jnp.broadcast_to((jnp.asarray(inputs.position) + newest)[:, None, None], (len(token), 3, 1))
        hidden, cache = model.text.decode_step(model.text.embed(token), index, positions, slot, state.cache, tiles)
        return _choose_token(model, hidden[:, 0], state._replace(cache=cache), inputs, rows, max_top_k, silence)

    return jax.lax.while_loop(lambda state: jnp.any(active(state)), step, state)


def _choose_token(
    model: QwenVL,
    hidden: Float[Array, "B D"],
    state: DecodeState,
    inputs: DecodeInputs,
    rows: Bool[Array, " B"],
    max_top_k: int,
    silence: SilenceTokens | None,
) -> DecodeState:
    """Choose the next token of the replies of `rows` [B] from the hidden state [B, D] of the newest computed one."""
    logits = model.text.logits(hidden)
    keys = _token_keys(jnp.asarray(inputs.rng_seeds), state.count)
    suppressed, column = jnp.asarray(inputs.suppressed), state.count[:, None]
    rules = None if silence is None else Silence(silence, state.tokens, state.count, jnp.asarray(inputs.eos_ids))
    token = sample(logits, state.generated, suppressed, keys, inputs.sampling, max_top_k, rules)
    token, probability = _decide(logits, token, state, inputs, rows, rules)
    # Beyond the last column (a row that has ended) any value will do.
    forced = jnp.take_along_axis(jnp.asarray(inputs.forced_ids), column, axis=1, mode="clip")[:, 0]
    token = jnp.where(forced >= 0, forced, token)
    count = state.count + rows
    ended = jnp.isin(token, jnp.asarray(inputs.eos_ids)) | (count >= inputs.sampling.max_new_tokens)
    recorded = state.logits
    if recorded is not None:
        batch_index = jnp.arange(len(token))
        recorded = recorded.at[batch_index, jnp.where(rows, state.count, recorded.shape[1])].set(logits, mode="drop")
    return DecodeState(
        # A select, not a scatter: rows are cut over devices, and each has its own column.
        tokens=jnp.where((jnp.arange(state.tokens.shape[1]) == column) & rows[:, None], token[:, None], state.tokens),
        count=count,
        done=state.done | (rows & ended),
        generated=mark_generated(state.generated, token[:, None], rows[:, None]),
        cache=state.cache,
        logits=recorded,
        probability=probability,
    )


def _decide(
    logits: Float32[Array, "B V"],
    token: Int32[Array, " B"],
    state: DecodeState,
    inputs: DecodeInputs,
    rows: Bool[Array, " B"],
    silence: Silence | None,
) -> tuple[Int32[Array, " B"], Float32[Array, " B"]]:
    """(the tokens [B] that were drawn, or those of an answer that is to be given; `DecodeState.probability` [B])."""
    probability = state.probability
    if silence is not None:
        share, decides = silence_probability(penalize(logits, state.generated, inputs.sampling), silence)
        probability = jnp.where(decides & rows, share, probability)
    if inputs.choices is not None:
        answer, share = choose(logits, state.tokens, state.count, inputs.choices)
        first = (inputs.choices.answers[:, 0, 0] >= 0) & (state.count == 0) & rows
        probability = jnp.where(first, share, jnp.where(answer >= 0, state.probability, probability))
        token = jnp.where(answer >= 0, answer, token)
    return token, probability


def _token_keys(rng_seeds: Integer[Array, "B 2"], count: Int32[Array, " B"]) -> Key[Array, " B"]:
    """The random key of the next token of each row."""
    fold = jax.random.fold_in
    return jax.vmap(lambda seeds, number: fold(fold(jax.random.key(seeds[0]), seeds[1]), number))(rng_seeds, count)
