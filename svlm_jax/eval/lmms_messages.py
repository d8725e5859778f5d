"""Messages of lmms-eval to chat turns: texts, images and videos in their order.

A message is {"role": "system" | "user" | "assistant", "content": [PART, ...]}. A part is one of
    {"type": "text", "text": TEXT}
    {"type": "image", "url": a path, a PIL image or an array}
    {"type": "video", "url": a path, a list of frames, or an object with `path` (or `url`, `video`)}
where `video_start` and `video_end`, or `start_time` and `end_time`, may stand in that object or beside it.
Source: lmms_eval/protocol.py of 0.7.3. Units: seconds of the video.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from svlm_jax.errors import InputError
from svlm_jax.eval.frames import end_within, length, prefix
from svlm_jax.eval.lmms_settings import ModelArgs
from svlm_jax.families.chat import Turn, plain
from svlm_jax.inputs import Clip
from svlm_jax.media.processor import Processor

ROLES = ("system", "user", "assistant")


def chat_turns(messages: Any, processor: Processor, args: ModelArgs) -> list[Turn]:
    """The turns of a conversation that the model is to continue.

    Raises:
        InputError: messages of another form, a part that the model cannot take (sound), a file that cannot be read.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InputError("messages", f"{messages!r:.60}", "a list of messages", "mend doc_to_messages of the task")
    turns = []
    for message in messages:
        role, content = _field(message, "role"), _field(message, "content")
        if role not in ROLES:
            raise InputError("role of a message", f"{role!r:.60}", f"one of {', '.join(ROLES)}", "mend the task")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        turns.append(Turn(role, tuple(_part(part, processor, args) for part in parts)))
    if args.system_prompt and turns[0].role != "system":
        turns.insert(0, Turn("system", (args.system_prompt,)))
    return turns


def _part(part: Any, processor: Processor, args: ModelArgs) -> str | Clip:
    kind = _field(part, "type")
    if kind == "text":
        return plain(str(_field(part, "text")), "text of a message")
    if kind == "image":
        return processor.image(_field(part, "url"))
    if kind == "video":
        return _video(part, processor, args)
    raise InputError("part of a message", f"type {kind!r:.60}", "text, image or video", "choose a task without it")


def _video(part: Any, processor: Processor, args: ModelArgs) -> Clip:
    source = _field(part, "url")
    video_fields = source if isinstance(source, Mapping) else {}
    if video_fields:
        source = next((video_fields[key] for key in ("path", "url", "video") if video_fields.get(key) is not None), None)
    if isinstance(source, list | tuple) and len(source) <= args.max_frames:
        return processor.video(source, fps=args.fps)
    if not isinstance(source, str | Path):
        expected = f"a path, or a list of at most {args.max_frames} frames"
        raise InputError("url of a video", f"{source!r:.60}", expected, "mend the task, or raise max_frames")
    start = _seconds("video_start", video_fields, part) or _seconds("start_time", video_fields, part) or 0.0
    end = _seconds("video_end", video_fields, part) or _seconds("end_time", video_fields, part)
    end = length(source) if end is None else end_within(source, end)
    if args.mode == "recent":
        start = max(start, end - args.max_frames / args.fps)
    frames = prefix(source, end, max_frames=args.max_frames, fps=args.fps, start=start)
    return processor.video(frames.pixels, fps=frames.fps, start=frames.start)


def _seconds(key: str, *mappings: Mapping[str, Any]) -> float | None:
    value = next((mapping[key] for mapping in mappings if mapping.get(key) is not None), None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise InputError(f"{key} of a video", f"{value!r:.60}", "seconds, 0 or more", "mend the task")
    return float(value)


def _field(part: Any, key: str) -> Any:
    if not isinstance(part, Mapping) or part.get(key) is None:
        raise InputError("message", f"{part!r:.60}", f"an object with {key}", "mend doc_to_messages of the task")
    return part[key]
