"""Values of a config.json, checked one by one: what every family needs to read its two sections.

Owns the limits on sizes and the form of the errors. Knows no family. A file may hold anything that JSON can say.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from svlm_jax.config import TextConfig, VisionConfig
from svlm_jax.errors import InputError

OWN_CONFIG = "use the config.json that came with the weights"  # the usual remedy
# Limits on what a file may ask for: far above any model, low enough that a table of its tensors takes no memory.
LIMITS = {"num_hidden_layers": 1000, "depth": 1000, "window_size": 1 << 16}
LIMITS |= dict.fromkeys(("patch_size", "spatial_merge_size", "temporal_patch_size", "tokens_per_second"), 1000)
MAX_INT, MAX_FLOAT = 1 << 31, 1e12
LISTS = ("mrope_section", "fullatt_block_indexes", "deepstack_visual_indexes")
_Section = TypeVar("_Section", TextConfig, VisionConfig)
_Config = TypeVar("_Config")


def take_fields(
    cls: type[_Section], values: dict[str, Any], defaults: Mapping[str, Any], source: str, fixed: Mapping[str, Any]
) -> _Section:
    """Take the fields of `cls` out of `values`, which keeps the other keys.

    Args:
        defaults: what transformers assumes for keys that the file leaves out.
        source: the file and its section, for errors.
        fixed: fields that no file says.

    Raises:
        InputError: all missing fields in one error, or the first wrong value.
    """
    known = {field.name: field for field in fields(cls) if field.name not in fixed}
    settings = {**defaults, **{name: value for name, value in values.items() if name in known and value is not None}}
    if missing := [name for name, field in known.items() if name not in settings and field.default is MISSING]:
        raise InputError(source, f"no {', '.join(missing)}", "every size of the model", OWN_CONFIG)
    for name, value in settings.items():
        values.pop(name, None)
        kind = float if known[name].type is float else int
        if name in LISTS:
            if not (isinstance(value, list | tuple) and len(value) <= LIMITS["depth"]):
                raise InputError(f"{source}.{name}", short_repr(value), "a list of whole numbers", "mend config.json")
            for item in value:
                check_type(f"{source}.{name}", item, kind)
            settings[name] = tuple(value)
        else:
            check_type(f"{source}.{name}", value, kind, min_=0 if kind is float else 1, max_=LIMITS.get(name))
    return build(cls, source.rpartition(" ")[0], **settings, **fixed)


def field_values(config: TextConfig | VisionConfig, fixed: Collection[str]) -> dict[str, Any]:
    """The inverse of `take_fields`: JSON values by key."""
    values = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in fixed}
    return {name: list(value) if name in LISTS else value for name, value in values.items()}


def build(cls: Callable[..., _Config], source: str, *args: Any, **values: Any) -> _Config:
    """A config whose own checks name the file."""
    try:
        return cls(*args, **values)
    except InputError as error:
        raise error.within(source) from None


def check_type(name: str, value: Any, kind: type, min_: int = 0, max_: float | int | None = None) -> None:
    """Refuse a value that is no bool, int or float (`kind`), or a number out of range."""
    if kind is bool:
        is_valid, expected = isinstance(value, bool), "true or false"
    else:
        max_ = max_ or (MAX_FLOAT if kind is float else MAX_INT)
        is_valid = isinstance(value, kind | int) and not isinstance(value, bool) and min_ <= value <= max_
        expected = f"a {'number' if kind is float else 'whole number'} from {min_} to {max_}"
    if not is_valid:
        raise InputError(name, short_repr(value), expected, "mend config.json")


def check_variant(settings: Mapping[str, tuple[Any, Any]], source: str) -> None:
    """Refuse settings with which the model would have to be computed differently: (value of the file, the one supported)."""
    for name, (value, supported) in settings.items():
        if value != supported:
            raise InputError(f"{source} {name}", short_repr(value), repr(supported), "this variant is not supported")


def short_repr(value: object) -> str:
    """repr of any JSON value: numbers may have more digits than Python prints."""
    try:
        return repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} that is too long to print"
