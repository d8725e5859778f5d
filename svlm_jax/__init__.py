"""StreamingVLM in JAX: `svlm_jax.from_pretrained(DIR_OR_HUB_ID)` gives a model, its tokenizer and its processor.

Importing this package imports no jax; the names below are imported when they are used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from svlm_jax.compile_cache import enable_compile_cache
    from svlm_jax.config import StreamConfig
    from svlm_jax.decode.sampling import Sampling
    from svlm_jax.errors import InputError
    from svlm_jax.media.push import PushSource
    from svlm_jax.media.sources import open_source
    from svlm_jax.pretrained import Pretrained, from_pretrained
    from svlm_jax.stream.events import Caption, Dropped, Ended, Event, Note, Refused, Started, TokenDelta
    from svlm_jax.stream.playback import Playback
    from svlm_jax.stream.runner import Runner
    from svlm_jax.stream.sequence import Chunk
    from svlm_jax.stream.session import Session
    from svlm_jax.stream.stream_settings import StreamSettings
    from svlm_jax.stream.watch import watch

_MODULES = {
    "compile_cache": ("enable_compile_cache",),
    "config": ("StreamConfig",),
    "decode.sampling": ("Sampling",),
    "errors": ("InputError",),
    "media.push": ("PushSource",),
    "media.sources": ("open_source",),
    "pretrained": ("Pretrained", "from_pretrained"),
    "stream.events": ("Caption", "Dropped", "Ended", "Event", "Note", "Refused", "Started", "TokenDelta"),
    "stream.playback": ("Playback",),
    "stream.runner": ("Runner",),
    "stream.sequence": ("Chunk",),
    "stream.session": ("Session",),
    "stream.stream_settings": ("StreamSettings",),
    "stream.watch": ("watch",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Caption",
    "Chunk",
    "Dropped",
    "Ended",
    "Event",
    "InputError",
    "Note",
    "Playback",
    "Pretrained",
    "PushSource",
    "Refused",
    "Runner",
    "Sampling",
    "Session",
    "Started",
    "StreamConfig",
    "StreamSettings",
    "TokenDelta",
    "enable_compile_cache",
    "from_pretrained",
    "open_source",
    "watch",
]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"svlm_jax.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
