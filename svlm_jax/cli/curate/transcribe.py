"""Words with their times from videos: the first step of curation.

    svlm curate transcribe games/ --out words.jsonl                        # subtitles beside each video: a.mp4, a.en.vtt
    svlm curate transcribe games/ --out words.jsonl --asr faster-whisper   # speech recognition on this machine
    svlm curate transcribe games/ --out words.jsonl --asr http --asr-url http://localhost:8000/v1 --asr-model large-v3
    svlm curate transcribe games/ --out words.jsonl --asr words            # a.json beside each: what Whisper wrote
    svlm curate transcribe games/ --out words.jsonl --asr words --words live_whisperx.jsonl    # LiveCC's lines

A line a video: {"video", "duration", "language", "title", "source", "asr", "content": [[start, end, word], ...]}. Titles, from
which editors know teams and competition, are the names of the files unless --titles says others. Videos without words are set
aside. Run it again when it was killed, or when videos were added: what is done is not done again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svlm_jax.cli.curate.http_transcriber_flags import http_transcriber_flags, make_http_transcriber
from svlm_jax.cli.curate.step_flags import cache_folder, read_shard, run, step_flags
from svlm_jax.cli.flags import Parser, integer
from svlm_jax.curate.languages import is_language, language_code
from svlm_jax.curate.running.input_lines import InputLines
from svlm_jax.curate.running.step_files import step_files
from svlm_jax.curate.transcribing import subtitle_files, whisper, words_files
from svlm_jax.curate.transcribing.http_transcriber import HttpTranscriber
from svlm_jax.curate.transcribing.transcribe import Transcribe, Transcriber
from svlm_jax.curate.transcribing.videos import Video, find_videos, parser_of_records, read_titles, to_records, with_titles
from svlm_jax.errors import InputError
from svlm_jax.json_lines import BadLines
from svlm_jax.media.paths import masked

ENGINES = {
    "subtitles": "NAME.vtt or NAME.srt beside each video, also NAME.en.vtt",
    "words": "NAME.json beside each video as Whisper writes it, or the files of --words",
    "http": "any OpenAI-compatible server of /v1/audio/transcriptions",
    "faster-whisper": "on this machine (the extra asr)",
    "whisperx": "on this machine, with an aligner, where pip can install it beside; else --asr words reads what it wrote",
}


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("videos", nargs="+", type=Path, metavar="VIDEO", help="videos, and folders of them")
    step_flags(parser, has_input=False, waits=True)
    _flags(parser)
    http_transcriber_flags(parser)
    args = parser.parse_args()
    _check(args)
    videos = find_videos(args.videos, args.root)
    language = language_code(args.language)
    bad = BadLines(args.max_bad)
    videos = with_titles(videos, read_titles(args.titles, bad) if args.titles else {}, language)
    transcriber = _transcriber(args, videos, bad)
    lines = InputLines.of_records("videos", _records(videos, transcriber))
    print(f"{len(videos)} videos, words from {transcriber.name}", file=sys.stderr, flush=True)
    if isinstance(transcriber, HttpTranscriber):
        print(transcriber.estimate([video.path for video in videos], args.asr_price), file=sys.stderr, flush=True)
    done = run(args, Transcribe(transcriber), lines, waits=True, parse=parser_of_records(args.root))
    if guessed := (done.report or {}).get("changes", {}).get("encoding"):
        print(f"{guessed} files are neither UTF-8 nor UTF-16, and were read as Windows-1252: --encoding, if they are another")


def _flags(parser: Parser) -> None:
    group = parser.add_argument_group("videos")
    group.add_argument("--root", type=Path, metavar="DIR", help="folder that the names of videos are to be relative to")
    titles = 'JSON lines {"video", "title", "source", "language"}, or CSV with these columns'
    group.add_argument("--titles", type=Path, metavar="FILE", help=titles)
    group.add_argument("--language", metavar="CODE", help="spoken where --titles does not say, as en (default: found out)")
    engines = "; ".join(f"{name}: {text}" for name, text in ENGINES.items())
    group.add_argument("--asr", choices=ENGINES, help=f"{engines} (default: subtitles, where there are any)")
    group.add_argument("--encoding", metavar="NAME", help="of subtitles that are neither UTF-8 nor UTF-16, as cp1251")
    words = "with --asr words: LiveCC's lines, or a file a video"
    group.add_argument("--words", type=Path, nargs="+", metavar="FILE", help=words)
    model = f"that hears: of the server, or of the engine, or a folder with one (default: {whisper.MODEL}; a server's: none)"
    group.add_argument("--asr-model", metavar="NAME", help=model)
    group = parser.add_argument_group("speech recognition on this machine")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU where there is one")
    compute = "as int8 or float16 (default: that of the model)"
    group.add_argument("--compute", default="default", metavar="TYPE", help=compute)
    batch = "stretches of 30 s at a time; 1: each after the one before (default: %(default)s)"
    group.add_argument("--batch-size", type=integer(1, 1024), default=whisper.BATCH, metavar="N", help=batch)


def _check(args: argparse.Namespace) -> None:
    """What can be said before any file is looked at."""
    step_files(args.out, read_shard(args.shard))
    subtitle_files.check_encoding(args.encoding)
    if args.language and not is_language(args.language) and language_code(args.language) in (None, args.language):
        raise InputError("--language", args.language, "a code of a language, as en", "leave it out where it is unknown")
    flags = (
        ("--words", args.words, ("words",)),
        ("--encoding", args.encoding, (None, "subtitles")),
        ("--asr-model", args.asr_model, ("http", *whisper.INSTALL)),
        ("--asr-url", args.asr_url, ("http",)),
    )
    for flag, value, engines in flags:
        if value and args.asr not in engines:
            value = "files" if flag == "--words" else masked(value)
            got = f"{value}, with --asr {args.asr or 'left out'}"
            raise InputError(flag, got, f"--asr {' or '.join(filter(None, engines))} with it", "add it, or leave this out")


def _transcriber(args: argparse.Namespace, videos: Sequence[Video], bad: BadLines) -> Transcriber:
    if args.asr is None:
        if not any(subtitle_files.subtitle_files(video.path) for video in videos):
            expected = "subtitles beside the videos (.vtt, .srt), or an engine"
            raise InputError("--asr", "nothing, and no subtitles", expected, f"add --asr {', '.join([*ENGINES][1:])}")
        return subtitle_files.SubtitleTranscriber(args.encoding)
    if args.asr == "subtitles":
        return subtitle_files.SubtitleTranscriber(args.encoding)
    if args.asr == "words":
        return words_files.WordsTranscriber(words_files.read_words_files(args.words or (), bad))
    if args.asr == "http":
        return make_http_transcriber(args, cache_folder(args))
    settings = whisper.WhisperSettings(args.asr_model or whisper.MODEL, args.device, args.compute, args.batch_size)
    return whisper.WhisperTranscriber(args.asr, settings, cache_folder(args))


def _records(videos: Sequence[Video], transcriber: Transcriber) -> list[dict[str, Any]]:
    """The lines that stand for the videos: each with the digest of the words that lie beside it, where it has them already."""
    records = to_records(videos)
    for video, record in zip(videos, records, strict=True):
        if isinstance(transcriber, subtitle_files.SubtitleTranscriber | words_files.WordsTranscriber):
            record |= transcriber.digest(video.path, video.language)
    return records
