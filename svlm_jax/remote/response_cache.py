"""Answers of servers on the disk: each request is paid for once, over all runs and processes that share a folder.

The name of a file is the SHA-256 of the whole request: model, messages (pictures included) and parameters, in one canonical
form of JSON. The address of the server is no part of it, nor the key: a model behind another port or proxy gives the same
answers, and a folder can be handed on with the results. Who serves two models under one name takes two folders. Host side,
never jax.
"""

import hashlib
import json
import os
from pathlib import Path
from threading import get_ident
from typing import Any

from svlm_jax.errors import InputError
from svlm_jax.files import PARTIAL, local_path, report_write_errors


def canonical(request: dict[str, Any]) -> bytes:
    """The one form of a request that is hashed and sent: keys sorted, no blanks, half characters replaced."""
    text = json.dumps(request, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return text.encode("utf-8", "replace")


class ResponseCache:
    """A folder of answers; safe for threads and processes, of which the last one that answers the same request counts."""

    def __init__(self, folder: str | Path) -> None:
        """The folder is made with its first entry.

        Raises:
            InputError: a file is in the way.
        """
        self.folder = local_path(folder, "--cache")
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError("--cache", "a file", "a folder", "choose another")

    def path(self, request: bytes) -> Path:
        name = hashlib.sha256(request).hexdigest()
        return self.folder / name[:2] / f"{name}.json"

    def read(self, request: bytes) -> dict[str, Any] | None:
        """The entry of `write`: {"sent": the parameters, "response": the raw body}. None: not there, or damaged, which is the
        same: it is asked for again."""
        try:
            entry = json.loads(self.path(request).read_bytes())
            return entry if isinstance(entry["sent"], dict) and isinstance(entry["response"], str) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def write(self, request: bytes, parameters: dict[str, Any], response: str) -> None:
        """Under its final name there is the old entry or the whole new one. Pictures are kept as their hashes."""
        path = self.path(request)
        entry = {"request": _without_pictures(json.loads(request)), "sent": parameters, "response": response}
        # A name of its own for each thread and process: two may write the same entry at the same time.
        draft = path.with_name(f"{path.name}.{os.getpid()}.{get_ident()}{PARTIAL}")
        with report_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                draft.write_text(json.dumps(entry), encoding="ascii")  # escaped: a body may hold half characters
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)


def _without_pictures(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_pictures(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_pictures(item) for item in value]
    if isinstance(value, str) and value.startswith("data:"):
        return f"sha256:{hashlib.sha256(value.encode()).hexdigest()}"
    return value
