"""The files that `svlm stream` writes: which may be written at all, and where captions go on when a stream is resumed.

Owns the checks before anything is opened or loaded. Does not know the model; what is in a caption file is `stream.captions`.
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from svlm_jax.errors import InputError, shortened
from svlm_jax.files import same_file
from svlm_jax.stream.captions import Subtitles

CAPTIONS = ("vtt", "srt", "jsonl")


def check_outputs(args: argparse.Namespace) -> None:
    """Refuse what would write over something else; before anything is opened.

    Raises:
        InputError: two names of one file, captions with the ending of another kind.
    """
    paths = {"source": Path(args.source)}
    for flag in ("vtt", "srt", "jsonl", "save_state", "resume"):
        if (path := getattr(args, flag)) is not None:
            paths[f"--{flag.replace('_', '-')}"] = path
    for (first, first_path), (second, path) in combinations(paths.items(), 2):
        if {first, second} != {"--save-state", "--resume"} and same_file(first_path, path):
            raise InputError(second, f"{shortened(path)}, the file of {first}", "a file of its own", "choose another name")
    for flag in CAPTIONS:
        path = getattr(args, flag)
        if path is not None and path.suffix.lower() in {f".{other}" for other in CAPTIONS} - {f".{flag}"}:
            raise InputError(f"--{flag}", shortened(path), f"a name that ends in .{flag}", "rename it, or use its own flag")


def open_captions(
    args: argparse.Namespace, marks: dict[str, Any], say: Callable[[str], None]
) -> Iterator[tuple[str, Subtitles]]:
    """(flag, open file) of each caption file; with --resume at the cue after which the state was saved.

    Args:
        marks: the `Subtitles.mark` of each file by its path, from the saved state.
        say: called with a line about a file that the state has and the disk has not.

    Raises:
        InputError: a file that cannot be written, or that is not what the state knows.
    """
    for flag in CAPTIONS:
        path = getattr(args, flag)
        if path is None:
            continue
        mark = next((mark for name, mark in marks.items() if same_file(path, Path(name))), None)
        exists = path.is_file() and path.stat().st_size > 0
        if args.resume and exists and mark is None:
            got, expected = f"{shortened(path)}, of which {shortened(args.resume)} knows nothing", "the file it was saved with"
            raise InputError(f"--{flag}", got, f"{expected}, or a new one", "give a new name: nothing is written over")
        if mark is not None and not exists:
            say(f"captions {shortened(path)}: not there any more; begun anew, without what was said before")
        position = {"keep": mark["size"], "digest": mark["sha256"]} if mark is not None and exists else {}
        captions = Subtitles(path, append=bool(args.resume), **position)
        if captions.rewritten and mark is not None:
            say(f"captions {shortened(path)}: cues from after the state was saved are written again ({captions.rewritten})")
        yield flag, captions
