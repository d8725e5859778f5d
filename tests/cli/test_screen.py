"""What a person sees of a stream and types into it; nothing of that can end or harm it."""

import io
import json
import re
import signal
import sys

import pytest

from svlm_jax.cli.screen import Questions, Screen, Stopping
from svlm_jax.stream.events import Caption


def test_a_signal_in_the_middle_of_a_print_harms_nothing(monkeypatch, capfd):
    class Interrupted(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            if not stopping.requested:
                signal.raise_signal(signal.SIGTERM)
            return len(data)

    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(Interrupted())))
    with Stopping(Screen()) as stopping:
        stopping.screen.say("00:00:01.0")
    assert stopping.requested and capfd.readouterr().err == "SIGTERM: stopping after this chunk\n"


def test_no_question_is_asked_twice_or_forgotten_by_a_stream_that_is_resumed():
    flags = ["4:a", "4:b", "9:c"]
    first = Questions(flags, typed=False)
    first.lines.extend(["typed", "and more"])
    assert [first.before(end) for end in (4, 5)] == ["typed", "a"]
    told = json.loads(json.dumps(first.state()))
    again = Questions([*flags, "0:new"], typed=False)
    again.resume(told)
    assert [again.before(end) for end in (6, 7, 8, 9, 10, 11)] == ["new", "b", "and more", "", "c", ""]


class Deaf(io.TextIOBase):
    """A terminal that has gone, in the way of the error given."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def write(self, text):
        raise self.error

    def isatty(self):
        return True


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(5, "gone"), OSError(28, "full"), ValueError("closed file")])
def test_a_screen_never_raises(monkeypatch, error):
    """What it raises in the middle of a reply would cost the stream its state."""
    ms = dict.fromkeys(("vision", "prefill", "decode"), 1.0)
    caption = Caption(stream="video", start=0, end=1, text="", ms=ms, used_slots=5, capacity=640)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Deaf(error))
    screen = Screen(typed=True)
    for _ in range(2):
        screen.say("told")
        screen.status(caption, "")
        screen.words("said", end="")
        screen.words("said")
    assert screen.closed


def test_words_are_shown_on_a_stdout_that_has_no_letters_for_them(monkeypatch):
    kept = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(kept, encoding="ascii"))
    Screen().words("Tor für 你好")
    assert kept.getvalue() == b"Tor f?r ??\n"


def test_characters_of_several_parts_are_shown_whole(capsys):
    said = "👩\u200d🚀 🏴\U000e0067\U000e0062\U000e007f 🇩🇪 e\u0301 🏳\ufe0f\u200d🌈 \u3000全角\u00a0\U0001fae8 क्षि"
    screen = Screen()
    for letter in said:
        screen.words(letter, end="")
    screen.words("")
    screen.words("a\x1b[2Jb\u2028c\nd")
    assert capsys.readouterr().out == said + "\n" + "a [2Jb c d\n"


class Terminal(io.StringIO):
    """What stands on a terminal: enough of one for what a Screen sends."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.row, self.column, self.kept = [""], 0, 0, (0, 0)

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for part in re.findall(r"\x1b\[K|\x1b\[1A|\x1b[78]|.|\n|\r", text):
            self.put(part)
        return len(text)

    def put(self, part: str) -> None:
        row = self.rows[self.row]
        if part == "\x1b[K":
            self.rows[self.row] = row[: self.column]
        elif part == "\x1b[1A":
            self.row -= 1
        elif part == "\x1b7":
            self.kept = self.row, self.column
        elif part == "\x1b8":
            self.row, self.column = self.kept
        elif part == "\r":
            self.column = 0
        elif part == "\n":
            self.row, self.column = self.row + 1, 0
            self.rows += [""] * (self.row + 1 - len(self.rows))
        else:
            self.rows[self.row] = row[: self.column].ljust(self.column) + part + row[self.column + 1 :]
            self.column += 1


def test_a_question_is_typed_on_a_line_of_its_own(monkeypatch):
    """And stays readable, whatever is told meanwhile."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    screen = Screen(typed=True)

    def status(second: int) -> None:
        ms = dict.fromkeys(("vision", "prefill", "decode"), 41.0)
        caption = Caption(stream="video", start=second - 1, end=second, text="", ms=ms, used_slots=5, capacity=640)
        screen.status(caption, "")

    status(1)
    terminal.write("What is ")  # as it is typed
    status(2)
    terminal.write("the score?\n")
    screen.entered()
    assert terminal.rows[0].startswith("00:00:02.0") and terminal.rows[1] == "What is the score?"
    screen.say("asked: What is the score?")
    screen.words("[00:00:02.0] 1-0.")
    status(3)
    status(4)
    screen.words("[00:00:04.0] Wide!")
    status(5)
    shown = [row for row in terminal.rows if row]
    assert shown[1:4] == ["What is the score?", "asked: What is the score?", "[00:00:02.0] 1-0."]
    assert shown[4] == "[00:00:04.0] Wide!" and shown[5].startswith("00:00:05.0") and len(shown) == 6
