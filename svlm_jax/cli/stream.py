"""Watch a video and comment on it as it plays.

svlm stream match.mp4 --model Qwen/Qwen2.5-VL-3B-Instruct --query "Commentate on this match" --vtt match.vtt
svlm stream rtsp://camera/1 --model DIR --save-state match.state --jsonl match.jsonl
svlm stream 0 --model DIR --pace                       # the first webcam; type a line to ask a question

SOURCE is a video file, a folder of frames, the number of a webcam, a URL, or match:SEED, a generated game without end. Without
--pace a file is watched as fast as possible; with it, or live, chunks that wait for longer than --max-delay are dropped, and
every one is told. Words go to stdout, the rest to stderr.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from svlm_jax.cli.flags import MAX_SEED, Parser, integer, number
from svlm_jax.cli.model_flags import check_source, knows_only_its_game, load, model_flags
from svlm_jax.cli.progress import Progress, compiling
from svlm_jax.cli.screen import Questions, Screen, Stopping, clock, someone_types
from svlm_jax.cli.stream_flags import frame_flags, retention_flags, sampling_flags, settings_line, stream_settings
from svlm_jax.config import StreamConfig
from svlm_jax.errors import InputError, shortened
from svlm_jax.media.player import LATE

CAPTIONS = ("vtt", "srt", "jsonl")


def parser() -> argparse.ArgumentParser:
    made = Parser(description=__doc__)
    made.add_argument("source", help="what to watch: see above")
    model_flags(made)
    made.add_argument("--tensor", type=integer(1), default=1, help="devices that share the model (default 1)")
    video = made.add_argument_group("video")
    frame_flags(video)
    video.add_argument("--start", type=number(0), metavar="S", help="second to start at (default 0, or where --resume stands)")
    video.add_argument("--duration", type=number(0), metavar="S", help="seconds to watch (default: to the end)")
    video.add_argument("--pace", action="store_true", help="play a file at its own speed")
    video.add_argument(
        "--max-delay",
        type=number(0),
        default=LATE,
        metavar="S",
        help=f"live or with --pace: seconds of video that may wait before the oldest are dropped (default {LATE:g})",
    )
    said = made.add_argument_group("words")
    said.add_argument("--query", default="", help="what is asked for, in the first turn")
    said.add_argument("--previous-text", default="", help="commentary that came before")
    said.add_argument("--ask", action="append", default=[], metavar="S:QUESTION", help="a question at a second; repeatable")
    said.add_argument("--tokens", action="store_true", help="show words as they come, not chunk by chunk")
    sampling_flags(said)
    said.add_argument("--seed", type=integer(0, MAX_SEED), default=0, help="of what is drawn, unless greedy (default 0)")
    retention_flags(made)
    files = made.add_argument_group("files")
    files.add_argument("--vtt", type=Path, help="captions as WebVTT")
    files.add_argument("--srt", type=Path, help="captions as SubRip")
    files.add_argument("--jsonl", type=Path, help="one line a chunk: start, end, text, tokens, ms by stage, slots")
    files.add_argument("--save-state", type=Path, metavar="FILE", help="save the stream here, at the end and as it goes")
    files.add_argument("--save-every", type=integer(1), default=60, metavar="CHUNKS", help="how often (default 60)")
    files.add_argument("--resume", type=Path, metavar="FILE", help="go on from a saved stream")
    return made


def main() -> None:
    args = parser().parse_args()
    if args.resume and (args.query or args.previous_text):
        raise InputError("--resume", "with --query or --previous-text", "a stream that has its own", "use --ask")
    check_outputs(args)
    check_source(args.source, args.start, args.duration)
    config, draws = stream_settings(args)
    with ExitStack() as things:
        Watch(args, config, draws, things).run(things)


def check_outputs(args: argparse.Namespace) -> None:
    """Refuse what would write over something else; before anything is opened.

    Raises:
        InputError: two names of one file, captions with the ending of another kind.
    """
    flags = ("vtt", "srt", "jsonl", "save_state", "resume")
    given = {flag: getattr(args, flag) for flag in flags}
    named = {"source": Path(args.source)} | {f"--{flag.replace('_', '-')}": path for flag, path in given.items() if path}
    for (name, path), (other, second) in combinations(named.items(), 2):
        if {name, other} != {"--save-state", "--resume"} and same_file(path, second):
            raise InputError(other, f"{shortened(second)}, the file of {name}", "a file of its own", "choose another name")
    for flag in CAPTIONS:
        path = getattr(args, flag)
        if path is not None and path.suffix.lower() in {f".{other}" for other in CAPTIONS} - {f".{flag}"}:
            raise InputError(f"--{flag}", shortened(path), f"a name that ends in .{flag}", "rename it, or use its own flag")


def same_file(path: Path, other: Path) -> bool:
    """Whether two names are of one file, however they are written, there or not."""
    with suppress(OSError, ValueError):
        if os.path.samefile(path, other):
            return True
    return os.path.realpath(path) == os.path.realpath(other)


def open_captions(args: argparse.Namespace, kept: dict[str, Any], say: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    """(flag, open file) of each; with --resume where they stood when the state was saved.

    Args:
        kept: the `mark` of each by its path, as the state has it.

    Raises:
        InputError: a file that cannot be written, or that is not what the state knows.
    """
    from svlm_jax.stream.captions import Subtitles

    for flag in CAPTIONS:
        path = getattr(args, flag)
        if path is None:
            continue
        mark = next((mark for name, mark in kept.items() if same_file(path, Path(name))), None)
        there = path.is_file() and path.stat().st_size > 0
        if args.resume and there and mark is None:
            got, expected = f"{shortened(path)}, of which {shortened(args.resume)} knows nothing", "the file it was saved with"
            raise InputError(f"--{flag}", got, f"{expected}, or a new one", "give a new name: nothing is written over")
        if mark is not None and not there:
            say(f"captions {shortened(path)}: not there any more; begun anew, without what was said before")
        back = {"keep": mark["size"], "digest": mark["sha256"]} if mark is not None and there else {}
        yield flag, Subtitles(path, append=bool(args.resume), **back)


class Watch:
    """One run of the command: what is open, and the loop."""

    def __init__(self, args: argparse.Namespace, config: StreamConfig, draws: Any, things: ExitStack) -> None:
        from svlm_jax.media.sources import open_source
        from svlm_jax.sharding import make_mesh
        from svlm_jax.stream import state_io
        from svlm_jax.touchline.source import SCHEMES

        self.args, self.config, self.sampling = args, config, draws
        typed = someone_types()
        self.screen = Screen(typed and sys.stdin.isatty())
        self.questions = Questions(args.ask, typed, self.screen.entered)
        self.stopping = things.enter_context(Stopping(self.screen))
        told = state_io.peek(args.resume) if args.resume else {}
        self.questions.resume(told.get("questions", {}))
        self.next = told.get("next", 0.0) if args.start is None else args.start
        video = {"fps": config.fps, "chunk_seconds": config.chunk_seconds, "duration": args.duration}
        self.open = partial(open_source, args.source, start=self.next, schemes=SCHEMES, **video)
        self.source = self.open()
        if args.save_state is not None:
            state_io.check(args.save_state)
        opened = open_captions(args, told.get("captions", {}), self.screen.say)
        self.captions = {flag: things.enter_context(one) for flag, one in opened}
        self.writer: state_io.Writer | None = None
        self.whole = True  # state and captions tell of the same chunks
        mesh = make_mesh(tensor=args.tensor) if args.tensor > 1 else None
        if told := knows_only_its_game(args.model, args.source):
            self.screen.say(told)
        self.vlm = load(args, mesh=mesh, progress=Progress("load"))
        self.screen.say(settings_line(config, draws))
        self.done = self.dropped = self.saved = 0

    def run(self, things: ExitStack) -> None:
        from svlm_jax.media.player import Player

        source, screen, first, delay = self.source, self.screen, None, self.args.max_delay
        if not source.live:  # look at it before the clock starts, so that compiling costs no second of the video
            first = self._prepare(self._first())
            self._begin(first, things)
        timed = "live" if source.live else "at its own speed" if self.args.pace else "as fast as possible"
        length = f"{source.total} chunks" if source.total is not None else "without end" if source.endless else "length unknown"
        rule = f"; when more than {delay:g} s wait, the oldest are dropped" if timed != "as fast as possible" else ""
        screen.say(f"{source.name}: {length} of {self.config.chunk_seconds:g} s at {self.config.fps:g} fps, {timed}{rule}")
        player = things.enter_context(Player(source, self._prepare, pace=self.args.pace, late=delay, report=self._lost))
        self.stopping.wake = player.stop
        try:
            for chunk, clip in player:
                if first is None:
                    first = clip
                    self._begin(first, things)
                self._watch(chunk, clip)
                if self.stopping.asked or (screen.closed and not self.captions and not self.args.save_state):
                    break
        except Exception:
            if error := self._save_last():  # what was watched before the source broke is not lost with it
                screen.say(f"state not saved: {error}")
            raise
        if source.ending:
            screen.say(f"{source.name}: {source.ending}")
        if error := self._save_last():
            raise error
        told = f", {self.dropped} dropped" if self.dropped else ""
        screen.say(f"watched {self.done} chunks to {clock(self.next)}{told}")

    def _first(self) -> Any:
        with self.open() as source:
            for chunk in source:
                return chunk
        least = f"a frame, which is {1 / self.config.fps:g} s"
        raise InputError(
            self.source.name, f"no frame from second {self.next:g} on", least, "watch for longer, or from earlier on"
        )

    def _prepare(self, chunk: Any) -> Any:
        return self.vlm.processor.video(chunk.frames, fps=self.config.fps, raw=True)

    def _begin(self, clip: Any, things: ExitStack) -> None:
        """Make the session for frames of that size, compile it, and begin or resume the stream."""
        from svlm_jax.stream import state_io
        from svlm_jax.stream.session import Session

        args, vlm, started = self.args, self.vlm, time.monotonic()
        previous = args.previous_text
        self.session = Session(vlm.model, vlm.tokenizer, self.config, clip.grid, sampling=self.sampling, previous=previous)
        self.session.check_query(args.query)  # before the compiler takes its time
        with compiling():
            state = self.session.warm(self.session.start(), clip, tokens=args.tokens)
        if args.resume:
            del state  # makes room for the saved one
            self.state = state_io.load(args.resume, self.session)
        else:
            self.state = self.session.join(state, query=args.query, seed=args.seed)
        if args.save_state is not None:
            self.writer = things.enter_context(state_io.Writer(args.save_state, self.session))
        t, h, w = clip.grid
        merge = vlm.model.config.vision.spatial_merge_size
        self.screen.say(
            f"{h * 14}x{w * 14} px, {t * h * w // merge**2} vision tokens a chunk, {self.session.capacity} slots, "
            f"compiled in {time.monotonic() - started:.1f} s"
        )

    def _watch(self, chunk: Any, clip: Any) -> None:
        started, screen = time.monotonic(), self.screen
        if chunk.note:
            screen.say(f"{clock(chunk.start)} {chunk.note}")
        self.whole = False
        reply, question = self._step(chunk, clip, self.questions.before(chunk.end))
        if question:
            screen.say(f"{clock(chunk.start)} asked: {question}")
        if not self.args.tokens and reply.text.strip():
            screen.words(f"[{clock(chunk.start)}] {reply.text.strip()}")
        extra = {"tokens": reply.tokens, "ms": {stage: round(ms, 2) for stage, ms in reply.ms.items()}, "slots": reply.after}
        if question:
            extra["question"] = question
        for captions in self.captions.values():
            captions.write(chunk.start, chunk.end, reply.text.strip(), **extra)
        self.done, self.next, self.whole = self.done + 1, chunk.end, True
        of = "" if self.source.total is None else f" {chunk.number + 1}/{self.source.total}"
        screen.status(reply, time.monotonic() - started, self.state.cache.capacity, of)
        self._save_now_and_then()

    def _step(self, chunk: Any, clip: Any, question: str) -> tuple[Any, str]:
        """The reply to a chunk, shown as it comes with --tokens, and the question if there was room for it."""
        from svlm_jax.decode.detokenize import Detokenizer
        from svlm_jax.stream.sequence import Chunk

        detokenizer = Detokenizer(self.vlm.tokenizer)

        def show(text: str) -> None:
            if text:  # a line is begun by its first word: most seconds of a commentary have none
                self.screen.words(text if self.screen.open else f"[{clock(chunk.start)}] {text}", end="")

        on_token = (lambda row, token: show(detokenizer.add(token))) if self.args.tokens else None
        asked = Chunk(chunk.start, chunk.end, clip, question)
        try:
            self.state, replies = self.session.step(self.state, [asked], on_token=on_token)
        except InputError as error:
            if not question:
                raise
            self.screen.say(f"{clock(chunk.start)} not asked: {error}")
            question = ""
            self.state, replies = self.session.step(self.state, [asked._replace(question="")], on_token=on_token)
        (reply,) = replies
        assert reply is not None
        show(detokenizer.flush())
        if self.screen.open:
            self.screen.words("")
        return reply, question

    def _lost(self, chunks: Any) -> None:
        self.dropped += len(chunks)
        first, last = chunks[0].start, chunks[-1].end
        self.screen.say(f"dropped {clock(first)} to {clock(last)} ({len(chunks)} chunks): too late")
        if jsonl := self.captions.get("jsonl"):
            jsonl.write(first, last, "", dropped=len(chunks))

    def _save(self) -> None:
        """Begin to save; the stream goes on meanwhile."""
        assert self.writer is not None
        marks = {os.path.realpath(captions.path): captions.mark for captions in self.captions.values()}
        extra = {"next": self.next, "captions": marks, "questions": self.questions.state()}
        # The captions go to the disk first: a state never knows of cues that a loss of power has taken.
        self.writer.save(self.state, extra, first=lambda: [captions.sync() for captions in self.captions.values()])
        self.saved = self.done

    def _save_now_and_then(self) -> None:
        """Save when it is time, unless the last save is still being written: then at the next chunk."""
        if self.writer is None or self.writer.busy:
            return
        if error := self.writer.failure():
            self.screen.say(f"state not saved, tried again later: {error}")
        if self.done - self.saved >= self.args.save_every:
            self._save()

    def _save_last(self) -> Exception | None:
        """Save what has been watched, and wait until the disk has it. Why not, if so."""
        if self.writer is None:
            return None
        if self.whole and self.done:
            self._save()
        self.writer.wait()
        return self.writer.failure()
