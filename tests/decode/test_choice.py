"""Replies that are one of a few answers: the probability of yes, the answer on its side of the threshold, no other token."""

import jax
import numpy as np

from svlm_jax.decode.choice import Choice, Choices, choose

VOCABULARY, END = 32, 31
ANSWERS = ((4, 5, END), (7, END), (9, END))  # the first two mean yes


def test_the_answer_is_the_likeliest_on_the_side_of_the_threshold():
    """Else an alert rings at another probability than the one that was asked for, or the model says what no rule knows."""
    rng = np.random.default_rng(0)
    batch = 64
    logits = rng.normal(scale=4, size=(batch, VOCABULARY)).astype(np.float32)
    thresholds = rng.uniform(0.05, 1, batch)
    rows = [None if b % 4 == 3 else Choice(ANSWERS, 2, float(threshold)) for b, threshold in enumerate(thresholds)]
    choices, step = Choices.stack(rows, 6), jax.jit(choose)
    reply, count, given = np.zeros((batch, 6), np.int32), np.zeros(batch, np.int32), [[] for _ in rows]
    for number in range(3):
        token, probability = (np.asarray(array) for array in step(logits, reply, count, choices))
        if number == 0:
            first = probability
        reply[:, number], count = np.maximum(token, 0), count + 1
        for b, ids in enumerate(given):
            ids.append(int(token[b]))
    sides = set()
    for b, row in enumerate(rows):
        if row is None:
            assert given[b] == [-1, -1, -1]
            continue
        scores = np.exp(logits[b, [4, 7, 9]].astype(np.float64))
        want = scores[:2].sum() / scores.sum()
        np.testing.assert_allclose(first[b], want, rtol=1e-5)
        best = int(scores[:2].argmax()) if want >= thresholds[b] else 2
        sides.add(best)
        assert given[b][: len(ANSWERS[best])] == list(ANSWERS[best])
    assert sides == {0, 1, 2}
