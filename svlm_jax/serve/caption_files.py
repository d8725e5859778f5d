"""The captions of a stream as a WebVTT file, written in a thread: six hours of them take longer than the event loop may stand
still.

Owns that thread, and that a file is written at most once per caption. Units: seconds.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from svlm_jax.serve.broadcast import Broadcast, HistoryEntry
from svlm_jax.stream.captions import OPENINGS, cue


class CaptionFiles:
    """history_seconds: of captions that a stream keeps."""

    def __init__(self, history_seconds: float) -> None:
        self.history_seconds = history_seconds
        self.pool = ThreadPoolExecutor(1, "vtt")

    async def vtt(self, broadcast: Broadcast) -> str:
        """The captions that are kept; a note at the beginning says if earlier ones are missing."""
        if broadcast.vtt is None or broadcast.vtt[0] != broadcast.last_number:
            history = list(broadcast.history)  # a copy: the event loop goes on adding to it
            await asyncio.get_running_loop().run_in_executor(self.pool, self._write, broadcast, history)
        assert broadcast.vtt is not None
        return broadcast.vtt[1]

    def _write(self, broadcast: Broadcast, history: Sequence[HistoryEntry]) -> None:
        """Requests that came meanwhile find the file written by the first."""
        last_number = history[-1].number if history else -1
        if broadcast.vtt is not None and broadcast.vtt[0] >= last_number:
            return
        parts = [OPENINGS[".vtt"].decode()]
        if history and history[0].number:
            hours = f"{self.history_seconds / 3600:g} h"
            parts.append(f"NOTE cut: the last {hours} are kept; captions before {history[0].start:.1f} s are missing\n\n")
        parts += [cue(".vtt", 0, entry.start, entry.end, entry.text, {"question": entry.question}) for entry in history]
        broadcast.vtt = last_number, "".join(parts)
