"""One annotated window of a video as a training sample: its JSONL record, its turns, its tokens and labels.

Owns the record format, which words and questions belong to which second, and which tokens have labels. Does not know files,
frames or batches. Host side: numpy, never jax. Units: seconds of the video; lengths in tokens. One turn a second.

Source: StreamingVLM (arXiv 2510.09608), dataset class `LMMDataset`. Its habits, which trained the published models, are kept: a
question stands between the time text and the vision, its answer before the newline that opens a reply; all user turns but the
first have a blank after the time text; the first turn has no query. The text between two special tokens is tokenised at once:
where a tokenizer has a token for two newlines (Qwen's has), the header's and the reply's become that one, without a label.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from svlm_jax.config import ModelConfig
from svlm_jax.errors import InputError
from svlm_jax.families import family_of
from svlm_jax.families.chat import (
    PREVIOUS_HEAD,
    TURN_END,
    TURN_HEAD,
    Tokenizer,
    Tokens,
    opening,
    plain,
    question_text,
    user_turn,
)
from svlm_jax.files import parse_json_list
from svlm_jax.inputs import Clip, Sample
from svlm_jax.spans import Kind, Part, Span, total, truncate

NO_LOSS = -100  # label of a token that is not trained on
REPLY_END = " ..."  # of every reply
REPLY_TAIL = 1 + TURN_END  # REPLY_END, <|im_end|>, newline
SLACK = 1e-6  # seconds
MAX_SECONDS = 1e9  # no video is as long (and a NaN is not below it)
_REMEDY = "mend the record or leave it out"


class Word(NamedTuple):
    """A word of the commentary and when it is spoken."""

    start: float
    end: float
    text: str


class Question(NamedTuple):
    """A question, when it is asked, and the answer."""

    time: float
    text: str
    answer: str


@dataclass(frozen=True)
class Annotation:
    """One record: a window `start` .. `end` of a video and its commentary.

    Attributes:
        video: its path; None: words alone, turns have no frames.
        query: what the viewer asks for; streaming puts it into its first turn, training does not use it (see `build_sample`).
        previous: commentary before the window.
        words: in order of time. Those that end before the window are in its first reply, those that end after it in none.
        questions: as recorded; see `training_turns` for which are asked.
        hidden: whole seconds at the start of the window whose turns have no frames, as in a stream whose frames were evicted.
    """

    video: str | None
    start: float
    end: float
    query: str
    previous: str
    words: tuple[Word, ...]
    questions: tuple[Question, ...] = ()
    hidden: int = 0

    @property
    def seconds(self) -> int:
        """Turns in the window; a fractional last second counts."""
        return math.ceil(self.end - self.start - SLACK)

    @property
    def visible_seconds(self) -> int:
        """Turns with frames, the last ones."""
        return self.seconds - self.hidden if self.video is not None else 0


class WindowTurn(NamedTuple):
    """One second of a window: a user turn and the reply. `question`: the text between the time text and the vision."""

    start: float
    end: float
    question: str
    reply: str


def parse_line(line: str | bytes, source: str) -> Annotation:
    """`parse` of one line of a JSONL file."""
    content = line.encode(errors="surrogatepass") if isinstance(line, str) else line
    return parse(parse_json_list(content, source, "a JSON list on one line", "check the file and its seeks"), source)


def parse(record: Any, source: str = "annotation") -> Annotation:
    """A decoded record to an Annotation; unknown keys are ignored.

    Args:
        source: what errors call it, for example a file and a line number.

    Raises:
        InputError: the key, what it holds, what it should.
    """
    user, assistant = (_content(record, turn, role, source) for turn, role in enumerate(("user", "assistant")))
    clip, text = (_element(user, 0, index, kind, source) for index, kind in enumerate(("video", "text")))
    speech = _element(assistant, 1, 0, "text_stream", source)
    clip_field, text_field, speech_field = (f"{source} [{turn}].content[{i}]" for turn, i in ((0, 0), (0, 1), (1, 0)))
    video = _get(clip, "video", None, clip_field)
    if video is not None:
        video = _get(clip, "video", str, clip_field)
    start, end = (_number(_get(clip, key, None, clip_field), f"{clip_field}.{key}") for key in ("video_start", "video_end"))
    if video == "":
        raise InputError(f"{clip_field}.video", "an empty text", "the path of a video, or null: words alone", _REMEDY)
    if start < 0:
        raise InputError(f"{clip_field}.video_start", start, "0 or more seconds", _REMEDY)
    if end <= start:
        raise InputError(f"{clip_field}.video_end", end, f"more than video_start = {start:g}", _REMEDY)
    hidden = _get(clip, "video_hidden", None, clip_field, 0)
    if isinstance(hidden, bool) or not isinstance(hidden, int) or not 0 <= hidden < end - start:
        raise InputError(f"{clip_field}.video_hidden", hidden, f"whole seconds, 0 to below {end - start:g}", _REMEDY)
    query = plain(_get(text, "text", str, text_field), f"{text_field}.text")
    previous = plain(_get(text, "previous", str, text_field, ""), f"{text_field}.previous")
    words = _words(_get(speech, "text_stream", list, speech_field), f"{speech_field}.text_stream")
    questions = _questions(_get(speech, "qa_stream", list, speech_field, []), f"{speech_field}.qa_stream")
    return Annotation(video, start, end, query, previous, words, questions, hidden)


def training_turns(annotation: Annotation, *, as_streamed: bool = False) -> tuple[WindowTurn, ...]:
    """The turns of a window, one a second; `as_streamed`: without the blank that no stream has.

    A reply has the words that end in the second, its last instant included, in their order. A question is asked in the second
    that its time lies in (first instant excluded, last included). Questions wait in a line: at most one is asked a second, and
    one whose second has passed (two in the same second, or one at the start of the window) is never asked and blocks all that
    follow, as in the original.
    """
    turns: list[WindowTurn] = []
    next_word = next_question = 0
    for number in range(annotation.seconds):
        start, end = annotation.start + number, annotation.start + number + 1
        first_word = next_word
        # in the first second this takes the words before the window, too
        while next_word < len(annotation.words) and annotation.words[next_word].end <= end:
            next_word += 1
        question, answer = "", ""
        if next_question < len(annotation.questions) and start < annotation.questions[next_question].time <= end:
            _, question, answer = annotation.questions[next_question]
            next_question += 1
        words = "".join(f" {word.text.strip()}" for word in annotation.words[first_word:next_word])
        without_blank = number == 0 or (as_streamed and not question)
        turns.append(WindowTurn(start, end, question_text(question, first=without_blank), f"{answer}\n{words}{REPLY_END}"))
    return tuple(turns)


def build_sample(
    annotation: Annotation,
    clips: Sequence[Clip],
    tokenizer: Tokenizer,
    config: ModelConfig,
    *,
    sink: int,
    text_window: int,
    as_streamed: bool = False,
    learn_previous: int = 0,
) -> tuple[Sample, np.ndarray]:
    """The training sample of a window, and its labels [n] int32: a token's own id where it is trained on (each reply from its
    fourth token to its <|im_end|>), NO_LOSS elsewhere. The loss shifts them to the next token.

    Args:
        clips: the frames of each visible second; none at all where there is no video.
        sink, text_window: tokens of the previous-text turn that stay when it is longer than both: the first, its header among
            them, and the last, <|im_end|> and newline among them. 0 and 0: all of it.
        as_streamed: leave out the two habits of the original that its streams do not have: the blank after the time text, and
            a reply that is tokenised together with its header. And where there is no previous text, its first turn has the
            query.
        learn_previous: so many of the last tokens of the previous text have labels too, as those of replies have.

    Raises:
        InputError: not one clip a second; a sink or text_window that cuts the turn's markup.
    """
    turns = training_turns(annotation, as_streamed=as_streamed)
    _check_clips(annotation, clips)
    parts = [_truncate_previous(opening(annotation.previous, tokenizer, config), sink, text_window)]
    has_label = [_previous_labels(parts[0], learn_previous)]
    # hidden seconds come first, and have no clip
    for number, (turn, clip) in enumerate(zip(turns, [*[None] * (len(turns) - len(clips)), *clips], strict=True)):
        query = annotation.query if as_streamed and not number and not annotation.previous else ""
        options = {"question": turn.question, "query": query, "turn": number}
        grid, step = (clip.grid, clip.step) if clip else (None, 0)
        times = clip.times if clip else ()
        user = user_turn(turn.start, turn.end, grid, step, tokenizer, config, **options, times=times)
        user = Tokens(user.ids[:-TURN_HEAD], user.spans[:-1])  # the header of the reply is tokenised with the reply
        reply = _reply(turn.reply, number, tokenizer, config, separate_header=as_streamed)
        index = np.arange(len(reply.ids))
        parts += [user, reply]
        # all but the header and the newline after <|im_end|>
        has_label += [np.zeros(len(user.ids), bool), (index >= TURN_HEAD) & (index < len(index) - 1)]
    ids = np.concatenate([part.ids for part in parts])
    spans = tuple(span for part in parts for span in part.spans)
    labels = np.where(np.concatenate(has_label), ids, np.int32(NO_LOSS))
    return Sample(ids, spans, tuple(clips)), labels


def _check_clips(annotation: Annotation, clips: Sequence[Clip]) -> None:
    if annotation.video is None and clips:
        raise InputError("clips", len(clips), "none, for there is no video", "leave them out")
    if len(clips) != annotation.visible_seconds:
        first = annotation.start + annotation.hidden
        expected = f"one for each of the {annotation.visible_seconds} seconds from {first:g} to {annotation.end:g}"
        raise InputError(f"clips of {annotation.video}", len(clips), expected, "check that the video is as long as that")


def _previous_labels(start: Tokens, count: int) -> np.ndarray:
    """Which tokens of the opening have labels: the last `count` of the previous text's words."""
    is_word = [span.kind is Kind.PREVIOUS and span.part is Part.BODY for span in start.spans]
    has_label = np.repeat(is_word, [span.length for span in start.spans])
    has_label[np.flatnonzero(has_label)[: max(has_label.sum() - count, 0)]] = False
    return has_label


def _truncate_previous(start: Tokens, sink: int, text_window: int) -> Tokens:
    """The opening with its previous-text turn cut to `sink` + `text_window` tokens; what is cut is in the middle of its
    words."""
    if sink == text_window == 0:
        return start
    if sink < PREVIOUS_HEAD or text_window < TURN_END:
        expected = f"at least {PREVIOUS_HEAD} and {TURN_END} tokens (the turn's markup), or 0 and 0"
        raise InputError("sink and text_window", f"{sink} and {text_window}", expected, "512 and 512 are usual")
    system, turn = ([span for span in start.spans if (span.kind is Kind.SYSTEM) == is_system] for is_system in (True, False))
    length, first = total(turn), total(system)
    indices = np.array([index for run in truncate(length, sink, text_window) for index in run])
    # the header is within the sink and the footer within the text window, so only the words get shorter
    spans = [span._replace(length=span.length - (length - len(indices)) * (span.part is Part.BODY)) for span in turn]
    ids = np.concatenate([start.ids[:first], start.ids[first + indices]])
    return Tokens(ids, (*system, *(span for span in spans if span.length)))


def _reply(text: str, number: int, tokenizer: Tokenizer, config: ModelConfig, *, separate_header: bool) -> Tokens:
    chat = family_of(config).chat
    header, body = chat.header("assistant"), f"{text}{chat.footer}"
    texts = [header, body] if separate_header else [header + body]
    ids = [token for part in texts for token in tokenizer.encode(part, add_special_tokens=False)]
    lengths = {Part.HEAD: TURN_HEAD, Part.BODY: len(ids) - TURN_HEAD - REPLY_TAIL, Part.TAIL: REPLY_TAIL}
    spans = (Span(Kind.REPLY, length, number, part=part) for part, length in lengths.items() if length)
    return Tokens(np.array(ids, np.int32), tuple(spans))


def _content(record: Any, turn: int, role: str, source: str) -> list:
    if not isinstance(record, list) or len(record) != 2:
        got = f"a list of {len(record)}" if isinstance(record, list) else type(record).__name__
        raise InputError(source, got, "a list of two turns, user and assistant", _REMEDY)
    field = f"{source} [{turn}]"
    if not isinstance(record[turn], dict):
        raise InputError(field, type(record[turn]).__name__, f"the {role}'s turn, an object", _REMEDY)
    if (got := _get(record[turn], "role", str, field)) != role:
        raise InputError(f"{field}.role", repr(got), repr(role), _REMEDY)
    return _get(record[turn], "content", list, field)


def _element(content: list, turn: int, index: int, kind: str, source: str) -> dict:
    field = f"{source} [{turn}].content[{index}]"
    if len(content) <= index or not isinstance(content[index], dict):
        got = "nothing" if len(content) <= index else type(content[index]).__name__
        raise InputError(field, got, f'an object of type "{kind}"', _REMEDY)
    if (got := _get(content[index], "type", str, field)) != kind:
        raise InputError(f"{field}.type", repr(got), repr(kind), _REMEDY)
    return content[index]


def _get(mapping: dict, key: str, kind: type | None, field: str, default: Any = None) -> Any:
    """mapping[key], of type `kind` (None: any); `default`, unless it is None, where the key is missing."""
    value = mapping.get(key, default)
    if key not in mapping and default is None:
        raise InputError(f"{field}.{key}", "nothing", "this key", _REMEDY)
    if kind is not None and not isinstance(value, kind):
        expected = {str: "a text", list: "a list"}[kind]
        raise InputError(f"{field}.{key}", repr(value)[:40], expected, _REMEDY)
    return value


def _number(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_SECONDS:
        raise InputError(field, repr(value)[:40], "a number of seconds", _REMEDY)
    return value


def _words(entries: list, list_field: str) -> tuple[Word, ...]:
    words: list[Word] = []
    for index, entry in enumerate(entries):
        field = f"{list_field}[{index}]"
        if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[2], str):
            raise InputError(field, repr(entry)[:40], "[start, end, word]", _REMEDY)
        word = Word(_number(entry[0], f"{field}[0]"), _number(entry[1], f"{field}[1]"), plain(entry[2], f"{field}[2]"))
        if word.end < word.start:
            raise InputError(field, f"end {word.end:g} before start {word.start:g}", "start <= end", _REMEDY)
        if words and (word.start < words[-1].start or word.end < words[-1].end):
            got, previous = (f"{each.start:g}-{each.end:g}" for each in (word, words[-1]))
            raise InputError(field, f"{got} after {previous}", "words in order of time", "sort them, or leave the record out")
        words.append(word)
    return tuple(words)


def _questions(entries: list, list_field: str) -> tuple[Question, ...]:
    """Entries are [anything, time, question, answer]."""
    questions = []
    for index, entry in enumerate(entries):
        field = f"{list_field}[{index}]"
        if not isinstance(entry, list) or len(entry) < 4 or not all(isinstance(text, str) for text in entry[2:4]):
            raise InputError(field, repr(entry)[:40], "[.., time, question, answer]", _REMEDY)
        question, answer = (plain(entry[i], f"{field}[{i}]") for i in (2, 3))
        questions.append(Question(_number(entry[1], f"{field}[1]"), question, answer))
    return tuple(questions)
