"""The settings of a stream as JSON and back, for its state in a file.

What comes back is checked field by field: a file that was made to be hostile is refused here, not in the middle of a step.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from svlm_jax.config import StreamConfig
from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.stream.alerts import AlertRule
from svlm_jax.stream.pacing import Pacing
from svlm_jax.stream.stream_settings import StreamSettings

PARTS: dict[str, type] = {"config": StreamConfig, "sampling": Sampling, "pacing": Pacing, "alert": AlertRule}
Settings = TypeVar("Settings")


def to_json(settings: StreamSettings) -> dict[str, Any]:
    """All fields but the previous text, which a sequence has as tokens."""
    plain = {"query": settings.query, "seed": settings.seed, "max_new_tokens": settings.max_new_tokens}
    parts = {name: getattr(settings, name) for name in PARTS}
    return plain | {name: None if part is None else asdict(part) for name, part in parts.items()}


def from_json(saved: Mapping[str, Any]) -> StreamSettings:
    """The settings that `to_json` was given.

    Raises:
        ValueError, KeyError, TypeError: no release writes such settings.
    """
    parts = {name: None if saved[name] is None else _build(part, saved[name]) for name, part in PARTS.items()}
    return _checked(StreamSettings(**{**saved, **parts}))


def _build(settings: type[Settings], saved: Mapping[str, Any]) -> Settings:
    """A dataclass of its fields; JSON has lists for tuples."""
    try:
        return _checked(settings(**{name: tuple(value) if type(value) is list else value for name, value in saved.items()}))
    except InputError as error:
        raise ValueError(str(error)) from None


def _checked(settings: Settings) -> Settings:
    for name, hint in get_type_hints(type(settings)).items():
        if not _matches(getattr(settings, name), hint):
            raise TypeError(f"{name} of another type")
    return settings


def _matches(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; of numbers, finite ones."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_matches(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if origin is tuple:
        return type(value) is tuple and all(_matches(item, args[0]) for item in value)
    if origin is Mapping or origin is dict:
        return isinstance(value, Mapping)
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is (NoneType if hint is None else hint)
