"""Watch a video and comment on it as it plays.

svlm stream match.mp4 --model Qwen/Qwen2.5-VL-3B-Instruct --query "Commentate on this match" --vtt match.vtt
svlm stream rtsp://camera/1 --model DIR --save-state match.state --jsonl match.jsonl
svlm stream 0 --model DIR --pace                       # the first webcam; type a line to ask a question

SOURCE is a video file, a folder of frames, the number of a webcam, a URL, or match:SEED, a generated game without end. Without
--pace a file is watched as fast as possible; with it, or live, chunks that wait for longer than --max-delay are dropped, and
every one is told. Words go to stdout, the rest to stderr.
"""

import argparse
import json
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from svlm_jax.cli.flags import MAX_SEED, Parser, integer, number
from svlm_jax.cli.model_flags import check_source, load, model_flags
from svlm_jax.cli.outputs import check_outputs, open_captions
from svlm_jax.cli.progress import Progress, compiling
from svlm_jax.cli.screen import Questions, Screen, Stopping, clock, stdin_has_input
from svlm_jax.cli.speaking_flags import alert_of, given_speaking, pacing_of, speaking_flags
from svlm_jax.cli.stream_flags import (
    frame_flags,
    preset_flag,
    reconnect_flag,
    reconnect_policy,
    resize_flag,
    retention_flags,
    sampling_flags,
    settings_line,
    stream_settings,
)
from svlm_jax.config import StreamConfig
from svlm_jax.errors import InputError
from svlm_jax.media.player import MAX_DELAY
from svlm_jax.presets import PRESETS
from svlm_jax.stream.captions import one_line
from svlm_jax.stream.events import (
    Alert,
    Caption,
    Dropped,
    Ended,
    Event,
    Note,
    Refused,
    SourceBack,
    SourceLost,
    Started,
    TokenDelta,
)


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument("source", help="what to watch: see above")
    model_flags(parser)
    parser.add_argument("--tensor", type=integer(1), default=1, help="devices that share the model (default 1)")
    preset_flag(parser)
    video = parser.add_argument_group("video")
    frame_flags(video)
    resize_flag(video)
    video.add_argument("--start", type=number(0), metavar="S", help="second to start at (default 0, or where --resume stands)")
    video.add_argument("--duration", type=number(0), metavar="S", help="seconds to watch (default: to the end)")
    video.add_argument("--pace", action="store_true", help="play a file at its own speed")
    video.add_argument(
        "--max-delay",
        type=number(0),
        default=MAX_DELAY,
        metavar="S",
        help=f"live or with --pace: seconds of video that may wait before the oldest are dropped (default {MAX_DELAY:g})",
    )
    reconnect_flag(video)
    wait = "wait for a camera or URL that is not there at the start, as for one that is lost"
    video.add_argument("--wait-for-source", action="store_true", help=wait)
    text = parser.add_argument_group("words")
    text.add_argument("--query", default="", help="what is asked for, in the first turn (default: that of --preset)")
    text.add_argument("--previous-text", default="", help="commentary that came before")
    text.add_argument("--ask", action="append", default=[], metavar="S:QUESTION", help="a question at a second; repeatable")
    text.add_argument("--tokens", action="store_true", help="show words as they come, not chunk by chunk")
    sampling_flags(text)
    speaking_flags(parser)
    text.add_argument("--seed", type=integer(0, MAX_SEED), help="of what is drawn, unless greedy (default 0)")
    retention_flags(parser)
    files = parser.add_argument_group("files")
    files.add_argument("--vtt", type=Path, help="captions as WebVTT")
    files.add_argument("--srt", type=Path, help="captions as SubRip")
    files.add_argument("--jsonl", type=Path, help="one line a chunk: start, end, text, tokens, ms by stage, slots")
    files.add_argument("--save-state", type=Path, metavar="FILE", help="save the stream here, at the end and as it goes")
    files.add_argument("--save-every", type=integer(1), default=60, metavar="CHUNKS", help="how often (default 60)")
    files.add_argument("--resume", type=Path, metavar="FILE", help="go on from a saved stream")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    if args.resume and (args.query or args.previous_text or args.seed is not None):
        raise InputError("--resume", "with --query, --previous-text or --seed", "a stream that has its own", "use --ask")
    if args.preset and not args.resume:
        args.query = args.query or PRESETS[args.preset].query
    check_outputs(args)
    check_source(args.source, args.start, args.duration)
    alert_of(args)  # refused before the model is loaded
    config, sampling = stream_settings(args)
    with ExitStack() as stack:
        StreamCommand(args, config, sampling, stack).run()


class StreamCommand:
    """One run of the command: what is open, and what it does with each event."""

    def __init__(self, args: argparse.Namespace, config: StreamConfig, sampling: Any, stack: ExitStack) -> None:
        from svlm_jax.media.sources import open_source
        from svlm_jax.sharding import make_mesh
        from svlm_jax.stream import state_io
        from svlm_jax.touchline.source import SCHEMES

        self.args, self.config, self.sampling, self.stack = args, config, sampling, stack
        listens = stdin_has_input()
        self.screen = Screen(listens and sys.stdin.isatty())
        self.questions = Questions(args.ask, listens, self.screen.entered)
        self.is_asked = False  # whether the first words of the next reply answer a question
        self.stopping = stack.enter_context(Stopping(self.screen))
        saved = state_io.peek(args.resume, config, sampling) if args.resume else {}
        self.questions.resume(saved.get("questions", {}))
        rules = bool(args.resume)  # of a state that does not say: its stream may have any
        self.programs = {"choices": rules, "silence_rule": rules} | saved.get("programs", {})
        self.next = saved.get("next", 0.0) if args.start is None else args.start
        timing = {"fps": config.fps, "chunk_seconds": config.chunk_seconds, "duration": args.duration}
        # A stream that is resumed has had its first chunk.
        timing["first_chunk_seconds"] = None if args.resume else config.first_chunk_seconds
        reconnect = reconnect_policy(args.reconnect_seconds)._replace(must_open=not args.wait_for_source)
        self.source = open_source(args.source, start=self.next, schemes=SCHEMES, reconnect=reconnect, **timing)
        before, now = saved.get("source", ""), self._source_identity()
        if before and before != now:
            self.screen.say(f"{args.resume} was saved while it watched {before}: it goes on with {now}")
        if args.save_state is not None:
            state_io.check(args.save_state)
        opened = open_captions(args, saved.get("captions", {}), self.screen.say)
        self.captions = {flag: stack.enter_context(captions) for flag, captions in opened}
        self.writer: state_io.Writer | None = None
        self.consistent = True  # state and captions are of the same chunks
        mesh = make_mesh(tensor=args.tensor) if args.tensor > 1 else None
        self.vlm = load(args, args.source, mesh=mesh, progress=Progress("load"))
        self.screen.say(settings_line(config, sampling))
        self.watched = self.dropped = self.missed = self.saved = 0  # chunks

    def run(self) -> None:
        from svlm_jax.stream.frames import resizes_on_device
        from svlm_jax.stream.playback import Playback
        from svlm_jax.stream.watch import watch

        args, source, screen, processor = self.args, self.source, self.screen, self.vlm.processor
        on_device = resizes_on_device(args.resize_on, processor, self.config)
        options = {"pace": args.pace, "max_delay": args.max_delay, "on_device": on_device}
        playback = self.stack.enter_context(Playback(processor, **options))
        self.stopping.wake = playback.stop
        if source.live:
            screen.say(self._source_line())
        on_token = self._show_token if args.tokens else None
        try:
            for event in watch(playback, source, self._start, question=self._question, on_token=on_token):
                self._handle(event)
                unseen = screen.closed and not self.captions and not args.save_state
                if isinstance(event, Caption) and (self.stopping.requested or unseen):
                    break
        except Exception:
            if error := self._save_last():  # what was watched before the source broke is not lost with it
                screen.say(f"state not saved: {error}")
            raise
        if error := self._save_last():
            raise error
        dropped = f", {self.dropped} dropped" if self.dropped else ""
        dropped += f", {self.missed} missed while the source was lost" if self.missed else ""
        screen.say(f"watched {self.watched} chunks to {clock(self.next)}{dropped}")

    def _source_identity(self) -> str:
        """The same for the same source, however a path is spelled, and no password."""
        return os.path.realpath(self.args.source) if os.path.exists(self.args.source) else self.source.name

    def _source_line(self) -> str:
        source, delay = self.source, self.args.max_delay
        speed = "live" if source.live else "at its own speed" if self.args.pace else "as fast as possible"
        length = f"{source.total} chunks" if source.total is not None else "without end" if source.endless else "length unknown"
        rule = f"; when more than {delay:g} s wait, the oldest are dropped" if source.live or self.args.pace else ""
        return f"{source.name}: {length} of {self.config.chunk_seconds:g} s at {self.config.fps:g} fps, {speed}{rule}"

    def _start(self, clip: Any) -> Any:
        """The runner for frames of that size, compiled, with the stream joined or resumed."""
        from svlm_jax.stream import state_io
        from svlm_jax.stream.admission import check_query
        from svlm_jax.stream.runner import VIDEO, Runner
        from svlm_jax.stream.stream_settings import StreamSettings
        from svlm_jax.stream.turn_tokenizer import TurnTokenizer

        args, vlm, started = self.args, self.vlm, time.monotonic()
        check_query(
            args.query, self.config, TurnTokenizer.of(vlm.tokenizer, vlm.model.config)
        )  # before the compiler takes its time
        options = {"sampling": self.sampling, "previous": args.previous_text, "tokens": args.tokens}
        # A stream that is resumed goes on with the programs that it had: to the last bit, and out of the compilation cache.
        options |= {"choices": bool(args.alert) or self.programs["choices"]}
        options |= {"silence_rule": self.sampling.silence_rule or self.programs["silence_rule"]}
        with compiling() as progress:
            self.runner = Runner.compiled(vlm.model, vlm.tokenizer, self.config, clip, progress=progress, **options)
        if args.resume:
            self.runner.resume(args.resume)
            if changes := given_speaking(args):
                self.runner.change(VIDEO, replace(self.runner.sequence(VIDEO).settings, **changes))
        else:
            speaking = {"pacing": pacing_of(args), "alert": alert_of(args)}
            self.runner.join(VIDEO, StreamSettings(query=args.query, seed=args.seed or 0, **speaking))
        if args.save_state is not None:
            self.writer = self.stack.enter_context(state_io.Writer(args.save_state, self.runner.session))
        self.compile_seconds = time.monotonic() - started
        return self.runner

    def _question(self, stream: str, start: float | int, end: float | int) -> str:
        self.consistent = False  # from here to the captions of the chunk
        question = self.questions.before(end)
        self.is_asked = bool(question)
        return question

    def _handle(self, event: Event) -> None:
        say = self.screen.say
        match event:
            case Started():
                _, height, width = event.grid
                say(
                    f"{height * 14}x{width * 14} px, {event.vision_tokens} vision tokens a chunk, {event.capacity} slots, "
                    f"compiled in {self.compile_seconds:.1f} s"
                )
                if not self.source.live:
                    say(self._source_line())
            case Dropped():
                self._count_dropped(event)
            case SourceLost():
                say(f"{clock(event.second)} {self.source.name} is lost: {event.reason}; it is tried again")
            case SourceBack():
                self._count_missed(event)
            case Note():
                say(f"{clock(event.start)} {event.text}")
            case Refused():
                self.is_asked = False
                say(f"{clock(event.start)} not asked: {event.error}")
            case TokenDelta():
                self._show_token(event)
            case Caption():
                self._show_caption(event)
                self._write_caption(event)
                self._save_now_and_then()
            case Alert():
                self._tell_alert(event)
            case Ended() if event.reason:
                say(f"{self.source.name}: {event.reason}")

    def _count_dropped(self, event: Dropped) -> None:
        self.dropped += event.chunks
        span = f"{clock(event.start)} to {clock(event.end)}"
        self.screen.say(f"dropped {span} ({event.chunks} chunks): too late")
        if jsonl := self.captions.get("jsonl"):
            jsonl.write(event.start, event.end, "", dropped=event.chunks)

    def _tell_alert(self, event: Alert) -> None:
        words = f"{event.name}: {'yes' if event.state else 'no'} ({event.probability:.2f})"
        if event.error:
            words = f"{event.name}: {event.error} of the schema: {one_line(event.text)}"
        elif event.data is not None:
            words = f"{event.name}: {json.dumps(event.data)}"
        self.screen.words(f"[{clock(event.start)}] alert, {words}")
        if jsonl := self.captions.get("jsonl"):
            fields = {"name": event.name, "state": event.state, "probability": round(event.probability, 4)}
            fields |= {"data": event.data} if event.data is not None else {"error": event.error} if event.error else {}
            jsonl.write(event.start, event.end, "", alert=fields)

    def _count_missed(self, event: SourceBack) -> None:
        self.missed += event.chunks
        gap = f"nobody saw {clock(event.start)} to {clock(event.end)}" if event.chunks else "no chunk is missing"
        self.screen.say(f"{clock(event.end)} {self.source.name} is back after {event.seconds:.1f} s: {gap}")
        if event.chunks and (jsonl := self.captions.get("jsonl")):
            jsonl.write(event.start, event.end, "", missed=event.chunks)

    def _show_token(self, event: TokenDelta) -> None:
        if self.screen.line_open:
            self.screen.words(event.text, end="")
        elif event.text:  # a line begins with its first word: most seconds of a commentary have none
            self.screen.words(f"[{clock(event.start)}] {'answer: ' * self.is_asked}{event.text}", end="")
        elif event.token is not None and "\n" in self.vlm.tokenizer.decode([event.token]):
            self.is_asked = False  # a reply whose words follow a newline is commentary (`split_reply`)

    def _show_caption(self, event: Caption) -> None:
        if self.screen.line_open:  # the line of its tokens
            self.screen.words("")
        if event.question:
            self.screen.say(f"{clock(event.start)} asked: {event.question}")
        if not self.args.tokens and event.text:
            answered = "answer: " if event.answer else ""
            self.screen.words(f"[{clock(event.start)}] {answered}{event.text}")

    def _write_caption(self, event: Caption) -> None:
        extra = {
            "tokens": event.tokens,
            "ms": {stage: round(ms, 2) for stage, ms in event.ms.items()},
            "slots": event.used_slots,
        }
        if event.question:
            extra |= {"question": event.question, "answer": event.answer}
        seq = self.runner.sequence(event.stream)
        rules = seq.settings.alert is not None or seq.sampling.silence_rule
        if event.probability is not None and rules:  # a stream that is resumed is computed with it, whatever its rules are
            extra["probability"] = round(event.probability, 6)
        for captions in self.captions.values():
            captions.write(event.start, event.end, event.text, **extra)
        self.watched, self.next, self.consistent = self.watched + 1, event.end, True
        source = self.source
        self.screen.status(event, "" if source.total is None else f" {source.chunks_until(event.end)}/{source.total}")

    def _save(self) -> None:
        """Begin to save; the stream goes on meanwhile."""
        assert self.writer is not None
        marks = {os.path.realpath(captions.path): captions.mark for captions in self.captions.values()}
        session = self.runner.session
        extra = {"next": self.next, "captions": marks, "questions": self.questions.state(), "source": self._source_identity()}
        extra["programs"] = {"choices": session.choices, "silence_rule": session.silence_rule}
        # The captions go to the disk first: after a loss of power no state knows of cues that the disk does not have.
        self.runner.save(self.writer, extra, first=lambda: [captions.sync() for captions in self.captions.values()])
        self.saved = self.watched

    def _save_now_and_then(self) -> None:
        """Save when it is time; if an earlier save is still being written, after it, whether another chunk comes or not."""
        if self.writer is None:
            return
        if error := self.writer.failure():
            self.screen.say(f"state not saved, tried again later: {error}")
        if self.watched - self.saved >= self.args.save_every:
            self._save()

    def _save_last(self) -> Exception | None:
        """Save what has been watched, and wait until the disk has it. Returns why that failed, if so."""
        if self.writer is None:
            return None
        if self.consistent and self.watched:
            self._save()
        self.writer.wait()
        return self.writer.failure()
