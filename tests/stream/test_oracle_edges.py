"""The oracle of tests/support/oracle.py at edges that no recording has. Recordings: tests/stream/test_oracle.py.

A token is one letter: Y system; [p: and [u: and [r: heads of previous text, user turn and reply; digits the time; (####) a
vision block; > <|im_end|>; / the "\\n" after it.
"""

from dataclasses import replace

import numpy as np
import pytest

from tests.support.oracle import Oracle, Part, Place, Windows

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
