"""Secrets of addresses: in no error, wherever the address stood. Lines of stderr go into logs and bug reports."""

from pathlib import Path

import pytest

from svlm_jax.addresses import hide_secrets_in
from svlm_jax.errors import InputError, shortened
from tests.support.commands import command

SECRET = "hunter2x"
ADDRESSES = [
    f"rtsp://viewer:{SECRET}@127.0.0.1:9/cam",
    f"rtsp://viewer:a@{SECRET}/b@127.0.0.1:9/cam",
    f"rtsp://viewer:%40{SECRET}%2F@127.0.0.1:9/cam",
    f"http://127.0.0.1:9/v1?token={SECRET}&sig={SECRET}",
    f"https://viewer:{SECRET}@127.0.0.1:9/v1?key={SECRET}#t={SECRET}",
]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("form", ["{}", "got '{}',", "{}: no such file", "folder {}/x", "a {} and b"])
def test_no_input_error_holds_the_secret_of_an_address(address, form):
    for text in (form.format(address), form.format(Path(address)), form.format(f"{address}&x={'a' * 300}")):
        for parts in ((text, "x", "y", "z"), ("x", text, text, "z"), ("x", shortened(text), "y", text)):
            error = InputError(*parts)
            assert SECRET not in str(error) and SECRET not in str(error.within(text)) and len(str(error)) < 300


@pytest.mark.parametrize(
    "text",
    [
        "films/10:30.mp4: got no such file, expected a file; check the path",
        "expected http://HOST:PORT/v1 or https://...; check it",
        "match:5, a@b.c, x=1, C:/films/a=b.mp4, file:///home/me@work/a=b.mp4",
        "rtsp://10.0.0.2:554/h264 is lost",
    ],
)
def test_what_is_no_secret_is_shown(text):
    assert hide_secrets_in(text) == text


COMMANDS = [
    ("stream", "ADDRESS"),
    ("stream", "ADDRESS", "--jsonl", "a.jsonl", "--save-state", "a.state"),
    ("stream", "film.mp4", "ADDRESS"),
    ("stream", "match:1", "--max-delay", "ADDRESS"),
    ("stream", "match:1", "--vtt", "ADDRESS.vtt"),
    ("stream", "match:1", "--resume", "ADDRESS"),
    ("stream", "match:1", "--model", "ADDRESS"),
    ("caption", "ADDRESS"),
    ("caption", "match:1", "ADDRESS"),
    ("serve", "--port", "ADDRESS"),
    ("serve", "--webhook", "ADDRESS ."),
    ("serve", "--source", "0", "--keep", "--num-streams", "ADDRESS"),
    ("convert", "ADDRESS", "out"),
    ("replay", "ADDRESS"),
    ("train", "--config", "ADDRESS"),
    ("windows", "ADDRESS", "--out", "out"),
    ("world", "ADDRESS"),
    ("evaluate", "game", "ADDRESS"),
    ("evaluate", "infstreams", "judge", "--judge-url", "ADDRESS", "--judge-model", "m", "--truth", "ADDRESS"),
    ("evaluate", "ovo", "generate", "ADDRESS", "--captioner-url", "ADDRESS", "--captioner-model", "m"),
    ("curate", "transcribe", "ADDRESS", "--out", "words.jsonl"),
    ("curate", "transcribe", ".", "--out", "w.jsonl", "--asr", "http", "--asr-url", "ADDRESS", "--asr-model", "m"),
    ("curate", "transcribe", ".", "--out", "w.jsonl", "--asr-url", "ADDRESS"),
    ("curate", "clean", "--in", "ADDRESS", "--out", "c.jsonl"),
    ("curate", "edit", "--in", "ADDRESS", "--out", "e.jsonl", "--editor-url", "ADDRESS", "--editor-model", "m"),
    ("curate", "anneal", "--in", "ADDRESS", "--out", "a.jsonl", "--judge-url", "ADDRESS", "--judge-model", "m"),
]


SHORTEST = ("replay ADDRESS", "caption ADDRESS", "stream match:1 --max-delay ADDRESS")


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, id=line, marks=() if line in SHORTEST else pytest.mark.slow)
        for words, line in ((words, " ".join(words)) for words in COMMANDS)
    ],
)
def test_no_command_prints_or_writes_the_secret_of_an_address(words, tmp_path):
    """Whatever is wrong with the address, and even in place of another argument."""
    done = command(words[0], *(word.replace("ADDRESS", ADDRESSES[-1]) for word in words[1:]), cwd=tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode == 2 and said.count("\n") == 1 and SECRET not in said, said
    assert not any(
        SECRET in path.name or SECRET.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
    )
