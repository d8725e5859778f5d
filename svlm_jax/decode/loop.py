"""The decode loop: replies to a batch of prefilled sequences, inside one jitted call.

`reply` chooses the first token of each reply and goes on; `go_on` computes the newest token and chooses the next, up to a limit
that is no static number: once to the end, or token by token, with the same program. The newest token of a reply is chosen and
not yet computed, so its key and value are in no slot.

Axes: B batch, D width, R longest reply, V vocabulary, E ids that end a reply.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer, Key

from svlm_jax.decode.sampling import Sampling, sample, see
from svlm_jax.model.cache import KVCache
from svlm_jax.model.vlm import QwenVL


class Plan(NamedTuple):
    """What the host knows of the replies (numpy there, jax inside jit).

    index [B] int32, position [B] float32: place in its sequence, and on all three axes, of the first token of the reply.
    slots [B, R] int32: where its tokens go. eos [E] int32: ids that end a reply. draws [B, 2] uint32: seed of the
    stream and number of the reply; with the number of the token they make the random key, so a draw depends on nothing else.
    seen [B, V] bool: ids that the repetition penalty counts. done [B] bool: rows that make no reply. forced [B, R] int32: ids
    that are dictated, -1 where the model chooses; or None. banned [V] bool: ids that no reply may hold; or None.
    """

    index: Any
    position: Any
    slots: Any
    eos: Any
    draws: Any
    seen: Any
    done: Any
    forced: Any = None
    banned: Any = None


class Loop(NamedTuple):
    """Replies in the making. tokens [B, R] int32; count: tokens chosen so far; done [B] bool; seen [B, V] bool; cache, with its
    rotated keys until the replies have ended; logits [B, R, V] float32 before each token, if they are wanted."""

    tokens: jax.Array
    count: jax.Array
    done: jax.Array
    seen: jax.Array
    cache: KVCache
    logits: jax.Array | None


def reply(
    model: QwenVL,
    hidden: Float[Array, "B D"],
    cache: KVCache,
    plan: Plan,
    limit: Int[Array, ""] | int,
    sampling: Sampling,
    record: bool = False,
) -> Loop:
    """Replies of at most `limit` tokens from the hidden state [B, D] of the newest token of each row. Keys are rotated once for
    all of a reply, however often it is gone on with: no position changes in it."""
    rows, longest, vocabulary = len(hidden), plan.slots.shape[1], model.config.text.vocab_size
    logits = jnp.zeros((rows, longest, vocabulary), jnp.float32) if record else None
    tokens, seen, done = jnp.zeros((rows, longest), jnp.int32), jnp.asarray(plan.seen), jnp.asarray(plan.done)
    loop = Loop(tokens, jnp.int32(0), done, seen, model.text.with_rotated_keys(cache), logits)
    return go_on(model, _choose(model, hidden, loop, plan, sampling), plan, limit, sampling)


def go_on(model: QwenVL, loop: Loop, plan: Plan, limit: Int[Array, ""] | int, sampling: Sampling) -> Loop:
    """Compute the newest token and choose the next one, until there are `limit` tokens or all replies have ended."""

    def step(loop: Loop) -> Loop:
        count = loop.count - 1
        token, slot = (jax.lax.dynamic_index_in_dim(jnp.asarray(x), count, axis=1) for x in (loop.tokens, plan.slots))
        slot = jnp.where(loop.done[:, None], loop.cache.capacity, slot)  # beyond the last: dropped
        place = plan.index[:, None] + count
        positions = jnp.broadcast_to((plan.position + count)[:, None, None], (len(token), 3, 1))
        hidden, cache = model.text.extend(model.text.embed(token), place, positions, slot, loop.cache)
        return _choose(model, hidden[:, 0], loop._replace(cache=cache), plan, sampling)

    return jax.lax.while_loop(lambda loop: (loop.count < limit) & ~jnp.all(loop.done), step, loop)


def _choose(model: QwenVL, hidden: Float[Array, "B D"], loop: Loop, plan: Plan, sampling: Sampling) -> Loop:
    """Choose the next token of every reply from the hidden state [B, D] of the newest computed one."""
    logits = model.text.logits(hidden)
    banned = None if plan.banned is None else jnp.asarray(plan.banned)
    token = sample(logits, loop.seen, _keys(jnp.asarray(plan.draws), loop.count), sampling, banned)
    if plan.forced is not None:
        dictated = jax.lax.dynamic_index_in_dim(jnp.asarray(plan.forced), loop.count, axis=1, keepdims=False)
        token = jnp.where(dictated >= 0, dictated, token)
    token = jnp.where(loop.done, 0, token)
    tokens = jax.lax.dynamic_update_slice(loop.tokens, token[:, None], (0, loop.count))
    if loop.logits is not None:
        logits = jax.lax.dynamic_update_slice(loop.logits, logits[:, None], (0, loop.count, 0))
    return Loop(
        tokens=tokens,
        count=loop.count + 1,
        done=loop.done | jnp.isin(token, jnp.asarray(plan.eos)),
        seen=see(loop.seen, token[:, None], ~loop.done[:, None]),
        cache=loop.cache,
        logits=None if loop.logits is None else logits,
    )


def _keys(draws: Integer[Array, "B 2"], count: Int[Array, ""]) -> Key[Array, " B"]:
    fold = jax.random.fold_in
    return jax.vmap(lambda draw: fold(fold(jax.random.key(draw[0]), draw[1]), count))(draws)
