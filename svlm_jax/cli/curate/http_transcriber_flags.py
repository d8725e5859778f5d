"""Flags of a server that transcribes, for `svlm curate transcribe --asr http`, and what they make."""

import argparse
from pathlib import Path

from svlm_jax.cli.flags import Parser, integer, number
from svlm_jax.curate.transcribing.audio import ENCODINGS
from svlm_jax.curate.transcribing.http_transcriber import CONCURRENCY, MAX_MEGABYTES, MAX_SECONDS, HttpTranscriber
from svlm_jax.errors import InputError
from svlm_jax.remote.connection import KEY_ENV
from svlm_jax.remote.transcription_client import TIMEOUT, TranscriptionClient

FLAG = "--asr"


def http_transcriber_flags(parser: Parser) -> None:
    """What `make_http_transcriber` reads, but for --asr-model, which other engines read too."""
    group = parser.add_argument_group("speech recognition by a server (--asr http)")
    group.add_argument("--asr-url", metavar="URL", help="with OpenAI's /v1/audio/transcriptions: http://HOST:PORT/v1")
    key = "environment variable with the key (default: %(default)s)"
    group.add_argument("--asr-key-env", default=KEY_ENV, metavar="NAME", help=key)
    group.add_argument("--asr-prompt", default="", metavar="TEXT", help="words that the model is told before: names of players")
    seconds = "of sound in a request, at most (default: %(default)g)"
    group.add_argument("--asr-seconds", type=number(1), default=MAX_SECONDS, metavar="S", help=seconds)
    megabytes = "of a request, at most: what the server takes (default: %(default)g)"
    group.add_argument("--asr-megabytes", type=number(0.1), default=MAX_MEGABYTES, metavar="MB", help=megabytes)
    encoding = "of the sound that is sent (default: %(default)s, half the size of wav)"
    group.add_argument("--asr-encoding", choices=ENCODINGS, default=ENCODINGS[0], help=encoding)
    concurrency = "requests at a time, of all videos together (default: %(default)s)"
    group.add_argument("--asr-concurrency", type=integer(1, 256), default=CONCURRENCY, metavar="N", help=concurrency)
    timeout = "seconds of one try (default: %(default)g)"
    group.add_argument("--asr-timeout", type=number(1), default=TIMEOUT, metavar="SECONDS", help=timeout)
    track = "track of sound, from 1 (default: one in --language, then the default track, then the first)"
    group.add_argument("--asr-track", type=integer(1), metavar="N", help=track)
    group.add_argument("--asr-price", type=number(0), metavar="PRICE", help="of a minute of sound, for the estimate")


def make_http_transcriber(args: argparse.Namespace, cache: Path) -> HttpTranscriber:
    """The transcriber of --asr-url; nothing is asked or written yet.

    Raises:
        InputError: no URL or model, a key that cannot be used, chunks that are too small, or no package openai.
    """
    for flag, value in ((f"{FLAG}-url", args.asr_url), (f"{FLAG}-model", args.asr_model)):
        if not value:
            raise InputError(flag, "nothing", "a server: --asr-url URL --asr-model NAME", "name one")
    options = {"key_env": args.asr_key_env, "timeout": args.asr_timeout, "flag": FLAG}
    return HttpTranscriber(
        TranscriptionClient(args.asr_url, args.asr_model, cache=cache, **options),
        max_seconds=args.asr_seconds,
        max_megabytes=args.asr_megabytes,
        encoding=args.asr_encoding,
        prompt=args.asr_prompt,
        track=args.asr_track,
        concurrency=args.asr_concurrency,
    )
