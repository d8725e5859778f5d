"""Settings of a stream as JSON: `session.svlm` of /v1/realtime, `svlm` of a start, the body of a REST session.

Owns the names, which are those of the flags and fields that they set, and what a client may say at all. Whether a session has
room for them is decided by the engine. Units: seconds; chunks, tokens and words where the fields of `StreamConfig` count them.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, TypeVar, get_args

from svlm_jax.config import Mode, StreamConfig
from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.serve.json_fields import Fields, RequestError
from svlm_jax.serve.limits import Limits
from svlm_jax.stream.alerts import MAX_OPTIONS, AlertRule
from svlm_jax.stream.pacing import Pacing
from svlm_jax.stream.stream_settings import StreamSettings

MAX_COUNT = 1_000_000  # of chunks, words and tokens; the session has far fewer slots
MAX_SEED = 2**32 - 1
MAX_SECONDS = 86_400.0
MAX_OPTION_CHARS = 100
MAX_SCHEMA_KEYS = 64
CONFIG_FIELDS = ("mode", "vision_window", "text_rounds", "sink", "text_window", "fps")
SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "repetition_penalty", "silence")
KNOWN = ("query", "seed", "max_new_tokens", *CONFIG_FIELDS, *SAMPLING_FIELDS, "min_gap", "max_talk", "alert")
Settings = TypeVar("Settings", StreamConfig, Sampling, Pacing)
NULLABLE = ("sink", "text_window", "silence", "max_talk", "alert")  # null turns these off; of others it is the server's


def read_settings(
    value: Any, base: StreamSettings, limits: Limits, path: str = "svlm", *, own: StreamSettings | None = None
) -> StreamSettings:
    """`base`, which is complete, with what a client's JSON changes of it.

    Args:
        path: of the JSON in the message.
        own: the server's own settings, which null stands for where it turns nothing off; None: `base`.

    Raises:
        RequestError: no object, an unknown field, a value that no session could take.
    """
    fields = Fields(value, path)
    own = own or base
    assert base.config is not None and base.sampling is not None and own.config is not None and own.sampling is not None
    config = _changed(fields, base.config, _config_values(fields, own.config))
    sampling = _changed(fields, base.sampling, _sampling_values(fields, own.sampling))
    pacing = _changed(fields, base.pacing, _read_present(fields, own.pacing, ("min_gap", "max_talk"), _seconds))
    default_query = own.query if fields.has("query") else base.query
    query = fields.text("query", default_query, max_chars=limits.max_question_chars).strip()
    seed = fields.integer("seed", 0, MAX_SEED, base.seed)
    alert = _alert(fields, limits) if fields.has("alert") else base.alert
    longest = base.max_new_tokens
    if fields.has("max_new_tokens"):
        longest = fields.integer("max_new_tokens", 1, MAX_COUNT, base.config.max_new_tokens)
    if fields.has("max_output_tokens"):  # OpenAI's: a bound, which the server's own may be below
        limit = base.config.max_new_tokens
        longest = min(fields.integer("max_output_tokens", 1, default=limit) or limit, limit)
    fields.close(known=KNOWN)
    assert seed is not None
    changed = {"query": query, "seed": seed, "config": config, "sampling": sampling, "max_new_tokens": longest}
    return replace(base, **changed, pacing=pacing, alert=alert)


def settings_json(settings: StreamSettings) -> dict[str, Any]:
    """Complete settings under the names that `read_settings` reads."""
    assert settings.config is not None and settings.sampling is not None
    parts: dict[str, Any] = {"query": settings.query, "seed": settings.seed}
    parts |= {name: getattr(settings.config, name) for name in CONFIG_FIELDS}
    parts |= {name: getattr(settings.sampling, name) for name in SAMPLING_FIELDS}
    parts |= {"max_new_tokens": settings.max_new_tokens, **asdict(settings.pacing)}
    alert = settings.alert
    parts["alert"] = None if alert is None else {**vars(alert), "yes": list(alert.yes), "no": list(alert.no)}
    return parts


def _read_present(fields: Fields, own: Any, names: tuple[str, ...], read: Callable[[Fields, str], Any]) -> dict[str, Any]:
    """What the client says of these fields. own: has the values that null stands for where it turns nothing off."""
    values = {name: read(fields, name) for name in names if fields.has(name)}
    is_own = {name: value is None and name not in NULLABLE for name, value in values.items()}
    return {name: getattr(own, name) if is_own[name] else value for name, value in values.items()}


def _seconds(fields: Fields, name: str) -> float | None:
    return fields.number(name, 0, MAX_SECONDS)


def _mode(fields: Fields, name: str) -> str | None:
    return None if fields.take(name) is None else fields.choice(name, get_args(Mode))


def _config_values(fields: Fields, own: StreamConfig) -> dict[str, Any]:
    values = _read_present(fields, own, ("mode",), _mode)
    counts = ("vision_window", "text_rounds")
    values |= _read_present(fields, own, counts, lambda fields, name: fields.integer(name, 1, MAX_COUNT))
    values |= _read_present(fields, own, ("sink",), lambda fields, name: fields.integer(name, 0, MAX_COUNT))
    values |= _read_present(fields, own, ("text_window",), lambda fields, name: fields.integer(name, 1, MAX_COUNT))
    return values | _read_present(fields, own, ("fps",), lambda fields, name: fields.number(name, 0, 1000))


def _sampling_values(fields: Fields, own: Sampling) -> dict[str, Any]:
    factors = ("temperature", "repetition_penalty")
    values = _read_present(fields, own, factors, lambda fields, name: fields.number(name, 0, 100))
    values |= _read_present(fields, own, ("top_p", "silence"), lambda fields, name: fields.number(name, 0, 1))
    values |= _read_present(fields, own, ("top_k",), lambda fields, name: fields.integer(name, 0, MAX_COUNT))
    if values.get("silence") is not None:  # one rule of silence at a time: that of a preset gives way
        values["silence_threshold"] = None
    return values


def _changed(fields: Fields, base: Settings, values: dict[str, Any]) -> Settings:
    """`base` with other values; what they refuse is told under the client's own path."""
    try:
        return replace(base, **values)
    except InputError as error:
        raise _under(fields.path, error) from None


def _under(path: str, error: InputError) -> RequestError:
    name = error.field.removeprefix("sampling ").removeprefix("alert ")
    return RequestError(f"{path}.{name}", error.got, error.expected, error.remedy)


def _alert(fields: Fields, limits: Limits) -> AlertRule | None:
    """A rule: of a `question` with its answers, or of a `condition`."""
    alert = fields.object("alert")
    if alert is None:
        return None
    max_chars = limits.max_question_chars
    question, condition = alert.text("question", max_chars=max_chars), alert.text("condition", max_chars=max_chars)
    if bool(question) == bool(condition):
        raise alert.error("question", "a question or a condition, not both", "send one of them")
    values: dict[str, Any] = {"name": alert.text("name", max_chars=max_chars)}
    for name in ("yes", "no"):
        if options := alert.texts(name, max_items=MAX_OPTIONS, max_chars=MAX_OPTION_CHARS):
            values[name] = options
    if (threshold := alert.number("threshold", 0, 1)) is not None:
        values["threshold"] = threshold
    if (confirm := alert.integer("confirm", 1, MAX_COUNT)) is not None:
        values["confirm"] = confirm
    if (schema := alert.object("schema")) is not None:
        if len(schema.value) > MAX_SCHEMA_KEYS:
            raise alert.error("schema", f"at most {MAX_SCHEMA_KEYS} keys", "simplify it")
        values["schema"] = schema.value
    alert.close()
    try:
        return AlertRule.of_condition(condition, **values) if condition else AlertRule(question, **values)
    except InputError as error:
        raise _under(alert.path, error) from None
