"""Watch a video and comment on it as it plays.

python -m launch.stream match.mp4 --model Qwen/Qwen2.5-VL-3B-Instruct --query "Commentate on this match" --vtt match.vtt
python -m launch.stream rtsp://camera/1 --model DIR --save-state match.state --jsonl match.jsonl
python -m launch.stream 0 --model DIR --pace                       # the first webcam; type a line to ask a question

SOURCE is a video file, a folder of frames, the number of a webcam, a URL, or match:SEED, a generated game without end. Without
--pace a file is watched as fast as possible; with it, or live, chunks that come too late are dropped, and every one is told.
Words go to stdout, the rest to stderr.
"""

import argparse
import os
import signal
import stat
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from launch.cli import (
    Progress,
    load,
    model_flags,
    rate_flags,
    reply_flags,
    retained_flags,
    run,
    settings,
)
from svlm_jax.config import StreamConfig
from svlm_jax.errors import InputError

STATUS_EVERY = 10.0  # seconds between status lines where there is no terminal
STAGES = ("vision", "prefill", "decode")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("source")
    model_flags(made)
    made.add_argument("--tensor", type=int, default=1, help="devices that share the model (default 1)")
    video = made.add_argument_group("video")
    rate_flags(video)
    video.add_argument("--start", type=float, metavar="S", help="second to start at (default 0, or where --resume stands)")
    video.add_argument("--duration", type=float, metavar="S", help="seconds to watch (default: to the end)")
    video.add_argument("--pace", action="store_true", help="play a file at its own speed")
    said = made.add_argument_group("words")
    said.add_argument("--query", default="", help="what is asked for, in the first turn")
    said.add_argument("--previous-text", default="", help="commentary that came before")
    said.add_argument("--ask", action="append", default=[], metavar="S:QUESTION", help="a question at a second; repeatable")
    said.add_argument("--tokens", action="store_true", help="show words as they come, not chunk by chunk")
    reply_flags(said)
    said.add_argument("--seed", type=int, default=0)
    retained_flags(made)
    files = made.add_argument_group("files")
    files.add_argument("--vtt", type=Path, help="captions as WebVTT")
    files.add_argument("--srt", type=Path, help="captions as SubRip")
    files.add_argument("--jsonl", type=Path, help="one line a chunk: start, end, text, tokens, ms by stage, slots")
    files.add_argument("--save-state", type=Path, metavar="FILE", help="save the stream here, at the end and as it goes")
    files.add_argument("--save-every", type=int, default=60, metavar="CHUNKS", help="how often (default 60)")
    files.add_argument("--resume", type=Path, metavar="FILE", help="go on from a saved stream")
    return made


class Questions:
    """What viewers ask: lines typed on stdin, at once; those of --ask in the chunk that holds their second; one a chunk."""

    def __init__(self, asked: list[str], typed: bool) -> None:
        self.timed: list[tuple[float, str]] = []
        for one in asked:
            second, _, question = one.partition(":")
            try:
                self.timed.append((float(second), question.strip()))
            except ValueError:
                raise InputError("--ask", repr(one), "SECOND:QUESTION", 'write "75:who scored?"') from None
        self.timed.sort()
        self.lines: SimpleQueue[str] = SimpleQueue()
        if typed:
            Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            if line.strip():
                self.lines.put(line.strip())

    def before(self, end: float) -> str:
        """The question of the chunk that ends there, or "" (chunks that were dropped leave theirs to the next)."""
        if self.timed and self.timed[0][0] < end:
            return self.timed.pop(0)[1]
        try:
            return self.lines.get_nowait()
        except Empty:
            return ""


class Screen:
    """Words on stdout; on stderr a status line that stays in its place on a terminal and comes now and then elsewhere."""

    def __init__(self) -> None:
        self.live, self.spoken, self.open = sys.stderr.isatty(), 0.0, False
        self.recent: deque[float] = deque(maxlen=16)
        self.closed = False

    def say(self, line: str) -> None:
        """Something that happened, on stderr."""
        print(("\r\033[K" if self.live else "") + line, file=sys.stderr, flush=True)

    def interrupt(self, line: str) -> None:
        """The same from a signal handler, where a print may be under way; print is not reentrant."""
        with suppress(OSError):
            os.write(2, (("\r\033[K" if self.live else "") + line + "\n").encode())

    def words(self, text: str, end: str = "\n") -> None:
        if self.closed:
            return
        try:
            if self.live and not self.open and sys.stdout.isatty():
                sys.stderr.write("\r\033[K")
                sys.stderr.flush()
            print("".join(one if one.isprintable() else " " for one in text), end=end, flush=True)
            self.open = end != "\n"
        except BrokenPipeError:
            self.closed = True
            sys.stdout = open("/dev/null", "w")  # noqa: SIM115 (else the interpreter complains about stdout at exit)

    def status(self, reply: Any, spent: float, slots: int, of: str) -> None:
        self.recent.append(spent)
        now = time.monotonic()
        if self.open or not (self.live or now - self.spoken > STATUS_EVERY):
            return
        self.spoken = now
        speed = (reply.end - reply.start) / (sum(self.recent) / len(self.recent))
        stages = ", ".join(f"{stage} {reply.ms[stage]:.0f}" for stage in STAGES)
        line = f"{clock(reply.end)}{of}  {speed:.1f}x real time  {reply.after}/{slots} slots  ms: {stages}"
        print("\r\033[K" + line if self.live else line, end="" if self.live else "\n", file=sys.stderr, flush=True)


def clock(second: float) -> str:
    """75.25 -> "00:01:15.2"."""
    tenths = int(10 * second + 1e-6)
    return f"{tenths // 36000:02}:{tenths // 600 % 60:02}:{tenths // 10 % 60:02}.{tenths % 10}"


class Stopping:
    """SIGINT and SIGTERM end the stream after the chunk that is being watched; a second one ends it at once."""

    def __init__(self, screen: Screen) -> None:
        self.screen, self.asked = screen, False
        self.wake: Callable[[], None] = lambda: None

    def __enter__(self) -> "Stopping":
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._heard)
        return self

    def _heard(self, number: int, _: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self.screen.interrupt(f"{signal.Signals(number).name}: stopping after this chunk")
        self.wake()

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)


def main() -> None:
    args = parser().parse_args()
    config, draws = settings(args)
    if args.resume and (args.query or args.previous_text):
        raise InputError("--resume", "with --query or --previous-text", "a stream that has its own", "use --ask")
    if args.save_every < 1:
        raise InputError("--save-every", args.save_every, "1 or more chunks", "raise it")
    with ExitStack() as things:
        Watch(args, config, draws, things).run(things)


def _someone_types() -> bool:
    """Whether stdin is a terminal that is ours to read, or a pipe."""
    try:
        if sys.stdin.isatty():
            return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
        return stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode)
    except (OSError, ValueError, AttributeError):  # closed, or none
        return False


class Watch:
    """One run of the command: what is open, and the loop."""

    def __init__(self, args: argparse.Namespace, config: StreamConfig, draws: Any, things: ExitStack) -> None:
        from svlm_jax.data.sources import open_source
        from svlm_jax.sharding import make_mesh
        from svlm_jax.stream import saved
        from svlm_jax.stream.subtitles import Subtitles

        self.args, self.config, self.sampling, self.screen = args, config, draws, Screen()
        self.questions = Questions(args.ask, typed=_someone_types())
        self.stopping = things.enter_context(Stopping(self.screen))
        told = saved.peek(args.resume) if args.resume else {}
        self.next = told.get("next", 0.0) if args.start is None else args.start
        video = {"fps": config.fps, "chunk_seconds": config.chunk_seconds, "duration": args.duration}
        self.open = partial(open_source, args.source, start=self.next, **video)
        self.source = self.open()
        kept = told.get("captions", {})
        self.captions = {
            str(path): things.enter_context(Subtitles(path, append=bool(args.resume), keep=kept.get(str(path))))
            for path in (args.vtt, args.srt, args.jsonl)
            if path is not None
        }
        mesh = make_mesh(tensor=args.tensor) if args.tensor > 1 else None
        self.vlm = load(args, mesh=mesh, progress=Progress("load"))
        self.done = self.dropped = 0

    def run(self, things: ExitStack) -> None:
        from svlm_jax.data.player import LATE, Player

        source, screen, first = self.source, self.screen, None
        if not source.live:  # look at it before the clock starts, so that compiling costs no second of the video
            first = self._prepare(next(iter(self.open())))
            self._begin(first)
        timed = "live" if source.live else "at its own speed" if self.args.pace else "as fast as possible"
        length = f"{source.total} chunks" if source.total is not None else "without end"
        rule = f"; when more than {LATE} chunks wait, all but the newest are dropped" if timed != "as fast as possible" else ""
        screen.say(f"{source.name}: {length} of {self.config.chunk_seconds:g} s at {self.config.fps:g} fps, {timed}{rule}")
        player = things.enter_context(Player(source, self._prepare, pace=self.args.pace, report=self._lost))
        self.stopping.wake = player.stop
        for chunk, clip in player:
            if first is None:
                first = clip
                self._begin(first)
            self._watch(chunk, clip)
            if self.stopping.asked or (screen.closed and not self.captions and not self.args.save_state):
                break
        if source.ending:
            screen.say(f"{source.name}: {source.ending}")
        self._save()
        told = f", {self.dropped} dropped" if self.dropped else ""
        screen.say(f"watched {self.done} chunks to {clock(self.next)}{told}")

    def _prepare(self, chunk: Any) -> Any:
        return self.vlm.processor.video(chunk.frames, fps=self.config.fps, levels=True)

    def _begin(self, clip: Any) -> None:
        """Make the session for frames of that size, compile it, and begin or resume the stream."""
        from svlm_jax.stream import saved
        from svlm_jax.stream.session import Session

        args, vlm, started = self.args, self.vlm, time.monotonic()
        previous = args.previous_text
        self.session = Session(vlm.model, vlm.tokenizer, self.config, clip.grid, sampling=self.sampling, previous=previous)
        self.session.check_query(args.query)  # before the compiler takes its time
        state = self.session.warm(self.session.start(), clip, tokens=args.tokens)
        if args.resume:
            del state  # makes room for the saved one
            self.state = saved.load(args.resume, self.session)
        else:
            self.state = self.session.join(state, query=args.query, seed=args.seed)
        t, h, w = clip.grid
        merge = vlm.model.config.vision.spatial_merge_size
        self.screen.say(
            f"{h * 14}x{w * 14} px, {t * h * w // merge**2} vision tokens a chunk, {self.session.capacity} slots, "
            f"compiled in {time.monotonic() - started:.1f} s"
        )

    def _watch(self, chunk: Any, clip: Any) -> None:
        from svlm_jax.stream.sequence import Chunk

        started, screen = time.monotonic(), self.screen
        if chunk.note:
            screen.say(f"{clock(chunk.start)} {chunk.note}")
        question = self.questions.before(chunk.end)
        show = self._token if self.args.tokens else None
        self.said: list[int] = []
        asked = Chunk(chunk.start, chunk.end, clip, question)
        try:
            self.state, replies = self.session.step(self.state, [asked], on_token=show)
        except InputError as error:
            if not question:
                raise
            screen.say(f"{clock(chunk.start)} not asked: {error}")
            question = ""
            self.state, replies = self.session.step(self.state, [asked._replace(question="")], on_token=show)
        (reply,) = replies
        assert reply is not None
        if question:
            screen.say(f"{clock(chunk.start)} asked: {question}")
        if self.args.tokens and self.said:
            screen.words("")
        elif reply.text.strip():
            screen.words(f"[{clock(chunk.start)}] {reply.text.strip()}")
        extra = {"tokens": reply.tokens, "ms": {stage: round(ms, 2) for stage, ms in reply.ms.items()}, "slots": reply.after}
        if question:
            extra["question"] = question
        for captions in self.captions.values():
            captions.write(chunk.start, chunk.end, reply.text.strip(), **extra)
        self.done, self.next = self.done + 1, chunk.end
        of = "" if self.source.total is None else f" {chunk.number + 1}/{self.source.total}"
        screen.status(reply, time.monotonic() - started, self.state.cache.capacity, of)
        if self.done % self.args.save_every == 0:
            self._save()

    def _token(self, row: int, token: int) -> None:
        """Show what a token adds to the words so far."""
        decode = partial(self.vlm.tokenizer.decode, skip_special_tokens=True)
        if not self.said:
            self.screen.words(f"[{clock(self.next)}]", end="")
        before = decode(self.said)
        self.said.append(token)
        self.screen.words(decode(self.said)[len(before) :], end="")

    def _lost(self, chunks: Any) -> None:
        self.dropped += len(chunks)
        first, last = chunks[0].start, chunks[-1].end
        self.screen.say(f"dropped {clock(first)} to {clock(last)} ({len(chunks)} chunks): too late")
        for path, captions in self.captions.items():
            if path.endswith(".jsonl"):
                captions.write(first, last, "", dropped=len(chunks))

    def _save(self) -> None:
        from svlm_jax.stream import saved

        if self.args.save_state is not None and self.done:
            sizes = {path: captions.size for path, captions in self.captions.items()}
            saved.save(self.args.save_state, self.session, self.state, {"next": self.next, "captions": sizes})


if __name__ == "__main__":
    run(main)
