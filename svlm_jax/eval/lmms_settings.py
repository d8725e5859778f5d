"""Settings that lmms-eval takes as text, checked: --model_args of the model, and the generation settings of a task.

Host side. Units: seconds, tokens.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError

MODES = ("prefix", "recent")
HARNESS = ("batch_size", "max_batch_size", "device")  # given by lmms-eval itself, beside --model_args
BLANK_LINE = "\n\n"
# Settings of a task that change nothing here, at these values.
NEUTRAL = {"num_beams": (None, 1), "use_cache": (None, True, False), "num_return_sequences": (None, 1), "n": (None, 1)}


@dataclass(frozen=True)
class ModelArgs:
    """--model_args, by name.

    pretrained: a checkpoint directory, hub id or shipped model. fps, max_frames: of videos; longer ones are thinned evenly.
    mode: the frames of a video, "prefix" all of it, "recent" the newest `max_frames` alone. seed: of sampling.
    max_new_tokens: where a task does not say. system_prompt: where a task has no system turn. blank_line_stops: whether a reply
    ends at its first blank line where the task's `until` has one: lmms-eval adds one to every task that has no `until`, and its
    own Qwen models ignore it. The others: of `from_pretrained`.
    """

    pretrained: str
    fps: float = 2.0
    max_frames: int = 64
    mode: str = "prefix"
    seed: int = 0
    max_new_tokens: int = 128
    system_prompt: str = ""
    blank_line_stops: bool = True
    processor: str = ""
    dtype: str = ""
    attention: str = "auto"
    weights: str = "full"
    preset: str = ""

    @classmethod
    def parse(cls, arguments: Mapping[str, Any]) -> "ModelArgs":
        """From names and values as lmms-eval splits them: numbers are numbers, true and false are, all else is text.

        Raises:
            InputError: a name that is none of these, a value of another kind, no `pretrained`.
        """
        kinds = {field.name: field.type for field in fields(cls)}
        if unknown := sorted(set(arguments) - set(kinds)):
            raise InputError(f"model_args {unknown[0]:.60}", "no such name", f"one of {', '.join(kinds)}", "correct it")
        if arguments.get("pretrained", "") == "":
            raise InputError("model_args", "no pretrained", "pretrained=DIR", "name the model")
        args = cls(**{name: _as(kinds[name], name, value) for name, value in arguments.items()})
        if args.mode not in MODES:
            raise InputError("model_args mode", args.mode, f"one of {', '.join(MODES)}", "correct it")
        for name, minimum in (("fps", 1e-3), ("max_frames", 1), ("max_new_tokens", 1), ("seed", 0)):
            if not minimum <= getattr(args, name) < float("inf"):
                raise InputError(f"model_args {name}", getattr(args, name), f"{minimum} or more", "correct it")
        return args

    def loading(self) -> dict[str, Any]:
        """The options of `from_pretrained`."""
        names = ("processor", "dtype", "attention", "weights", "preset")
        return {name: getattr(self, name) or None for name in names}


def _as(kind: Any, name: str, value: Any) -> Any:
    """A value of --model_args as `kind`: str, int, float or bool."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is str and (isinstance(value, str) or is_number):
        return str(value)
    if kind is float and is_number:
        return float(value)
    if kind is int and is_number and abs(value) < 1e18 and value == int(value):
        return int(value)
    if kind is bool and isinstance(value, bool):
        return value
    expected = {str: "a text", float: "a number", int: "a whole number", bool: "true or false"}[kind]
    raise InputError(f"model_args {name}", f"{value!r:.60}", expected, "correct it")


def batch_size_of(value: Any) -> int:
    """Of --batch_size, which is a text.

    Raises:
        InputError: "auto", or no whole number above 0.
    """
    if not str(value).isdecimal() or int(value) < 1:
        raise InputError("--batch_size", f"{value!r:.60}", "a whole number from 1", "it is not found automatically here")
    return int(value)


class ReplySettings(NamedTuple):
    """How a task wants replies: sampling, their length, and the texts at which they end."""

    sampling: Sampling
    max_new_tokens: int
    until: tuple[str, ...]

    def cut(self, text: str) -> str:
        """A reply up to the first of the stop strings."""
        ends = [position for stop in self.until if (position := text.find(stop)) >= 0]
        return text[: min(ends, default=len(text))].strip()


def reply_settings(gen_kwargs: Mapping[str, Any], args: ModelArgs, default: Sampling, notes: set[str]) -> ReplySettings:
    """From the `generation_kwargs` of a task; what they leave open is as the model's generation_config.json says, greedy.

    do_sample false is greedy, whatever the temperature; without do_sample, a temperature above 0 samples.

    Args:
        notes: warnings so far; each unsupported setting is reported once.

    Raises:
        InputError: a value of another kind, or out of range.
    """
    rest = {name: value for name, value in gen_kwargs.items() if value is not None}
    length = rest.pop("max_new_tokens", rest.pop("max_gen_toks", args.max_new_tokens))
    rest.pop("max_gen_toks", None)
    until = rest.pop("until", [])
    stops = [until] if isinstance(until, str) else list(until)
    if not args.blank_line_stops:
        stops = [stop for stop in stops if stop != BLANK_LINE]
    numbers = {name: rest.pop(name) for name in ("temperature", "top_p", "top_k", "repetition_penalty") if name in rest}
    do_sample = rest.pop("do_sample", numbers.get("temperature", 0) != 0)
    for name, value in (("max_new_tokens", length), *numbers.items()):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"generation_kwargs {name}", f"{value!r:.60}", "a number", "correct it")
    if not do_sample or numbers.get("temperature") == 0 or numbers.get("top_p") == 0:
        numbers = {"repetition_penalty": numbers.get("repetition_penalty", default.repetition_penalty), "temperature": 0.0}
    elif "temperature" not in numbers:
        numbers["temperature"] = default.temperature or 1.0
    for name, value in rest.items():
        if value not in NEUTRAL.get(name, ()):
            _note_once(f"generation_kwargs {name}={value!r:.60} is not supported here, and has no effect", notes)
    return ReplySettings(replace(default, **numbers), int(length), tuple(stop for stop in stops if stop))


def _note_once(text: str, notes: set[str]) -> None:
    if text not in notes:
        notes.add(text)
        warnings.warn(text, stacklevel=4)
