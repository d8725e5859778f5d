"""The videos that a user names, as files or folders, and what is known of each before anything is heard.

Owns which files of a folder are videos, what each is called in transcripts, and its title and source. Does not know words. PyAV
inside the functions that need it. Host side, never jax. Units: seconds, bytes.
"""

import csv
import hashlib
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from svlm_jax.curate.languages import language_code
from svlm_jax.curate.outcome import SetAside
from svlm_jax.errors import InputError, shortened
from svlm_jax.files import local_path, refuse_other_kinds_of_file
from svlm_jax.json_lines import BadLines, read
from svlm_jax.media.container import is_scannable, open_file, scan, stream_end, video_streams
from svlm_jax.media.mp4 import lacks_index
from svlm_jax.media.paths import existing_path

SUFFIXES = (
    *(".mp4", ".mkv", ".webm", ".mov", ".ts", ".avi", ".flv", ".m2ts", ".m2v", ".m4v", ".mpeg", ".mpg", ".mts", ".mxf"),
    *(".3gp", ".asf", ".divx", ".f4v", ".ogm", ".ogv", ".vob", ".wmv"),
)
ENDS_READ = 1 << 16  # bytes at each end of a file, by which it is known again
PROBES = 8  # files that are opened at a time
_TITLE_KEYS = ("title", "source", "language")
_EXPECTED = 'titles: {"video": NAME, "title": ..., "source": ..., "language": ...} a line, or a CSV file with these columns'


@dataclass(frozen=True)
class Video:
    """A video to transcribe.

    Attributes:
        name: as transcripts and training call it: relative to --root, or as the user named it.
        path: where it is.
        title: what an editor may know about it: from a file of titles, else from its name.
        source: by which reports group: from a file of titles, else the folder that it is in.
        language: a code, where the user knows it.
    """

    name: str
    path: Path
    title: str = ""
    source: str = ""
    language: str | None = None


def find_videos(names: Iterable[str | Path], root: Path | None = None) -> list[Video]:
    """The videos that are named, and those in folders that are named and in folders within them, in the order of their names;
    each once. Hidden files and folders are passed over, as are files of other kinds; a file that is named is taken whatever its
    kind.

    Args:
        root: folder that names are relative to.

    Raises:
        InputError: no such file, a folder without videos, a video that is not below `root`.
    """
    videos: dict[str, Video] = {}
    for name in names:
        path = existing_path(name)
        if path is None:
            local_path(name, "VIDEOS")
            raise InputError(
                f"video {shortened(name)}", "no such file or folder", "videos, or folders of them", "check the path"
            )
        paths = sorted(_videos_in(path), key=lambda each: each.parts) if path.is_dir() else [path]
        if not paths:
            expected = f"videos in it ({', '.join(sorted(SUFFIXES)[:6])} ...)"
            raise InputError(
                f"folder {shortened(name)}", "no video", expected, "name the files themselves if they end otherwise"
            )
        for each in paths:
            videos.setdefault(os.path.realpath(each), Video(_name(each, root), each, _title(each), _source(each)))
    return list(videos.values())


def _videos_in(folder: Path) -> Iterator[Path]:
    visited: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:  # a link to a folder that it is in
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        is_video = (not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES for name in files)
        yield from (Path(parent, name) for name, good in zip(files, is_video, strict=True) if good)


def _name(path: Path, root: Path | None) -> str:
    if root is None:
        return str(path)
    try:
        return path.absolute().relative_to(root.absolute()).as_posix()
    except ValueError:
        pass
    try:  # one of the two may go through a link
        return path.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        raise InputError("--root", shortened(root), f"a folder that {shortened(path, 80)} is below", "name another") from None


def _title(path: Path) -> str:
    """The name of the file, without the eleven letters that downloads of YouTube put behind it."""
    return " ".join(re.sub(r"\s*\[[\w-]{11}\]$", "", path.stem).replace("_", " ").split())


def _source(path: Path) -> str:
    return path.absolute().parent.name


def read_titles(path: Path, bad: BadLines) -> dict[str, dict[str, str]]:
    """What a file says of videos, by their names: JSON lines, or CSV (.csv, .tsv) with a line of column names.

    Raises:
        InputError: no such file, or a line without a video.
    """

    def parse(record: Mapping[str, Any], source: str) -> tuple[str, dict[str, str]]:
        texts = {key: record.get(key) or "" for key in ("video", *_TITLE_KEYS)}
        for key, text in texts.items():
            if not isinstance(text, str) or (key == "video" and not text.strip()):
                raise InputError(f"{source} {key}", f"{text!r:.40}", "a text", "mend the line, or leave it out")
        return texts.pop("video").strip(), {key: " ".join(text.split()) for key, text in texts.items() if text.strip()}

    if path.suffix.lower() not in (".csv", ".tsv"):
        return dict(read(path, _EXPECTED, parse, bad))
    if not path.is_file():
        raise InputError(shortened(path), "no such file", _EXPECTED, "check the path")
    refuse_other_kinds_of_file(path, _EXPECTED)
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        try:
            if "video" not in (rows.fieldnames or ()):
                got = f"the columns {', '.join(map(str, rows.fieldnames or ()))}"
                expected = "a column video, and title, source, language"
                raise InputError(shortened(path), got, expected, "name the columns in line 1")
            return dict(_good_rows(rows, parse, path.name, bad))
        except csv.Error as error:  # a field of 100 kB, as where a quote is never closed
            raise InputError(f"{path.name}:{rows.reader.line_num}", str(error), _EXPECTED, "check its quotes") from None


def _good_rows(
    rows: csv.DictReader, parse: Callable[[Mapping[str, Any], str], tuple[str, dict[str, str]]], name: str, bad: BadLines
) -> Iterator[tuple[str, dict[str, str]]]:
    for row in rows:
        try:
            yield parse(row, f"{name}:{rows.line_num}")
        except InputError as error:
            bad.add(error)


def with_titles(videos: list[Video], titles: Mapping[str, Mapping[str, str]], language: str | None = None) -> list[Video]:
    """Videos with what a file says of them: by their names, paths, names of files, or these without their ends, whichever is
    found first; and with the language that the user names for all others. Entries without a video are told."""
    counts: dict[str, int] = {}
    for video in videos:
        for key in _short_names(video):
            counts[key] = counts.get(key, 0) + 1
    used_names, result = set(), []
    for video in videos:
        keys = [video.name, str(video.path), *(key for key in _short_names(video) if counts[key] == 1)]
        key = next((key for key in keys if key in titles), None)
        entry = titles[key] if key is not None else {}
        used_names.add(key)
        code = language_code(entry.get("language")) or language
        result.append(Video(video.name, video.path, entry.get("title", video.title), entry.get("source", video.source), code))
    if unused := [name for name in titles if name not in used_names]:
        names = f"{shortened(unused[0], 60)!r}{' and others' if len(unused) > 1 else ''}"
        warnings.warn(f"{len(unused)} of {len(titles)} titles are of no video that is named here: {names}", stacklevel=2)
    return result


def _short_names(video: Video) -> tuple[str, str]:
    return video.path.name, video.path.stem


def to_records(videos: Iterable[Video]) -> list[dict[str, Any]]:
    """The lines that stand for videos as the input of a step, so that one is done again where its file, its title or its
    language is another one now."""
    with ThreadPoolExecutor(PROBES) as executor:
        return list(executor.map(_to_record, videos))


def _to_record(video: Video) -> dict[str, Any]:
    name = video.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    record: dict[str, Any] = {"video": name, "title": video.title.encode("utf-8", "replace").decode()}
    record |= {"source": video.source.encode("utf-8", "replace").decode(), "language": video.language}
    try:
        return record | {"duration": _declared_duration(video.path), **fingerprint(video.path)}
    except (SetAside, OSError):  # the step says why
        return record | {"size": 0}


def fingerprint(path: Path) -> dict[str, Any]:
    """By which a file is known again without reading all of it: its size, and the SHA-256 of its two ends."""
    size, ends = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        ends.update(file.read(ENDS_READ))
        file.seek(max(size - ENDS_READ, 0))
        ends.update(file.read(ENDS_READ))
    return {"size": size, "ends_sha256": ends.hexdigest()}


def from_record(record: Mapping[str, Any], source: str, root: Path | None = None) -> Video:
    """The video that a line of `to_records` stands for. source: what errors call it."""
    name = record["video"]
    return Video(name, (root or Path()) / name, record["title"], record["source"], record["language"])


def parser_of_records(root: Path | None) -> "partial[Video]":
    """`from_record` for videos below a root."""
    return partial(from_record, root=root)


def video_duration(path: Path) -> float | None:
    """Seconds of a video, or of a file of sound; None: its header says none. Of a transport stream, whose header may be wrong,
    all packets are looked through.

    Raises:
        SetAside: a file that cannot be read.
    """
    if (duration := _declared_duration(path)) is not None:
        with open_file(path) as container:
            if not is_scannable(container) or not container.streams.video:
                return duration
    try:
        return scan(path)[0] or duration
    except InputError:  # sound alone
        return duration


def _declared_duration(path: Path) -> float | None:
    from av.error import FFmpegError

    try:
        with open_file(path) as container:
            if not container.streams.video and not container.streams.audio:
                raise SetAside("neither picture nor sound in it")
            end = None
            if container.streams.video:
                try:
                    stream, *_ = video_streams(container, str(path))
                    end = stream_end(container, stream)
                except InputError:  # the cover of a song
                    pass
            return end or (container.duration / 1e6 if container.duration else None)
    except (FFmpegError, OSError) as error:
        broken = f"a file that cannot be read ({type(error).__name__})"
        raise SetAside("an MP4 without its index" if path.is_file() and lacks_index(path) else broken) from None
