"""A run that asks a model for one record an item, is killed, and goes on: nothing is asked twice, nothing is lost, and the file
at the end is the same. Host side, never jax.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from svlm_jax.errors import InputError
from svlm_jax.json_lines import Appender, BadLines, write

Record = dict[str, Any]


def collect(
    target: Path,
    keys: Sequence[str],
    key_of: Callable[[Record], str],
    run: Callable[[Mapping[str, Record]], Iterator[tuple[str, Record | InputError]]],
    bad: BadLines,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write one record a key to `target`, in the order of `keys`. Until all are there it does not exist, and
    `TARGET.partial.jsonl` grows beside it; where it exists, all is done.

    Args:
        keys: of all items; an item that was left out before is not among them.
        key_of: the key of a record.
        run: given the records of the keys that are done, (key, record) of the others in any order, or the error of an item that
            failed.
        bad: how many may fail. The others are kept all the same, and the next run tries the failed ones again.
        progress: called with (items done, items in all).

    Returns:
        The file with the records: the partial one where `run` ended before all items had come, because it was stopped.

    Raises:
        InputError: more items failed than may; at the end, when all others are done.
    """
    if target.is_file():
        return target
    partial = target.with_suffix(".partial.jsonl")
    errors: list[InputError] = []
    with Appender(partial) as file:
        item_keys = frozenset(keys)
        records = {key: record for record in file.existing() if (key := key_of(record)) in item_keys}
        if len(records) < len(keys):
            for key, outcome in run(dict(records)):
                if isinstance(outcome, InputError):
                    errors.append(outcome)
                    continue
                records[key] = outcome
                file.add(outcome)
                if progress:
                    progress(len(records), len(keys))
    for error in errors:
        bad.add(error)
    if len(records) + len(errors) < len(keys):
        return partial
    write(target, (records[key] for key in keys if key in records))
    partial.unlink(missing_ok=True)
    return target
