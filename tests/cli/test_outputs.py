"""The files that `svlm stream` writes: none over another, and captions go on where the saved stream stood, or not at all."""

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import pytest

from svlm_jax.cli.outputs import check_outputs, open_captions
from svlm_jax.cli.stream import StreamCommand, main, make_parser
from svlm_jax.config import StreamConfig
from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.stream import state_file
from svlm_jax.stream.captions import Subtitles


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("--vtt", "a.vtt", "--srt", "./a.vtt"), "--srt: got a.vtt, the file of --vtt"),
        (("--jsonl", "here/../a.jsonl", "--vtt", "{}/a.jsonl"), "--jsonl: got here/../a.jsonl, the file of --vtt"),
        (("--save-state", "film.mp4"), "--save-state: got film.mp4, the file of source"),
        (("--jsonl", "a.state", "--resume", "link"), "--resume: got link, the file of --jsonl"),
        (("--save-state", "a.jsonl", "--jsonl", "a.jsonl"), "--save-state: got a.jsonl, the file of --jsonl"),
        (("--vtt", "a.srt"), "--vtt: got a.srt, expected a name that ends in .vtt"),
    ],
)
def test_two_names_of_one_file_are_refused_before_either_is_touched(tmp_path, monkeypatch, args, line):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    Path("a.state").touch()
    Path("link").symlink_to("a.state")
    with pytest.raises(InputError) as error:
        check_outputs(make_parser().parse_args(["film.mp4", *(word.format(tmp_path) for word in args)]))
    assert str(error.value).startswith(line)


def test_a_state_may_be_saved_where_it_was_resumed(tmp_path):
    check_outputs(make_parser().parse_args(["film.mp4", "--resume", f"{tmp_path}/a", "--save-state", f"{tmp_path}/./a"]))


def test_a_place_where_no_state_can_be_written_is_told_before_the_model_is_looked_for(tmp_path):
    made = ("--model", tmp_path / "nothing", "--vtt", tmp_path / "a.vtt")
    for args, expected in {
        ("--save-state", tmp_path / "none" / "a.state"): "no folder",
        ("--save-state", tmp_path): "a folder",
        ("--resume", tmp_path): "an unreadable file",
    }.items():
        arguments = make_parser().parse_args(["match:5", *map(str, (*made, *args))])
        arguments.model = "touchline"
        with pytest.raises(InputError, match=expected), ExitStack() as stack:
            StreamCommand(arguments, StreamConfig(), Sampling(), stack)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def resumed(tmp_path, monkeypatch):
    """A folder with captions of a stream that was saved after one cue and killed after two; opens them again by what names."""
    monkeypatch.chdir(tmp_path)
    marks = {}
    for kind in ("vtt", "srt", "jsonl"):
        with Subtitles(tmp_path / f"a.{kind}") as captions:
            captions.write(0, 1, "one")
            marks[str(tmp_path / f"a.{kind}")] = captions.mark
            captions.write(1, 2, "two")

    def opened(*args: object, said=lambda line: None):
        given = make_parser().parse_args(["film.mp4", "--resume", "a.state", *map(str, args)])
        return dict(open_captions(given, json.loads(json.dumps(marks)), said))

    return opened


@pytest.mark.parametrize("name", ["{}/a.vtt", "a.vtt", "./a.vtt", "here/../a.vtt", "link/a.vtt", "another.vtt", "hard.vtt"])
def test_captions_are_found_again_under_any_spelling_of_their_path(resumed, tmp_path, name):
    Path("here").mkdir()
    Path("link").symlink_to(".")
    Path("another.vtt").symlink_to(tmp_path / "a.vtt")
    Path("hard.vtt").hardlink_to("a.vtt")
    with resumed("--vtt", name.format(tmp_path))["vtt"] as captions:
        captions.write(1, 2, "two")
    assert Path("a.vtt").read_text().count("one") == Path("a.vtt").read_text().count("two") == 1


@pytest.mark.parametrize("kind", ["vtt", "srt", "jsonl"])
def test_captions_that_the_state_does_not_know_are_left_as_they_are(resumed, kind):
    mine = Path(f"a.{kind}").read_bytes()
    for name, content in {
        f"other.{kind}": mine,  # of another stream, perhaps: nobody can say where it would go on
        f"a.{kind}": mine[:-40],  # shorter than it was
        f"a.{kind} ".strip(): mine.replace(b"one", b"ONE"),  # edited
    }.items():
        Path(name).write_bytes(content)
        with pytest.raises(InputError, match=r"knows nothing|changed or cut") as error:
            resumed(f"--{kind}", name)
        assert "\n" not in str(error.value) and Path(name).read_bytes() == content


def test_captions_that_are_gone_are_begun_anew_and_that_is_told(resumed):
    Path("a.vtt").unlink()
    Path("a.srt").write_bytes(b"")
    said: list[str] = []
    for captions in resumed("--vtt", "a.vtt", "--srt", "a.srt", "--jsonl", "new.jsonl", said=said.append).values():
        captions.close()
    assert [line.split(":")[0] for line in said] == ["captions a.vtt", "captions a.srt"]
    assert Path("a.vtt").read_bytes() == b"WEBVTT\n\n" and Path("new.jsonl").exists()


def test_a_run_that_fails_before_its_first_cue_cuts_nothing_off(resumed):
    before = Path("a.srt").read_bytes()
    with pytest.raises(InputError), resumed("--srt", "a.srt")["srt"]:
        raise InputError("state", "another model's", "this one's", "name it")
    assert Path("a.srt").read_bytes() == before


def test_what_a_state_is_resumed_with_is_looked_at_before_the_model(tmp_path, monkeypatch, capsys):
    """A minute of loading and compiling would be for nothing."""
    monkeypatch.chdir(tmp_path)
    saved = json.loads(json.dumps(asdict(StreamConfig()) | asdict(Sampling())))
    state_file.write("a.state", {"extra": {"next": 5.0, "source": "match:4"}, "settings": saved}, {})

    def begin(config: StreamConfig) -> str:
        arguments = make_parser().parse_args(["match:5", "--resume", "a.state", "--model", "nothing"])
        with pytest.raises(InputError) as error, ExitStack() as stack:
            StreamCommand(arguments, config, Sampling(), stack)
        return str(error.value)

    assert begin(StreamConfig(mode="full")).startswith("a.state mode: got 'streaming', expected 'full'")
    assert begin(StreamConfig()).startswith("model: got nothing")
    assert "a.state was saved while it watched match:4: it goes on with match:5" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--query", "--previous-text", "--seed"])
def test_a_stream_that_is_resumed_has_its_own(flag, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["stream", "match:5", "--resume", "a.state", flag, "7"])
    with pytest.raises(InputError, match="a stream that has its own"):
        main()
