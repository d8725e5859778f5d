"""h11's parser of requests, with bounds on what a request may cost to parse. h11 comes with uvicorn, which is an extra: import
this module where uvicorn is.

Owns these bounds. h11 makes an object of every header field and of every chunk of a body, and Starlette one of every "&" in an
address: a few hundred kilobytes of them would keep the event loop busy for seconds.
"""

from typing import Any

import h11

PARSE_BYTES = 2048  # that are parsed at a time, unless the length of a body is known
MAX_HEAD_BYTES = 16_384  # of a request, with all its fields
MAX_HEAD_LINES = 128
MAX_TARGET_BYTES = 4096  # of the address in it
CHUNK_ALLOWANCE, MIN_CHUNK_BYTES = 512, 256  # chunks of a body that may be tiny, and what the others have on average


class RequestParser(h11.Connection):
    """The parser of one connection. Its `next_event` raises h11.RemoteProtocolError: no HTTP, or a request out of bounds.

    Attributes:
        refusal: why a request was refused here; "": it was not.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self.refusal = ""
        self.num_lines = self.num_chunks = self.num_bytes = self.length = 0

    @property
    def is_ready(self) -> bool:
        """Whether it takes bytes: not while a complete request waits for its response."""
        return self.their_state in (h11.IDLE, h11.SEND_BODY)

    @property
    def part_size(self) -> int:
        """Bytes that it should be given at a time: the rest of a body whose length is known, of anything else a little."""
        return max(PARSE_BYTES, self.length - self.num_bytes) if self.their_state is h11.SEND_BODY else PARSE_BYTES

    def receive_data(self, data: bytes) -> None:
        if self.their_state is h11.IDLE:
            self.num_lines += data.count(b"\n")  # those of a body that follows do not matter: `next_event`
        super().receive_data(data)

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._check_head(event)
        elif isinstance(event, h11.Data):
            self.num_chunks += event.chunk_start
            self.num_bytes += len(event.data)
            if self.num_chunks > CHUNK_ALLOWANCE + self.num_bytes // MIN_CHUNK_BYTES:
                self._refuse(f"a body of more than {CHUNK_ALLOWANCE} tiny chunks")
        elif event is h11.NEED_DATA and self.their_state is h11.IDLE and self.num_lines > MAX_HEAD_LINES:
            self._refuse(f"more than {MAX_HEAD_LINES} lines before its body")
        return event

    def _check_head(self, request: h11.Request) -> None:
        fields = dict(request.headers)
        self.num_lines = self.num_chunks = self.num_bytes = 0
        self.length = int(fields.get(b"content-length", b"0"))
        if len(request.headers) > MAX_HEAD_LINES:
            self._refuse(f"more than {MAX_HEAD_LINES} header fields")
        if len(request.target) > MAX_TARGET_BYTES:
            self._refuse(f"an address of more than {MAX_TARGET_BYTES} bytes")
        if b"transfer-encoding" in fields and b"content-length" in fields:
            # a proxy that believes the other one would take the rest of the body for a request (request smuggling)
            self._refuse("two lengths of its body")

    def _refuse(self, reason: str) -> None:
        self.refusal = f"request: {reason}"
        raise h11.RemoteProtocolError(self.refusal)
