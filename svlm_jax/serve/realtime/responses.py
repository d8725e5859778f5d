"""The replies of one stream as responses of OpenAI's Realtime API: which events follow each report of the engine.

Owns the order of these events and their ids. Every event is encoded once, for all who watch the stream. Knows no socket.
docs/realtime.md shows one reply event by event.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from svlm_jax.serve.engine.reports import ChunkReport, ReplyDelta, ReplyStarted, Unanswered
from svlm_jax.serve.realtime.server_events import assistant_item, encode

REASONS = {"cancelled": "client_cancelled", "incomplete": "max_output_tokens"}
STREAM_ENDED = {"type": "invalid_request_error", "code": "stream_ended", "message": "the stream has ended"}
STATUS = {"stop": "completed", "length": "incomplete", "cancelled": "cancelled"}  # by ChunkReport.finish


@dataclass
class OpenResponse:
    """A reply that is being written. text: what was sent of it; svlm: our fields of the response."""

    response_id: str
    item_id: str
    svlm: dict[str, Any]
    metadata: dict[str, str] | None = None
    text: str = ""

    @property
    def text_fields(self) -> dict[str, Any]:
        """Fields of every event about its text: where it belongs."""
        return {"response_id": self.response_id, "item_id": self.item_id, "output_index": 0, "content_index": 0}


class Responses:
    """Call `on_report` with each report of a stream, in order; it returns the events to send."""

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.open: OpenResponse | None = None
        self.metadata: dict[str, dict[str, str]] = {}  # by request_id, of requests that wait
        self.last_item: str | None = None
        self.num_unanswered = 0

    def on_report(self, report: ReplyStarted | ReplyDelta | ChunkReport | Unanswered) -> list[str]:
        match report:
            case ReplyStarted():
                return self._start(report)
            case ReplyDelta():
                return self._delta(report.text, report.chosen_at)
            case ChunkReport():
                return self._finish(report)
            case Unanswered():
                return self._unanswered(report)

    def on_ended(self) -> list[str]:
        """The stream has ended: a reply that was being written was cut off."""
        return self._close(self.open, "failed", error=STREAM_ENDED) if self.open is not None else []

    def _start(self, report: ReplyStarted | ChunkReport) -> list[str]:
        response = self._new(report)
        self.open = response
        item = assistant_item(response.item_id, "in_progress", None)
        previous, self.last_item = self.last_item, response.item_id
        return [
            self._created(response),
            encode("response.output_item.added", response_id=response.response_id, output_index=0, item=item),
            encode("conversation.item.added", previous_item_id=previous, item=item),
            encode("response.content_part.added", **response.text_fields, part={"type": "text", "text": ""}),
        ]

    def _new(self, report: ReplyStarted | ChunkReport) -> OpenResponse:
        number, request_id = report.number, report.request_id
        svlm: dict[str, Any] = {"stream": self.stream, "number": number, "start": report.start, "end": report.end}
        svlm["kind"] = "answer" if report.question else "commentary"
        if report.question:
            svlm["question"] = report.question
        if request_id:
            svlm["request_id"] = request_id
        name = f"{self.stream}_{number}"
        return OpenResponse(f"resp_{name}", f"item_{name}", svlm, self.metadata.pop(request_id, None))

    def _created(self, response: OpenResponse) -> str:
        return encode("response.created", response=_response(response, "in_progress"))

    def _delta(self, text: str, chosen_at: float | None = None) -> list[str]:
        """chosen_at: of the server's monotonic clock, from which a client of the same machine can tell the delay."""
        response = self.open
        if response is None:
            return []
        response.text += text
        stamp = {} if chosen_at is None else {"svlm": {"chosen_at": round(chosen_at, 6)}}
        return [encode("response.output_text.delta", **response.text_fields, delta=text, **stamp)]

    def _finish(self, report: ChunkReport) -> list[str]:
        events: list[str] = []
        if self.open is None and report.text:
            events += self._start(report)
        if self.open is None:
            if not report.request_id:
                return []  # silence that nobody asked for is no response
            response = self._new(report)
            events.append(self._created(response))
        else:
            response = self.open
            if report.text.startswith(response.text) and (rest := report.text[len(response.text) :]):
                events += self._delta(rest)
        response.svlm["answer"] = report.caption.answer.strip()
        return events + self._close(response, STATUS[report.finish], usage=_usage(report))

    def _close(
        self,
        response: OpenResponse,
        status: str,
        *,
        usage: dict[str, Any] | None = None,
        error: dict[str, str] | None = None,
    ) -> list[str]:
        """The end of a response, and of its item if words of it were sent."""
        events, output = [], []
        if self.open is response:
            self.open, text = None, response.text
            item = assistant_item(response.item_id, "completed" if status == "completed" else "incomplete", text)
            output = [item]
            events = [
                encode("response.output_text.done", **response.text_fields, text=text),
                encode("response.content_part.done", **response.text_fields, part={"type": "text", "text": text}),
                encode("response.output_item.done", response_id=response.response_id, output_index=0, item=item),
                encode("conversation.item.done", previous_item_id=None, item=item),
            ]
        details: dict[str, Any] = {"type": status, **({"reason": REASONS[status]} if status in REASONS else {})}
        details |= {"error": error} if error is not None else {}
        done = _response(response, status, output, status_details=details, usage=usage)
        return [*events, encode("response.done", response=done)]

    def _unanswered(self, report: Unanswered) -> list[str]:
        """A request without a reply is a response without output, so that whoever waits for `response.done` gets one."""
        if self.open is not None and self.open.svlm.get("request_id") == report.request_id:
            return self.on_ended()  # its reply was being written
        self.num_unanswered += 1
        kind, name = "answer" if report.question else "commentary", f"{self.stream}_u{self.num_unanswered}"
        svlm = {"stream": self.stream, "kind": kind, "question": report.question, "request_id": report.request_id}
        response = OpenResponse(f"resp_{name}", f"item_{name}", svlm, self.metadata.pop(report.request_id, None))
        status, error = "failed", STREAM_ENDED
        if report.reason == "cancelled":
            status, error = "cancelled", None
        elif report.error is not None:
            error = {"type": "invalid_request_error", "code": "refused", "message": str(report.error)}
        return [self._created(response), *self._close(response, status, error=error)]


def _response(response: OpenResponse, status: str, output: Iterable[dict[str, Any]] = (), **fields: Any) -> dict[str, Any]:
    return {
        "object": "realtime.response",
        "id": response.response_id,
        "status": status,
        "output": list(output),
        "output_modalities": ["text"],
        "metadata": response.metadata,
        **fields,
        "svlm": response.svlm,
    }


def _usage(report: ChunkReport) -> dict[str, Any]:
    """Tokens that the reply could see, and its own."""
    input_tokens, output_tokens = report.input_tokens, report.output_tokens
    details = {"input_token_details": {"cached_tokens": report.caption.cached_before}}
    details["output_token_details"] = {"text_tokens": output_tokens}
    return {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        **details,
    }
