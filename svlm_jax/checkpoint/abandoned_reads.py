"""What Orbax leaves behind of a read that fails: its other reads, which go on without a loop to report to, or are destroyed
whenever Python collects them, each with a traceback and pages of tensorstore's messages. The error that was raised has said
why the read failed."""

import logging
import sys
import warnings
from typing import Any

_MARKS = ("orbax", "tensorstore_spec")  # in what asyncio logs of such a read: the file of its coroutine, or its error
# Coroutines of Orbax that were never begun.
_NEVER_AWAITED = r"coroutine '(\w*(Handler|Store|Layout|LoadPyTreeResponse|Bytes|Limiter|Plan)\.|_?\w*(deserialize|_read_)\w*')"
_is_silent = False


def silence_abandoned_reads() -> None:
    """Call it before Orbax reads: from then on nothing is printed in this process of the reads that a failed one leaves behind.
    Everything else is printed as before."""
    global _is_silent
    # Not only once: `warnings.catch_warnings` forgets it.
    warnings.filterwarnings("ignore", _NEVER_AWAITED, RuntimeWarning)
    if _is_silent:
        return
    _is_silent = True
    logging.getLogger("asyncio").addFilter(lambda record: not any(mark in record.getMessage() for mark in _MARKS))
    hook = sys.unraisablehook

    def unraisable(event: Any) -> None:
        if not _is_abandoned(event):
            hook(event)

    sys.unraisablehook = unraisable


def _is_abandoned(event: Any) -> bool:
    """Whether it is a coroutine of Orbax that is destroyed, or a call of tensorstore's threads into the loop of one."""
    if (code := getattr(event.object, "cr_code", None)) is not None:
        return "orbax" in code.co_filename
    return event.object is None and str(event.exc_value) == "Event loop is closed"
