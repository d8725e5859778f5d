"""What clients may send to /v1/realtime: a text message becomes one of these events, or is refused in one line.

Owns the fields of client events, and which fields of OpenAI's Realtime API mean nothing here; knows no stream. Settings stay
JSON (`settings_json` reads them, because they change those in force). docs/realtime.md lists all events. Units: seconds, bytes.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from svlm_jax.errors import shortened
from svlm_jax.serve.json_fields import Fields, RequestError, decode_base64, decode_json
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.sources.catalog import MAX_SEED, MAX_SOURCE_INDEX, SOURCES, StreamSource

MAX_STAMP = 1e11  # seconds; in milliseconds and on any calendar a second that may be meant
MAX_CONTENT_PARTS, MAX_INPUT_ITEMS, MAX_METADATA = 16, 16, 16
MAX_METADATA_KEY, MAX_METADATA_VALUE = 64, 512  # characters, as OpenAI allows
SUBSCRIPTIONS = ("streams", "video", "chunks")
STREAM_NAME = re.compile(r"[a-z0-9-]{1,64}")
OWNER_KEY = re.compile(r"[A-Za-z0-9_-]{0,64}")
DATA_URI = re.compile(r"data:image/(?:jpeg|jpg|png|webp);base64,")
# Fields of OpenAI's API that official clients send, and that mean nothing for a video that is watched.
IGNORED_OF_SESSION = ("audio", "include", "model", "parallel_tool_calls", "prompt", "reasoning", "tool_choice", "tracing")
IGNORED_OF_SESSION += ("truncation", "temperature", "id", "object")
IGNORED_OF_RESPONSE = ("audio", "parallel_tool_calls", "prompt", "reasoning", "tool_choice")


@dataclass(frozen=True, kw_only=True)
class ClientEvent:
    """event_id: what the client calls the event; an `error` about it repeats that."""

    event_id: str = ""


@dataclass(frozen=True, kw_only=True)
class SessionUpdate(ClientEvent):
    """settings: JSON of `session.svlm` with what OpenAI's own fields say of it. subscribe: None: as it was. openrealtime: the
    client asks for those events."""

    settings: dict[str, Any]
    subscribe: frozenset[str] | None = None
    openrealtime: bool = False


@dataclass(frozen=True, kw_only=True)
class ItemCreate(ClientEvent):
    """A message of the user. images: encoded; content: the parts as they are told to the client, without images."""

    item_id: str = ""
    texts: tuple[str, ...] = ()
    images: tuple[bytes, ...] = ()
    content: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class FrameAppend(ClientEvent):
    """An encoded image; timestamp: None: the time of its arrival."""

    image: bytes
    timestamp: float | None = None


@dataclass(frozen=True, kw_only=True)
class FrameCommit(ClientEvent):
    """query: a question about what was sent; is_final: no frame follows."""

    query: str = ""
    is_final: bool = False


@dataclass(frozen=True, kw_only=True)
class ResponseCreate(ClientEvent):
    """texts: of the question, besides those that wait; max_output_tokens: None: as for every reply."""

    texts: tuple[str, ...] = ()
    max_output_tokens: int | None = None
    metadata: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class ResponseCancel(ClientEvent):
    response_id: str = ""


@dataclass(frozen=True, kw_only=True)
class StreamStart(ClientEvent):
    """settings: JSON as of `session.svlm`, for this stream alone."""

    source: StreamSource = field(default_factory=StreamSource)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StreamJoin(ClientEvent):
    """after: number of the last chunk that the client has; key: of the owner."""

    stream: str
    after: int = -1
    key: str = ""


@dataclass(frozen=True, kw_only=True)
class StreamLeave(ClientEvent):
    pass


@dataclass(frozen=True, kw_only=True)
class StreamStop(ClientEvent):
    key: str = ""


def parse(text: str, limits: Limits) -> ClientEvent:
    """The event of a text message.

    Raises:
        RequestError: no JSON object, an unknown type or field, a missing field, a wrong JSON type, a value out of bounds. Its
            `event_id` is that of the message, where it has one.
    """
    event_id = ""
    try:
        fields = Fields(decode_json(text))
        event_id = fields.text("event_id")
        kind = fields.text("type")
        if kind not in READERS:
            raise fields.error("type", f"one of {', '.join(READERS)}", "see docs/realtime.md", code="invalid_event")
        event = READERS[kind](fields, limits)
        fields.close()
        return replace(event, event_id=event_id)
    except RequestError as error:
        error.event_id = event_id
        raise


def decode_image(text: str, path: str, limits: Limits) -> bytes:
    """The bytes of base64, or of a data URI.

    Raises:
        RequestError: another address, another kind of data, no base64, too large.
    """
    if text.startswith(("http://", "https://")):
        raise RequestError(path, "an address", "data:image/jpeg;base64,...", "send the image itself")
    if text.startswith("data:"):
        head = DATA_URI.match(text)
        if head is None:
            got, expected = shortened(text[:60], 40), "data:image/jpeg;base64,..."
            raise RequestError(path, got, expected, "send JPEG, PNG or WebP", code="invalid_image")
        text = text[head.end() :]
    return decode_base64(text, path, limits.max_image_bytes, code="invalid_image")


def check_question(text: str, path: str, limits: Limits) -> str:
    """A question, or a part of one, without blanks around it.

    Raises:
        RequestError: it is empty, too long, or more than a line.
    """
    fields = Fields({path: text})
    text = fields.text(path, max_chars=limits.max_question_chars).strip()
    if not text:
        raise RequestError(path, "nothing", "a question", "write one")
    return text


def _session_update(fields: Fields, limits: Limits) -> SessionUpdate:
    fields.require("session")
    session = fields.object("session") or Fields(None, "session")
    session.choice("type", ("realtime",))
    _check_output(session)
    svlm = session.object("svlm") or Fields({}, session.path_of("svlm"))
    subscribe = None
    if svlm.has("subscribe"):
        subscribe = frozenset(svlm.texts("subscribe", max_items=len(SUBSCRIPTIONS)))
        if not subscribe <= set(SUBSCRIPTIONS):
            raise svlm.error("subscribe", f"of {', '.join(SUBSCRIPTIONS)}", "name only these")
    settings = {name: value for name, value in svlm.value.items() if name not in ("subscribe", "server")}
    if session.has("instructions"):
        settings["query"] = session.text("instructions", max_chars=limits.max_question_chars)
    if session.has("max_output_tokens"):
        settings["max_output_tokens"] = _max_output_tokens(session)
    extension = session.object("openrealtime")
    if extension is not None:
        extension.integer("version", 1, 1)
        extension.texts("supports", max_items=64)
    session.close(*IGNORED_OF_SESSION)
    return SessionUpdate(settings=settings, subscribe=subscribe, openrealtime=extension is not None)


def _check_output(fields: Fields) -> None:
    """Refuse what OpenAI's API can make and this one cannot."""
    if set(fields.texts("output_modalities", max_items=2)) - {"text"}:
        raise fields.error("output_modalities", '["text"]', "replies are text")
    if fields.items("tools", max_items=1000):
        raise fields.error("tools", "none", "leave them out: the model calls no tools")


def _max_output_tokens(fields: Fields) -> int | None:
    """OpenAI's "inf" is null here: as many as the server allows."""
    if fields.value.get("max_output_tokens") == "inf":
        fields.take("max_output_tokens")
        return None
    return fields.integer("max_output_tokens", 1)


def _item_create(fields: Fields, limits: Limits) -> ItemCreate:
    fields.require("item")
    fields.text("previous_item_id")
    return _user_message(fields.object("item") or Fields(None, "item"), limits)


def _user_message(item: Fields, limits: Limits) -> ItemCreate:
    """A message of the user, as an item of the conversation or as input of one response."""
    item.require("type", "role", "content")
    item.choice("type", ("message",))
    item.choice("role", ("user",))
    texts, images, content = [], [], []
    for number, part in enumerate(item.items("content", max_items=MAX_CONTENT_PARTS)):
        part = Fields(part, f"{item.path_of('content')}[{number}]")
        part.require("type")
        echo: dict[str, Any] = {"type": part.choice("type", ("input_text", "input_image"))}
        if echo["type"] == "input_text":
            echo["text"] = check_question(part.take("text", ""), part.path_of("text"), limits)
            texts.append(echo["text"])
        else:
            images.append(_image(part, "image_url", limits))
            echo["detail"] = part.choice("detail", ("auto", "low", "high"), "auto")
        part.close("text", "image_url", "audio", "transcript", "detail")
        content.append(echo)
    item_id = item.text("id", max_chars=64)
    item.close("object", "status")
    return ItemCreate(item_id=item_id, texts=tuple(texts), images=tuple(images), content=tuple(content))


def _image(fields: Fields, name: str, limits: Limits) -> bytes:
    fields.require(name)
    value = fields.take(name)
    if not isinstance(value, str):
        raise fields.error(name, "base64 of an image", "put it into quotes")
    return decode_image(value, fields.path_of(name), limits)


def _frame_append(fields: Fields, limits: Limits) -> FrameAppend:
    image = _image(fields, "image", limits)
    return FrameAppend(image=image, timestamp=fields.number("timestamp", -MAX_STAMP, MAX_STAMP))


def _frame_commit(fields: Fields, limits: Limits) -> FrameCommit:
    query = check_question(fields.take("query"), "query", limits) if fields.value.get("query") else fields.text("query")
    return FrameCommit(query=query, is_final=fields.flag("final"))


def _openrealtime_frame(fields: Fields, limits: Limits) -> FrameAppend:
    fields.text("source")
    fields.number("timestamp_ms", 0, 1000 * MAX_STAMP)  # of a live camera: its frames count as they arrive
    return FrameAppend(image=_image(fields, "frame", limits))


def _openrealtime_source(fields: Fields, limits: Limits) -> FrameCommit:
    fields.text("source")
    state = fields.choice("state", ("active", "paused", "closed"), "active")
    for name in ("width", "height"):
        fields.integer(name, 0)
    return FrameCommit(is_final=state == "closed")


def _response_create(fields: Fields, limits: Limits) -> ResponseCreate:
    response = fields.object("response") or Fields({}, "response")
    _check_output(response)
    response.choice("conversation", ("auto",), "auto")
    texts: list[str] = []
    for number, item in enumerate(response.items("input", max_items=MAX_INPUT_ITEMS)):
        message = _user_message(Fields(item, f"{response.path_of('input')}[{number}]"), limits)
        if message.images:
            raise response.error("input", "text", "send images with conversation.item.create")
        texts += message.texts
    if instructions := response.take("instructions"):
        texts.append(check_question(instructions, response.path_of("instructions"), limits))
    metadata = None
    if (entries := response.object("metadata")) is not None:
        if len(entries.value) > MAX_METADATA or any(len(name) > MAX_METADATA_KEY for name in entries.value):
            raise response.error("metadata", f"{MAX_METADATA} keys of {MAX_METADATA_KEY} characters", "send less")
        metadata = {name: entries.text(name, max_chars=MAX_METADATA_VALUE) for name in entries.value}
        if not all(name.isprintable() for name in metadata):
            raise response.error("metadata", "keys of one line", "remove control characters")
    max_output_tokens = _max_output_tokens(response)
    response.close(*IGNORED_OF_RESPONSE)
    return ResponseCreate(texts=tuple(texts), max_output_tokens=max_output_tokens, metadata=metadata)


def _response_cancel(fields: Fields, limits: Limits) -> ResponseCancel:
    return ResponseCancel(response_id=fields.text("response_id", max_chars=128))


def read_source(source: Fields, limits: Limits) -> StreamSource:
    """What a stream is to watch.

    Raises:
        RequestError: an unknown kind, a value out of bounds.
    """
    kind = source.choice("type", SOURCES, "match")
    address = source.text("address", max_chars=limits.max_address_chars)
    seed, index = source.integer("seed", 0, MAX_SEED), source.integer("index", 0, MAX_SOURCE_INDEX)
    source.close()
    return StreamSource(kind=kind, seed=seed, index=index or 0, address=address)


def _stream_start(fields: Fields, limits: Limits) -> StreamStart:
    source = read_source(fields.object("source") or Fields({}, "source"), limits)
    settings = fields.object("svlm") or Fields({}, "svlm")
    return StreamStart(source=source, settings=settings.value)


def read_join(fields: Fields) -> StreamJoin:
    """Which stream to watch: of an event, or of the query of the connection's address.

    Raises:
        RequestError: no name, another form of a key, no number.
    """
    fields.require("stream")
    stream = fields.text("stream")
    if not STREAM_NAME.fullmatch(stream):
        raise fields.error("stream", "the name of a stream", "choose one of the list")
    after = fields.integer("after", -1, default=-1)
    assert after is not None
    return StreamJoin(stream=stream, after=after, key=_key(fields))


def _key(fields: Fields) -> str:
    key = fields.text("key")
    if not OWNER_KEY.fullmatch(key):  # without the value: it may be most of a key
        raise RequestError(fields.path_of("key"), "another form", "the key of svlm.stream.started", "send it as received")
    return key


READERS: dict[str, Callable[[Fields, Limits], ClientEvent]] = {
    "session.update": _session_update,
    "conversation.item.create": _item_create,
    "response.create": _response_create,
    "response.cancel": _response_cancel,
    "input_video_frame.append": _frame_append,
    "input_video_frame.commit": _frame_commit,
    "openrealtime.input_video_frame.append": _openrealtime_frame,
    "openrealtime.input_video_source.update": _openrealtime_source,
    "svlm.stream.start": _stream_start,
    "svlm.stream.join": lambda fields, limits: read_join(fields),
    "svlm.stream.leave": lambda fields, limits: StreamLeave(),
    "svlm.stream.stop": lambda fields, limits: StreamStop(key=_key(fields)),
}
