"""What the server sends to clients of /v1/realtime: events of OpenAI's Realtime API for text, and others called svlm.*.

Owns the form of events that are about one client; those about a reply are made by `responses`. Knows no stream.
"""

import itertools
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from svlm_jax.errors import InputError
from svlm_jax.serve.json_fields import code_of

_numbers = itertools.count()
_process = secrets.token_hex(4)  # event ids of two servers behind one proxy differ


def new_event_id() -> str:
    return f"event_{_process}_{next(_numbers)}"


def encode(kind: str, /, **fields: Any) -> str:
    """An event as text."""
    return json.dumps({"type": kind, "event_id": new_event_id(), **fields})


def error_event(error: InputError, *, event_id: str = "") -> str:
    """Why an event of a client was refused. event_id: that the client gave it."""
    code = code_of(error)
    detail = {"type": "invalid_request_error", "code": code, "message": str(error)}
    detail |= {"param": None if code in ("refused", "invalid_event") else error.field, "event_id": event_id or None}
    return encode("error", error=detail)


def user_item(item_id: str, content: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A message of the user as an item of the conversation."""
    item = {"id": item_id, "object": "realtime.item", "type": "message", "role": "user", "status": "completed"}
    return {**item, "content": list(content)}


def assistant_item(item_id: str, status: str, text: str | None) -> dict[str, Any]:
    """A reply as an item of the conversation. text: None: it has none so far."""
    content = [] if text is None else [{"type": "output_text", "text": text}]
    item = {"id": item_id, "object": "realtime.item", "type": "message", "role": "assistant", "status": status}
    return {**item, "content": content}


def session_object(
    session_id: str, model: str, settings: Mapping[str, Any], subscribe: Sequence[str], server: Mapping[str, Any]
) -> dict[str, Any]:
    """The session as `session.created` and `session.updated` tell it.

    Args:
        settings: as of `settings_json`.
        server: what does not change: sources, limits, names.
    """
    return {
        "type": "realtime",
        "object": "realtime.session",
        "id": session_id,
        "model": model,
        "instructions": settings["query"],
        "output_modalities": ["text"],
        "max_output_tokens": settings["max_new_tokens"],
        "svlm": {**settings, "subscribe": list(subscribe), "server": dict(server)},
    }
