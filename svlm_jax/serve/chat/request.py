"""A request of OpenAI's chat completions, read from its JSON. Knows no model and decodes no media.

What a client may send and this server does not do (tools, several choices, log-probabilities) is refused by name, unless its
value asks for nothing; nothing that was asked for is dropped without a word. Units: tokens, characters.
"""

import json
from dataclasses import replace
from typing import Any, NamedTuple

from svlm_jax.decode.sampling import Sampling
from svlm_jax.families.chat import plain
from svlm_jax.serve.json_fields import Fields, RequestError, decode_json

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}  # theirs -> of a `Turn`
MAX_VALUES = 50_000  # in the JSON of a request: commas of long texts count too
MAX_MESSAGES = 512
MAX_PARTS = 256  # of a message
MAX_STOPS, MAX_STOP_CHARS = 16, 200
MAX_TEMPERATURE = 2.0
MAX_FPS = 30.0
# Parameters of OpenAI's API with the values that ask for nothing; null is one of them everywhere.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "store": (False,),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
}
# About who asks and how it is billed: no reply depends on it.
IGNORED = (
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "service_tier",
    "parallel_tool_calls",
)


class Media(NamedTuple):
    """An image or a video of a message that is still a URL. field: its path in the request. is_small: an image of which few
    tokens will do ("detail": "low"). fps: frames a second of a video; None: the server's choice."""

    url: str
    field: str
    is_video: bool
    is_small: bool = False
    fps: float | None = None


class Message(NamedTuple):
    """role: of a `families.chat.Turn`. content: texts and media in their order."""

    role: str
    content: tuple[str | Media, ...]


class ChatRequest(NamedTuple):
    """max_tokens: of the reply, None: as many as there may be. seed: None: a random one. stop: texts before which a reply
    ends."""

    model: str
    messages: tuple[Message, ...]
    max_tokens: int | None
    sampling: Sampling
    seed: int | None
    stop: tuple[str, ...]
    is_streamed: bool
    includes_usage: bool

    @property
    def media(self) -> list[Media]:
        return [item for message in self.messages for item in message.content if isinstance(item, Media)]


def read_request(body: bytes, default: Sampling, max_tokens: int) -> ChatRequest:
    """The request in the body of a POST.

    Args:
        default: how tokens are chosen where the request does not say.
        max_tokens: that a reply may have.

    Raises:
        RequestError, InputError: what is wrong, under the path of the field.
    """
    try:
        fields = Fields(decode_json(body.decode(), MAX_VALUES))
    except UnicodeDecodeError:
        raise RequestError("message", "no UTF-8", "JSON in UTF-8", "encode it", code="invalid_event") from None
    fields.require("model", "messages")
    for name, values in NEUTRAL.items():
        if (value := fields.take(name)) is not None and value not in values:
            known = f"{json.dumps(values[0])}, or nothing" if values else "nothing"
            raise fields.error(name, known, "leave it out: this server does not do it", code="unsupported_parameter")
    model, is_streamed = fields.text("model"), fields.flag("stream")
    includes_usage = _includes_usage(fields)
    limits = [fields.integer(name, 1, max_tokens) for name in ("max_completion_tokens", "max_tokens")]
    length = next((limit for limit in limits if limit is not None), None)
    sampling, seed, stop = _sampling(fields, default), fields.integer("seed", -(2**63), 2**64), _stop(fields)
    items = fields.items("messages", max_items=MAX_MESSAGES)
    if not items:
        raise RequestError("messages", "none", "at least one", "send what is asked")
    messages = tuple(_message(Fields(item, f"messages[{number}]")) for number, item in enumerate(items))
    fields.close(*IGNORED)
    return ChatRequest(model, messages, length, sampling, seed, stop, is_streamed, includes_usage)


def _includes_usage(fields: Fields) -> bool:
    options = fields.object("stream_options")
    if options is None:
        return False
    includes_usage = options.flag("include_usage")
    options.close("include_obfuscation")
    return includes_usage


def _sampling(fields: Fields, default: Sampling) -> Sampling:
    """top_k and repetition_penalty are no parameters of OpenAI's, but other servers take them under these names."""
    values = {
        "temperature": fields.number("temperature", 0, MAX_TEMPERATURE),
        "top_p": fields.number("top_p", 0, 1),
        "top_k": fields.integer("top_k", 1),
        "repetition_penalty": fields.number("repetition_penalty", 0.01, 100),
    }
    return replace(default, **{name: value for name, value in values.items() if value is not None})


def _stop(fields: Fields) -> tuple[str, ...]:
    value = fields.take("stop")
    texts = [] if value is None else [value] if isinstance(value, str) else value
    is_valid = isinstance(texts, list) and len(texts) <= MAX_STOPS
    if not is_valid or not all(isinstance(text, str) and 1 <= len(text) <= MAX_STOP_CHARS for text in texts):
        raise fields.error("stop", f"a text of at most {MAX_STOP_CHARS} characters, or {MAX_STOPS} of them", "correct it")
    return tuple(texts)


def _message(fields: Fields) -> Message:
    fields.require("role", "content")
    role, content = fields.choice("role", tuple(ROLES)), fields.take("content")
    fields.text("name")
    for name in ("tool_calls", "function_call", "refusal", "audio"):
        if fields.take(name):
            raise fields.error(name, "nothing", "leave it out: this server does not do it", code="unsupported_parameter")
    fields.close()
    if isinstance(content, str):
        return Message(ROLES[role], (plain(content, fields.path_of("content")),))
    if not isinstance(content, list) or len(content) > MAX_PARTS or not content:
        raise RequestError(fields.path_of("content"), type(content).__name__, f"text, or 1 to {MAX_PARTS} parts", "correct it")
    parts = tuple(_part(Fields(part, fields.path_of(f"content[{number}]"))) for number, part in enumerate(content))
    if role != "user" and any(isinstance(part, Media) for part in parts):
        raise RequestError(fields.path_of("content"), f"an image or a video of role {role}", "text", "send it as the user")
    return Message(ROLES[role], parts)


def _part(fields: Fields) -> str | Media:
    fields.require("type")
    kind = fields.text("type")
    if kind == "text":
        fields.require("text")
        text = fields.take("text")
        fields.close()
        if not isinstance(text, str):
            raise fields.error("text", "text", "put it into quotes")
        return plain(text, fields.path_of("text"))
    if kind not in ("image_url", "video_url"):
        raise fields.error("type", "text, image_url or video_url", "send one of them", code="unsupported_value")
    fields.require(kind)
    value = fields.take(kind)
    fields.close()
    source = Fields({"url": value} if isinstance(value, str) else value, fields.path_of(kind))
    source.require("url")
    url = source.take("url")
    if not isinstance(url, str):
        raise source.error("url", "a URL", "put it into quotes")
    detail, fps = "auto", None
    if kind == "image_url":
        detail = source.choice("detail", ("auto", "low", "high"), "auto")
    else:
        fps = source.number("fps", 0.01, MAX_FPS)
    source.close()
    return Media(url, source.path_of("url"), kind == "video_url", detail == "low", fps)
