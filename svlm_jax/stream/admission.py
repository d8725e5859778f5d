"""Which settings a stream may have in a session: those for which it has programs and slots. Others are one line.

A session compiles its programs and allocates its cache for one config, that of most streams. A stream may have windows, a mode,
a frame rate and sampling of its own as long as no array becomes larger than the session's: its slots are as many or fewer, its
chunks have as many frames or fewer, its replies are as long or shorter. Host code. Units: lengths in tokens, windows in chunks.
"""

from dataclasses import fields, replace
from typing import NamedTuple

from svlm_jax.config import StreamConfig
from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.families.chat import Tokens, plain, user_turn
from svlm_jax.spans import Kind, Span, total
from svlm_jax.stream import policy
from svlm_jax.stream.alerts import AlertRule
from svlm_jax.stream.sequence import StreamSequence, new_stream
from svlm_jax.stream.sizes import ChunkSize, chunk_sizes
from svlm_jax.stream.speaking import alert_config, choice_of
from svlm_jax.stream.stream_settings import StreamSettings
from svlm_jax.stream.turn_tokenizer import MAX_SECONDS, TurnTokenizer, longest_turn, opening_of

GROWTH_CHUNKS = 64  # by which the cache of a mode without bound grows
# Of a config, what a stream can change while it plays; the rest says what its frames, its turns or its positions are.
CHANGEABLE = {"vision_window", "text_rounds", "sink", "text_window", "window_chunks"}
CHANGEABLE |= {"max_new_tokens", "cut_reply", "question_after_frames"}


class Admission(NamedTuple):
    """What a session has: its config and sampling (of streams that have none of their own), the sizes of its chunks, what its
    programs can choose from, how streams begin that have no previous text of their own, and slots a stream."""

    config: StreamConfig
    sampling: Sampling
    turns: TurnTokenizer
    sizes: tuple[ChunkSize, ...]
    max_top_k: int
    silence_rule: bool
    choices: bool
    opening: Tokens
    capacity: int

    def new_stream(self, settings: StreamSettings) -> StreamSequence:
        """A stream before its first chunk.

        Raises:
            InputError: a query or previous text that is too long or holds special tokens, a seed that is no 32 bits; sampling,
                windows or a reply length that the session has no program or no slots for.
        """
        config, sampling = self._in_force(settings)
        previous, opening = settings.previous, self.opening
        if previous is not None or config.previous_text_turn != self.config.previous_text_turn:
            opening = opening_of(previous or "", config, self.turns)
        self._check(settings, config, sampling, opening)
        return new_stream(opening, replace(settings, previous=None), config, sampling)

    def changed(self, seq: StreamSequence, settings: StreamSettings) -> StreamSequence:
        """A stream as it goes on with other settings. Its next chunk is the first that they hold for; the query stands in the
        first turn, so another one is seen when the stream restarts.

        Raises:
            InputError: as `new_stream`; or what cannot change while a stream plays.
        """
        config, sampling = self._in_force(settings)
        for field in fields(StreamConfig):
            old, new = getattr(seq.config, field.name), getattr(config, field.name)
            if old != new and field.name not in CHANGEABLE:
                raise InputError(f"{field.name} of a stream", new, f"{old}, while it plays", "start another stream")
        if settings.previous is not None:
            opening = opening_of(settings.previous, config, self.turns)
            if opening.ids.tolist() != seq.opening.ids.tolist():
                raise InputError("previous text", "another", "none, while a stream plays", "start another stream")
        self._check(settings, config, sampling, seq.opening)
        return seq._replace(settings=replace(settings, previous=None), config=config, sampling=sampling)

    def resumed(self, settings: StreamSettings, opening: Tokens) -> tuple[StreamConfig, Sampling]:
        """The config and sampling of a stream that has begun with that opening.

        Raises:
            InputError: as `new_stream`.
        """
        config, sampling = self._in_force(settings)
        self._check(settings, config, sampling, opening)
        return config, sampling

    def slots_for(self, config: StreamConfig, opening: Tokens) -> int:
        """Slots that a stream needs, whatever comes."""
        longest, first = self.longest_turns(config)
        return policy.capacity(config, opening.spans, longest, GROWTH_CHUNKS, first)

    def longest_turns(self, config: StreamConfig) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
        """Spans of the longest user turn of a stream without a question, and of its longest first turn."""
        tokenizer, model = self.turns.tokenizer, self.turns.config
        sizes = self._sizes_of(config)
        longest, first = (longest_turn(size.grid, tokenizer, model) for size in (sizes[0], sizes[-1]))
        return longest, first

    def _in_force(self, settings: StreamSettings) -> tuple[StreamConfig, Sampling]:
        """The config of a stream, with its own longest reply, and its sampling."""
        config = self.config if settings.config is None else settings.config
        if settings.alert is not None:
            config = alert_config(settings.alert, config, self.turns)
        if settings.max_new_tokens is not None:
            check_reply_length(settings.max_new_tokens, self.config)
            config = replace(config, max_new_tokens=settings.max_new_tokens)
        return config, self.sampling if settings.sampling is None else settings.sampling

    def _check(self, settings: StreamSettings, config: StreamConfig, sampling: Sampling, opening: Tokens) -> None:
        check_reply_length(config.max_new_tokens, self.config)
        self._check_sampling(sampling)
        self._check_programs(config)
        check_query(settings.query, config, self.turns)
        if settings.alert is not None:
            self._check_alert(settings.alert, config)
        self._check_slots(settings, config, opening)
        if not 0 <= settings.seed < 2**32:
            raise InputError("seed", settings.seed, "0 to 4294967295", "choose another")

    def _check_alert(self, rule: AlertRule, config: StreamConfig) -> None:
        if not self.choices:
            remedy = "make the session with choices=True"
            raise InputError("alert of a stream", f"{rule.question:.40}", "none in this session", remedy)
        choice_of(rule, self.turns, config.max_new_tokens)

    def _check_sampling(self, sampling: Sampling) -> None:
        if sampling.silence_rule and not self.silence_rule:
            name = "silence" if sampling.silence is not None else "silence_threshold"
            remedy = "make the session with silence_rule=True"
            raise InputError(f"{name} of a stream", getattr(sampling, name), "none in this session", remedy)
        # Greedy streams do not use their top_k.
        if sampling.temperature > 0 and self.max_top_k and not 0 < sampling.top_k <= self.max_top_k:
            got = sampling.top_k or "0 (the whole vocabulary)"
            remedy = "choose a smaller one, or make the session with a larger max_top_k (0: the whole vocabulary)"
            raise InputError("top_k of a stream", got, f"1 to {self.max_top_k} (max_top_k of the session)", remedy)
        vocabulary = self.turns.config.text.vocab_size
        for token in sampling.suppressed:
            if not 0 <= token < vocabulary:
                raise InputError("suppressed ids of a stream", token, f"ids from 0 to {vocabulary - 1}", "leave it out")

    def _check_programs(self, config: StreamConfig) -> None:
        """Refuse a config for which other programs would have to be compiled, while everybody waits."""
        base = self.config
        if (config.mode == "recompute") != (base.mode == "recompute"):
            raise InputError("mode of a stream", config.mode, f"{base.mode}, as of the session", "make a session for it")
        if base.bounded and not config.bounded:
            got = f"{config.mode}, without a bound" if config.mode == "full" else "streaming without sink and text_window"
            raise InputError("mode of a stream", got, "one with a bound, as of the session", "set its windows")
        largest, own = self.sizes[-1], self._sizes_of(config)[-1]
        for name, frames, limit in (
            ("fps of a stream", config.chunk_frames, base.chunk_frames),
            ("first_chunk_seconds of a stream", config.first_chunk_frames, max(base.chunk_frames, base.first_chunk_frames)),
        ):
            if frames > limit:
                raise InputError(name, f"{frames} frames a chunk", f"at most {limit}, as of the session", "lower it")
        if own.max_patches > largest.max_patches:  # of a mode that computes them again
            got, expected = f"{config.vision_window}", f"at most {base.vision_window}, as of the session"
            raise InputError("vision_window of a stream", got, expected, "shorten it")

    def _check_slots(self, settings: StreamSettings, config: StreamConfig, opening: Tokens) -> None:
        if not self.config.bounded or (slots := self.slots_for(config, opening)) <= self.capacity:
            return
        expected = f"{self.capacity} slots"
        if settings.config is None or self.slots_for(self.config, opening) > self.capacity:
            got = f"{len(opening.ids)} tokens, with which the stream needs {slots} slots"
            raise InputError("previous text", got, expected, "shorten it, or give it to the session")
        windows = f"vision_window {config.vision_window}, text_rounds {config.text_rounds}"
        got = f"windows that need {slots} slots ({windows}, {config.mode})"
        raise InputError("config of a stream", got, f"at most {expected}, as of the session", "shorten them")

    def _sizes_of(self, config: StreamConfig) -> tuple[ChunkSize, ...]:
        """The sizes of the chunks of a stream: frames of the session's size, but not as many."""
        base, vision = self.config, self.turns.config.vision
        timing = (config.chunk_frames, config.first_chunk_frames)
        if timing == (base.chunk_frames, base.first_chunk_frames) and config.mode != "recompute":
            return self.sizes
        (t, h, w), box = self.sizes[0].grid, self.sizes[0].box
        if config.chunk_frames != base.chunk_frames:
            t = config.chunk_frames // vision.temporal_patch_size
        return chunk_sizes(config, (t, h, w), vision, box)


def check_query(query: str, config: StreamConfig, turns: TurnTokenizer) -> None:
    """Refuse what cannot stand in the first turn of a stream: special tokens, or more tokens than there is room for.

    Raises:
        InputError: in a line that names the query.
    """
    text = plain(query, "query")
    turn = user_turn(MAX_SECONDS, MAX_SECONDS, (1, 2, 2), 1.0, turns.tokenizer, turns.config, query=text)
    length = total(span for span in turn.spans if span.kind == Kind.USER_TEXT) - turns.max_plain_text
    if config.bounded and length > config.question_tokens:
        got, expected = f"{length} tokens", f"at most {config.question_tokens} (question_tokens)"
        raise InputError("query", got, expected, "shorten it")


def check_reply_length(max_new_tokens: int, config: StreamConfig) -> None:
    """Refuse a longest reply of a stream that is longer than the session's."""
    if not 1 <= max_new_tokens <= config.max_new_tokens:
        expected = f"1 to {config.max_new_tokens} (max_new_tokens of the session)"
        remedy = "choose a smaller one, or make the session with a larger one"
        raise InputError("max_new_tokens of a stream", max_new_tokens, expected, remedy)
