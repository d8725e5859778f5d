"""When a stream speaks, beside what its model wants: pacing, and alert mode. What the `Runner` asks for each stream and chunk.

Owns what they need to know of the stream so far. Host side. Units: seconds of the video, tokens.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from svlm_jax.config import StreamConfig
from svlm_jax.decode.choice import Choice
from svlm_jax.errors import InputError, shortened
from svlm_jax.families.chat import plain, question_text, user_turn
from svlm_jax.spans import Kind, total
from svlm_jax.stream.alerts import AlertRule, AlertState, parse_description
from svlm_jax.stream.events import Alert, Caption, Event
from svlm_jax.stream.pacing import Talk, talk_after
from svlm_jax.stream.sequence import Chunk, StreamSequence
from svlm_jax.stream.stream_settings import DEFAULT_SETTINGS
from svlm_jax.stream.turn_tokenizer import MAX_SECONDS, TurnTokenizer

ALERT_WINDOW = 4  # chunks of frames, and questions, that a stream in alert mode retains at most


class Speaking:
    """Of one stream. `Runner` calls, for each chunk in this order: `follow`, `chunk`, `forced_ids`, `after`."""

    def __init__(self, turns: TurnTokenizer) -> None:
        self.turns = turns
        self.settings, self.max_new_tokens = DEFAULT_SETTINGS, 0
        self.choice: Choice | None = None  # of the rule
        self.alert, self.probability = AlertState(), 0.0
        self.talk: Talk | None = None
        self.begins_with_newline = False  # replies of this model, as the newest one with words did

    @property
    def rule(self) -> AlertRule | None:
        return self.settings.alert

    def follow(self, seq: StreamSequence) -> "Speaking":
        """Go by the settings that a stream has now. Another rule begins anew."""
        if seq.settings is not self.settings:
            rule, self.settings, self.max_new_tokens = self.rule, seq.settings, seq.config.max_new_tokens
            self.choice = None if self.rule is None else choice_of(self.rule, self.turns, self.max_new_tokens)
            self.alert = self.alert if self.rule == rule else AlertState()
        return self

    def chunk(self, chunk: Chunk) -> Chunk:
        """The chunk with the question of the rule, unless somebody has asked another one."""
        if self.rule is None or chunk.question:
            return chunk
        if self.alert.describes:
            return chunk._replace(question=self.rule.json_question)
        return chunk._replace(question=self.rule.question, choice=self.choice)

    def asks(self, chunk: Chunk) -> bool:
        """Whether the question of a chunk is the rule's: its reply is no commentary, and answers nobody else."""
        is_description = self.rule is not None and self.alert.describes and chunk.question == self.rule.json_question
        return chunk.choice is not None or is_description

    def forced_ids(self, chunk: Chunk) -> Int32[np.ndarray, " r"] | None:
        """The reply of a chunk that must be silent: what the model would say itself, so that it goes on from its own silence.
        None: it may speak."""
        if chunk.question or self.talk is None or not self.talk.must_pause(self.settings.pacing, chunk.start, chunk.end):
            return None
        turns = self.turns
        newline = turns.newline[-1:] if self.begins_with_newline else turns.newline[:0]
        ids = np.concatenate([newline, np.array([turns.silence, turns.end_of_turn], np.int32)])
        return ids[: self.max_new_tokens]

    def after(self, caption: Caption, chunk: Chunk) -> list[Event]:
        """The caption of a chunk as it is told, and what it changes."""
        if self.rule is not None and self.asks(chunk):
            alerts = (
                self._description_alerts(caption, self.rule)
                if self.alert.describes
                else self._answer_alerts(caption, self.rule)
            )
            return [replace(caption, text="", question="", answer=""), *alerts]
        if caption.text:
            self.talk = talk_after(self.talk, caption.start, caption.end)
            if len(caption.tokens) and not caption.question:
                self.begins_with_newline = int(caption.tokens[0]) == int(self.turns.newline[-1])
        return [caption]

    def _answer_alerts(self, caption: Caption, rule: AlertRule) -> list[Alert]:
        assert self.choice is not None
        self.probability = caption.probability or 0.0
        yes = {ids[0] for ids in self.choice.answers[: self.choice.num_yes]}
        before, self.alert = self.alert, self.alert.answered(rule, int(caption.tokens[0]) in yes)
        return [self._event(caption, rule)] if self.alert.on != before.on else []

    def _description_alerts(self, caption: Caption, rule: AlertRule) -> list[Alert]:
        assert rule.schema is not None
        self.alert = self.alert._replace(describes=False)
        data, error = parse_description(caption.text, rule.schema)
        return [replace(self._event(caption, rule), data=data, error=error)]

    def _event(self, caption: Caption, rule: AlertRule) -> Alert:
        span = {"stream": caption.stream, "start": caption.start, "end": caption.end}
        return Alert(**span, name=rule.title, state=self.alert.on, probability=self.probability, text=caption.text)

    def state(self) -> dict[str, Any]:
        """As JSON, for a saved stream."""
        return {"talk": self.talk, "newline": self.begins_with_newline, "alert": self.alert, "yes": self.probability}

    def restore(self, saved: Mapping[str, Any], stream: str, path: str | Path) -> None:
        """Go on from what `state` gave, as the extra of a state file has it; after `follow`. Older files have none.

        Raises:
            InputError: no release writes such a state.
        """
        try:
            state = saved.get("speaking", {}).get(stream)
            if state is None:
                return
            self.talk = None if state["talk"] is None else Talk(*map(float, state["talk"]))
            self.begins_with_newline, self.probability = bool(state["newline"]), float(state["yes"])
            on, against, describes = state["alert"]
            describes = bool(describes) and self.rule is not None and self.rule.schema is not None
            self.alert = AlertState(bool(on), int(against), describes)
        except (AttributeError, KeyError, TypeError, ValueError):
            got = "when streams have spoken, of another form"
            raise InputError(shortened(path), got, "a state that a runner has saved", "begin the stream anew") from None


def choice_of(rule: AlertRule, turns: TurnTokenizer, max_new_tokens: int) -> Choice:
    """The answers of a rule as replies.

    Raises:
        InputError: two answers that begin with the same token, one longer than a reply, special tokens.
    """
    answers: dict[int, tuple[int, ...]] = {}
    for text in (*rule.yes, *rule.no):
        ids = (*turns.tokenizer.encode(plain(text, "alert answer"), add_special_tokens=False), turns.end_of_turn)
        if len(ids) > max_new_tokens:
            got, expected = f"{text!r:.40}, {len(ids)} tokens", f"at most {max_new_tokens} (max_new_tokens)"
            raise InputError("alert answer", got, expected, "shorten it")
        if ids[0] in answers:
            got, expected = f"{text!r:.40}, which begins as another one", "answers whose first tokens differ"
            raise InputError("alert answer", got, expected, "say it in other words")
        answers[ids[0]] = ids
    return Choice(tuple(answers.values()), len(rule.yes), rule.threshold)


def alert_config(rule: AlertRule, config: StreamConfig, turns: TurnTokenizer) -> StreamConfig:
    """Windows of a stream in alert mode: at most ALERT_WINDOW chunks, and as few that their questions always have room
    (`question_tokens`), however long the stream plays. A request for JSON may be among them.

    Raises:
        InputError: a question for which there is no room even alone.
    """
    question, longest = _length(rule.question, turns), _length(rule.question, turns)
    if rule.schema is not None:
        longest = max(question, _length(rule.json_question, turns))
    if longest > config.question_tokens and config.bounded:
        got, expected = f"{longest} tokens", f"at most {config.question_tokens} (question_tokens)"
        raise InputError("alert question", got, expected, "shorten it, or its schema")
    chunks = 1 + (config.question_tokens - longest) // max(question, 1)
    if config.mode == "window":
        return replace(config, window_chunks=min(config.window_chunks, chunks))
    window = min(ALERT_WINDOW, chunks)
    rounds, vision = min(config.text_rounds, window), min(config.vision_window, window)
    return replace(config, text_rounds=rounds, vision_window=vision)


def _length(question: str, turns: TurnTokenizer) -> int:
    """Tokens that a question adds to a turn, as the room for questions counts them."""
    text = question_text(question)
    turn = user_turn(MAX_SECONDS, MAX_SECONDS, (1, 2, 2), 1.0, turns.tokenizer, turns.config, question=text)
    return total(span for span in turn.spans if span.kind == Kind.USER_TEXT) - turns.max_plain_text
