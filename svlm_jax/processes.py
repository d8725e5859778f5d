"""Processes that others start: they end with the one that started them, however that ends. Host side, never jax."""

import multiprocessing
import os
from multiprocessing.connection import wait
from threading import Thread


def end_with_parent() -> None:
    """Call it in a process that multiprocessing has started: from now on it ends at once when its parent is gone, killed or
    not. Else it would work on what nobody waits for."""
    if (parent := multiprocessing.parent_process()) is not None:
        Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
