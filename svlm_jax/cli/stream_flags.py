"""How a video is streamed: flags of frames, sampling and retention, and the settings that they make.

A flag is named as the field that it sets. One that is not given leaves the setting that the model comes with.
"""

import argparse
import math
from argparse import SUPPRESS, BooleanOptionalAction
from dataclasses import fields, replace
from typing import Any, get_args

from svlm_jax.cli.flags import integer, integer_or_none, number, number_or_none
from svlm_jax.config import CutReply, Mode, MovedReplyKV, MropeTurns, ResizeOn, RopePositions, StreamConfig
from svlm_jax.errors import InputError
from svlm_jax.media.reconnect import GIVE_UP_AFTER, Reconnect
from svlm_jax.presets import PRESETS

STREAM_FIELDS = tuple(field.name for field in fields(StreamConfig))
SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "repetition_penalty", "silence_threshold", "silence_threshold_step")
SAMPLING_FIELDS += ("silence",)
# What every stream is shown with; the others only where they differ from the defaults.
DISPLAYED_FIELDS = ("mode", "vision_window", "text_rounds", "sink", "text_window", "rope_positions", "moved_reply_kv")
DISPLAYED_FIELDS += ("fps", "chunk_seconds")
DISPLAYED_IF_CHANGED = ("first_chunk_seconds", "mrope_axes", "mrope_turns", "previous_text_turn", "question_after_frames")
DISPLAYED_IF_CHANGED += ("cut_reply",)


def preset_flag(parser: Any) -> None:
    """--preset: settings of a published model's own protocol, under those of single flags."""
    description = "stream as the published code of a model does: docs/streaming.md"
    parser.add_argument("--preset", choices=tuple(PRESETS), help=description)


def frame_flags(parser: Any) -> None:
    """--fps, --chunk-seconds and --first-chunk-seconds: how a video is cut into chunks."""
    parser.add_argument("--fps", type=number(0, 1000), default=SUPPRESS, help="frames a second that the model sees (usually 2)")
    parser.add_argument("--chunk-seconds", type=number(0, 3600), default=SUPPRESS, help="video seconds of a reply (usually 1)")
    first = "those of the first reply (usually none: as many as of the others)"
    parser.add_argument("--first-chunk-seconds", type=number_or_none(0, 3600), default=SUPPRESS, metavar="S", help=first)


def resize_flag(parser: Any) -> None:
    """--resize-on: what `stream.frames.resizes_on_device` reads."""
    description = "where frames are resized and cut into patches, to the same pixels (default: a GPU or TPU if there is one)"
    parser.add_argument("--resize-on", choices=get_args(ResizeOn), default="auto", help=description)


def reconnect_flag(parser: Any) -> None:
    """--reconnect-seconds: what `reconnect_policy` reads."""
    description = (
        f"how long a camera or live URL that is lost is tried again; 0: not at all, none: for ever (default {GIVE_UP_AFTER:g})"
    )
    parser.add_argument("--reconnect-seconds", type=number_or_none(0), default=GIVE_UP_AFTER, metavar="S", help=description)


def reconnect_policy(seconds: float | None) -> Reconnect:
    """Of a value of --reconnect-seconds."""
    return Reconnect(math.inf if seconds is None else seconds)


def sampling_flags(parser: Any) -> None:
    """How the tokens of a reply are drawn, and how many there may be."""
    parser.add_argument("--temperature", type=number(0, 100), default=SUPPRESS, help="0 is greedy (usually 0.9)")
    parser.add_argument("--top-k", type=integer(0), default=SUPPRESS, help="draw from the K likeliest; 0: all (usually 50)")
    parser.add_argument("--top-p", type=number(0, 1), default=SUPPRESS, help="draw from this share of likelihood (usually 1)")
    parser.add_argument(
        "--repetition-penalty", type=number(0, 100), default=SUPPRESS, help="above 1: fewer repetitions (usually 1.05)"
    )
    rule = "speak exactly where the probability of silence is at most this: 0 never, 1 always (usually the model's choice)"
    parser.add_argument("--silence", type=number_or_none(0, 1), default=SUPPRESS, metavar="P", help=rule)
    silence = 'forbid " ..." where its probability is at most this: fewer silent chunks (usually none)'
    parser.add_argument("--silence-threshold", type=number_or_none(0, 1), default=SUPPRESS, metavar="P", help=silence)
    step = "added to the threshold with each token of a reply: longer replies (usually 0)"
    parser.add_argument("--silence-threshold-step", type=number(-1, 1), default=SUPPRESS, metavar="P", help=step)
    parser.add_argument("--max-new-tokens", type=integer(1), default=SUPPRESS, help="longest reply (usually 20)")


def retention_flags(parser: argparse.ArgumentParser, mode: bool = True) -> None:
    """What stays in the KV cache, and at which positions. mode: with --mode, which other commands give another meaning."""
    group = parser.add_argument_group(
        "what is retained",
        "A flag that is not given leaves the model's own setting (streaming_config.json), or else the usual one. "
        "The settings in force are printed after loading.",
    )

    def add(name: str, text: str, **options: Any) -> None:
        group.add_argument(name, default=SUPPRESS, help=text, **options)

    modes = "streaming; full: everything; window: everything of a while, then nothing; recompute: windows without a cache"
    if mode:
        add("--mode", f"{modes} (usually streaming)", choices=get_args(Mode))
    add("--vision-window", "chunks of frames (usually 16)", type=integer(1))
    add("--text-rounds", "replies that stay turns (usually 16)", type=integer(1))
    add("--sink", "attention sink: first words of the previous text (usually 512; none: all)", type=integer_or_none)
    add("--text-window", "last tokens of the previous text (usually 512; none: all)", type=integer_or_none)
    add("--rope-positions", "of retained tokens (usually contiguous)", choices=get_args(RopePositions))
    add("--moved-reply-kv", "of replies that become previous text (usually reuse)", choices=get_args(MovedReplyKV))
    add("--mrope-axes", "of positions: 3, or 1: all tokens count up by one (usually 3)", type=int, choices=(1, 3))
    add("--mrope-turns", "whose frames stand on 3 axes (usually all)", choices=get_args(MropeTurns))
    add("--window-chunks", "of --mode window (usually 100)", type=integer(1))
    turn = "a turn for older commentary; without it that is dropped (usually there)"
    add("--previous-text-turn", turn, action=BooleanOptionalAction)
    after = "a question follows the frames, not the time (usually not)"
    add("--question-after-frames", after, action=BooleanOptionalAction)
    add("--cut-reply", "of a reply cut at --max-new-tokens (usually keep: all of it)", choices=get_args(CutReply))


def stream_settings(args: argparse.Namespace) -> tuple[StreamConfig, Any]:
    """How to stream, and a `Sampling`: what the flags of this module say, else what the model named by --model comes with.

    Raises:
        InputError: flags that contradict each other, by their names.
    """
    from svlm_jax.pretrained import local_directory
    from svlm_jax.settings import read_streaming_config

    config, sampling = read_streaming_config(local_directory(args.model), getattr(args, "preset", None))
    overrides = {name: getattr(args, name) for name in STREAM_FIELDS if name in args}
    _check_positions(overrides, config)
    try:
        config = replace(config, **overrides)
        chosen = {name: getattr(args, name) for name in SAMPLING_FIELDS if name in args}
        if chosen.get("silence") is not None:  # one rule of silence at a time: that of a model or a preset gives way
            chosen = {"silence_threshold": None, "silence_threshold_step": 0.0} | chosen
        return config, replace(sampling, **chosen)
    except InputError as error:
        raise _under_flag_names(error) from None


def _check_positions(overrides: dict[str, Any], config: StreamConfig) -> None:
    """Native positions cannot be recomputed: the line names the flag that was given, not the setting that the model has."""
    positions = overrides.get("rope_positions", config.rope_positions)
    reply_kv = overrides.get("moved_reply_kv", config.moved_reply_kv)
    if positions != "native" or reply_kv != "recompute":
        return
    if "rope_positions" in overrides:
        got = "native with --moved-reply-kv recompute" + ("" if "moved_reply_kv" in overrides else " (this model's setting)")
        remedy = "add --moved-reply-kv reuse, or leave --rope-positions out"
        raise InputError("--rope-positions", got, "--moved-reply-kv reuse with it", remedy)
    got, expected = "recompute with native positions", "--rope-positions contiguous with it"
    raise InputError("--moved-reply-kv", got, expected, "add --rope-positions contiguous")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _under_flag_names(error: InputError) -> InputError:
    """A refused setting, under the names of its flags."""
    words = error.field.removeprefix("sampling ").split()
    field = " ".join(_flag(word) if word in (*STREAM_FIELDS, *SAMPLING_FIELDS) else word for word in words)
    return InputError(field, error.got, error.expected, error.remedy)


def settings_line(config: StreamConfig, sampling: Any) -> str:
    """The settings of a stream in one line, under the names of their flags."""
    names = list(DISPLAYED_FIELDS)
    names += [name for name in DISPLAYED_IF_CHANGED if getattr(config, name) != getattr(StreamConfig(), name)]
    names += ["window_chunks"] if config.mode == "window" else []
    values = {name: getattr(config, name) for name in names}
    stream = ", ".join(
        f"{_flag(name)[2:]} {value:g}" if isinstance(value, float) else f"{_flag(name)[2:]} {value}"
        for name, value in values.items()
    )
    drawing = "greedy" if sampling.temperature == 0 else f"temperature {sampling.temperature:g}, top-k {sampling.top_k}"
    if sampling.temperature and sampling.top_p < 1:
        drawing += f", top-p {sampling.top_p:g}"
    if sampling.repetition_penalty != 1:
        drawing += f", repetition-penalty {sampling.repetition_penalty:g}"
    if sampling.silence_threshold is not None:
        drawing += f", silence-threshold {sampling.silence_threshold:g}"
        drawing += f" + {sampling.silence_threshold_step:g} a token" if sampling.silence_threshold_step else ""
    drawing += f", silence {sampling.silence:g}" if sampling.silence is not None else ""
    return f"settings: {stream}; {drawing}, max-new-tokens {config.max_new_tokens}"
