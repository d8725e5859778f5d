"""How a command streams: its flags over a preset, over what the model comes with."""

import json
from dataclasses import replace

import pytest

from svlm_jax.cli import serve, stream
from svlm_jax.cli.stream_flags import settings_line, stream_settings
from svlm_jax.config import StreamConfig
from svlm_jax.decode.sampling import COMMENTARY, Sampling
from svlm_jax.errors import InputError
from svlm_jax.families import config_json
from svlm_jax.media.processor import Processor
from svlm_jax.presets import LIVECC, LIVECC_1D, PRESETS
from svlm_jax.settings import read_streaming_config


@pytest.fixture
def directory(tmp_path):
    """A model's directory, of which only streaming_config.json is read."""
    return tmp_path


def given(directory, *flags: object, command=stream.make_parser, source=("film.mp4",)):
    return stream_settings(command().parse_args([*source, "--model", str(directory), *map(str, flags)]))


def write(directory, **settings) -> None:
    (directory / "streaming_config.json").write_text(json.dumps(settings))


def test_a_flag_goes_over_a_preset_and_a_preset_over_the_file(directory):
    """Else nobody can try one other setting, or a model's file changes a published protocol."""
    write(directory, stream={"mode": "window", "max_new_tokens": 9, "question_tokens": 99}, sampling={"temperature": 0.5})
    config, sampling = given(directory, "--preset", "livecc", "--max-new-tokens", 32, "--mrope-turns", "all")
    assert config == StreamConfig(**{**LIVECC.stream, "max_new_tokens": 32, "mrope_turns": "all", "question_tokens": 99})
    assert sampling == Sampling(temperature=0.0, repetition_penalty=1.05)
    flags = ("--previous-text-turn", "--no-question-after-frames", "--first-chunk-seconds", "none", "--cut-reply", "keep")
    config, _ = given(directory, "--preset", "livecc-1d", *flags, command=serve.parser, source=())
    assert config.mrope_axes == 1 and config.previous_text_turn and not config.question_after_frames
    assert (config.first_chunk_seconds, config.first_chunk_frames, config.cut_reply) == (None, 2, "keep")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_may_stand_in_the_file(directory, name, tiny_dir, processor_dir):
    """So a converted LiveCC streams by its own protocol without a flag."""
    write(directory, preset=name, stream={"max_new_tokens": 32})
    config, sampling = read_streaming_config(directory)
    assert config == StreamConfig(**{**PRESETS[name].stream, "max_new_tokens": 32}) and sampling.temperature == 0
    for file in processor_dir.iterdir():
        if file.is_file() and file.name != "streaming_config.json":
            (directory / file.name).write_bytes(file.read_bytes())
    processor = Processor.from_directory(directory, config_json.read(tiny_dir))
    plain = Processor.from_directory(processor_dir, config_json.read(tiny_dir))
    assert processor.video_config == plain.with_preset(PRESETS[name]).video_config
    assert processor.video_config.max_pixels <= PRESETS[name].max_frame_tokens * 28 * 28


def test_without_a_preset_nothing_has_changed(directory):
    assert given(directory) == (StreamConfig(), COMMENTARY)
    assert LIVECC_1D._replace(stream={}) == LIVECC._replace(stream={})


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"preset": "live"}, r"preset: got 'live', expected one of livecc, livecc-1d; "),
        ({"preset": ["livecc"]}, r"preset: got \['livecc'\], expected one of "),
        ({"stream": {"previous_text_turn": 1}}, r"stream.previous_text_turn: got 1, expected true or false; "),
        ({"stream": {"mrope_turns": "last"}}, r"mrope_turns: got 'last', expected one of all, first; "),
        (
            {"stream": {"first_chunk_seconds": 0.5}},
            r"first_chunk_seconds: got 2 fps in chunks of 0.5 s, expected an even number of frames",
        ),
        ({"sampling": {"silence_threshold": "off"}}, r"sampling.silence_threshold: got 'off', expected a number; "),
    ],
)
def test_a_file_with_other_values_is_refused(directory, settings, line):
    write(directory, **settings)
    with pytest.raises(InputError, match=line):
        read_streaming_config(directory)


def test_the_settings_in_force_are_shown(directory):
    """Else a listener cannot know why a commentary is silent, or what it was compared with."""
    flags = ("--silence-threshold", 0.25, "--silence-threshold-step", 0.0625)
    config, sampling = given(directory, "--preset", "livecc", *flags)
    shown = settings_line(config, sampling)
    assert "first-chunk-seconds 3" in shown and "mrope-turns first" in shown and "previous-text-turn False" in shown
    assert shown.endswith("greedy, repetition-penalty 1.05, silence-threshold 0.25 + 0.0625 a token, max-new-tokens 16")
    write(directory, sampling={"silence_threshold": 0.25})
    _, sampling = given(directory, "--silence-threshold", "none")
    assert sampling == replace(COMMENTARY, silence_threshold=None)
    assert settings_line(StreamConfig(), COMMENTARY).count("previous") == 0
    # One rule of silence at a time: the flag takes the place of the model's.
    _, sampling = given(directory, "--silence", 0.5)
    assert sampling == replace(COMMENTARY, silence=0.5) and ", silence 0.5, max-new-tokens" in settings_line(config, sampling)
    with pytest.raises(InputError, match=r"^--silence: got 0.5 with silence_threshold 0.25, expected one rule of silence"):
        given(directory, "--silence", 0.5, "--silence-threshold", 0.25)
