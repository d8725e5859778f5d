"""Cut long annotated videos into training windows, and decode their frames ahead of training.

    svlm windows match.jsonl --out train.jsonl                 # 24 s every 12 s; also writes train_seeks.jsonl
    svlm windows match.jsonl --out train.jsonl --stride 24     # no overlap
    svlm windows match.jsonl --out train.jsonl --words-per-second 2    # only where enough is said: 48 words in 24 s
    svlm windows match.jsonl --out goals.jsonl --saying 'goal' # only those in whose words it is found
    svlm windows match.jsonl --out far.jsonl --saying 'goal' --apart 40    # and not in the 40 s before that
    svlm windows match.jsonl --out talk.jsonl --words-only     # told and not shown, to learn language from
    svlm windows match.jsonl --tfds train_2fps --root videos   # frames too, as a tensorflow-datasets directory

Bad records are told and left out; if there are more than --max-bad of them, the exit code is 1 and nothing is written under the
name that was being written.
"""

import argparse
import math
import re
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path

from svlm_jax.cli.flags import Parser, integer, number
from svlm_jax.cli.progress import Progress
from svlm_jax.data.annotation import Annotation, parse_line
from svlm_jax.data.frames import check_fps
from svlm_jax.data.records import Records, seeks_path, write
from svlm_jax.data.windows import check_windows, says_enough, slice_windows, to_record
from svlm_jax.errors import InputError
from svlm_jax.families import family_named
from svlm_jax.files import local_path

TOO_MANY_BAD = 1  # exit code
SHORTEST = 2.0  # seconds of a last window that is kept


class BadRecords:
    """Tells bad records and counts them."""

    def __init__(self, max_count: int) -> None:
        self.max_count, self.count = max_count, 0

    @property
    def too_many(self) -> bool:
        return self.count > self.max_count

    def __call__(self, name: str, reason: object) -> None:
        self.count += 1
        print(f"left out {name}: {reason}", file=sys.stderr)


class Windows:
    """The windows of long records, one after the other, and what they amount to. Seconds in two windows count twice."""

    def __init__(self, records: Records, args: argparse.Namespace, bad_records: BadRecords) -> None:
        self.records, self.args, self.bad_records = records, args, bad_records
        self.size = {"window": args.window, "stride": args.stride, "min_seconds": min(SHORTEST, args.window)}
        self.size |= {"as_streamed": args.as_streamed, "visible_seconds": args.visible_seconds}
        self.saying = _expression(args.saying)
        self.seconds = self.spoken = self.matches = self.sparse = 0

    def __iter__(self) -> Iterator[list]:
        """Raises:
        InputError: too many bad records, when all have been told.
        """
        for name, line in self.records:
            try:
                record = parse_line(line, "record")
                record = replace(record, video=None) if self.args.words_only else record
                windows = slice_windows(record, **self.size, source="record")
            except InputError as error:
                self.bad_records(name, error)
                continue
            late_mentions = self._late_mentions(record) if self.args.apart else []
            for annotation in windows:
                if not says_enough(annotation, self.args.words_per_second):
                    self.sparse += 1
                    continue
                if not self.saying.search(" ".join(word.text for word in annotation.words)):
                    continue
                if self.args.apart and not any(annotation.start < time <= annotation.end for time in late_mentions):
                    continue
                self.matches += 1
                if self.matches % self.args.every:
                    continue
                self.seconds += annotation.seconds
                self.spoken += len({math.ceil(word.end) for word in annotation.words})
                yield to_record(annotation)
        if self.bad_records.too_many:
            expected = f"at most {self.bad_records.max_count}"
            raise InputError("--max-bad", f"{self.bad_records.count} bad records", expected, "mend them or allow more")

    def _late_mentions(self, record: Annotation) -> list[float]:
        """When --saying is said (the end of its first word) --apart or more seconds after the time before."""
        starts = list(accumulate((len(word.text) + 1 for word in record.words), initial=0))
        text = " ".join(word.text for word in record.words)
        times = (
            [record.words[bisect_right(starts, match.start()) - 1].end for match in self.saying.finditer(text)] if text else []
        )
        return [time for before, time in pairwise(times) if time - before >= self.args.apart]


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("sources", nargs="+", type=Path, metavar="LONG.jsonl", help="annotations, a video a line")
    parser.add_argument("--out", type=Path, metavar="TRAIN.jsonl", help="windows to write, and TRAIN_seeks.jsonl beside it")
    parser.add_argument("--tfds", type=Path, metavar="DIR", help="directory to make, of windows with their frames")
    parser.add_argument("--window", type=integer(1), default=24, metavar="S", help="seconds of a window (default 24)")
    parser.add_argument("--stride", type=integer(1), default=12, metavar="S", help="seconds from start to start (default 12)")
    parser.add_argument(
        "--words-per-second",
        type=number(0),
        default=0,
        metavar="N",
        help="only windows where so many are said (default: all)",
    )
    parser.add_argument("--saying", default="", metavar="REGEX", help="only windows in whose words this is found")
    parser.add_argument(
        "--apart", type=number(0), default=0, metavar="S", help="only those in which it is, S or more seconds after the last"
    )
    parser.add_argument("--every", type=integer(1), default=1, metavar="N", help="only each N-th of them (default 1: all)")
    parser.add_argument(
        "--as-streamed", action="store_true", help="previous text as streams have it: a line a second, with answers"
    )
    parser.add_argument(
        "--visible-seconds", type=integer(0), default=0, metavar="S", help="frames for their last S seconds only (default: all)"
    )
    parser.add_argument("--words-only", action="store_true", help="turns without frames: the video is not shown")
    parser.add_argument("--max-bad", type=integer(0), default=0, metavar="N", help="bad records that are left out (default 0)")
    parser.add_argument("--fps", type=number(1, 1000), default=2.0, help="frames a second with --tfds (default 2)")
    parser.add_argument("--family", default="qwen2.5-vl", metavar="NAME", help="to train, with --tfds (default qwen2.5-vl)")
    parser.add_argument("--root", type=Path, help="where relative paths of videos begin, with --tfds (default: here)")
    args = parser.parse_args()
    bad_records = BadRecords(args.max_bad)
    try:
        _check(args)
        with tempfile.TemporaryDirectory() as scratch:
            out = args.out or Path(scratch) / f"{args.tfds.name}.jsonl"
            _cut(args, out, bad_records)
            if args.tfds:
                _prepare(args, out, bad_records)
    except InputError as error:
        if not bad_records.too_many:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(TOO_MANY_BAD)


def _check(args: argparse.Namespace) -> None:
    """All that can be said before hours of work."""
    check_windows(args.window, args.stride, min(SHORTEST, args.window), args.visible_seconds)
    check_fps(args.fps)
    _expression(args.saying)
    if args.apart and not args.saying:
        raise InputError("--apart", f"{args.apart:g}", "--saying with it", "say what is said so far apart")
    family_named(args.family)
    if not args.out and not args.tfds:
        raise InputError("--out and --tfds", "neither", "one of them at least", "say what to make")
    if args.words_only and args.visible_seconds:
        raise InputError("--words-only", "with --visible-seconds", "one of the two", "no frames are visible")
    if args.words_only and args.tfds:
        raise InputError("--words-only", "with --tfds", "one of the two", "there are no frames to decode")
    for flag, path in (("--out", args.out), ("--tfds", args.tfds)):
        if path:
            local_path(path, flag)
    for path in filter(None, (args.out, args.out and seeks_path(args.out), args.tfds)):
        if path.exists():
            raise InputError(str(path), "something that exists already", "a new name", "remove it or choose another")


def _expression(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise InputError("--saying", repr(text), f"a regular expression ({error})", "escape what is meant literally") from None


def _cut(args: argparse.Namespace, out: Path, bad_records: BadRecords) -> None:
    records = Records(args.sources)
    windows = Windows(records, args, bad_records)
    count = write(out, windows)
    share, target = windows.spoken / windows.seconds, f" -> {args.out}" if args.out else ""
    sparse = f" ({windows.sparse} left out: fewer than {args.words_per_second:g} words/s)" if windows.sparse else ""
    print(f"{len(records)} records, {count} windows{sparse}, {windows.seconds} s, words in {share:.0%} of the seconds{target}")


def _prepare(args: argparse.Namespace, out: Path, bad_records: BadRecords) -> None:
    from svlm_jax.data.tfds import prepare
    from svlm_jax.media.pixels import stream_frame

    published = next(iter(family_named(args.family).presets.values()))
    counts = prepare(
        Records([out]),
        args.tfds,
        stream_frame(published.vision),
        fps=args.fps,
        root=args.root,
        max_bad=args.max_bad - bad_records.count,
        on_bad=bad_records,
        progress=Progress("decode", "windows"),
    )
    size = sum(path.stat().st_size for path in args.tfds.iterdir())
    print(f"{counts.windows} windows, {counts.frames} frames, {size / 1e9:.2f} GB -> {args.tfds}")
