"""Every limit of the live page in one frozen dataclass. Knows nothing else.

Units: seconds, bytes, pixels; otherwise counts.
"""

from dataclasses import dataclass

from svlm_jax.errors import InputError

EXTRA_CONNECTIONS, EXTRA_CONNECTIONS_PER_ADDRESS = 200, 32  # beyond the sockets of viewers


@dataclass(frozen=True)
class Limits:
    """Attributes:
    max_viewers, max_viewers_per_stream, max_viewers_per_address: open sockets: in all, on one stream, from one client address.
        Connections also serve pages and may say nothing; EXTRA_CONNECTIONS and EXTRA_CONNECTIONS_PER_ADDRESS more are allowed.
    request_timeout, response_timeout: to receive a complete request, and to send its response, before the connection is closed.
    first_message_timeout: for a new socket to send its first message.
    ping_interval: between two pings, and for the answer to one.
    control_frames_per_second: pings and pongs of a client, ten times that at once; a socket that sends more is closed.
    max_message_bytes: of a client's message, with an image of `max_image_bytes` in base64; a larger one closes the socket with
        code 1009.
    messages_per_second, message_burst: of a client, on average and at once; faster ones stay unread in the client.
    bytes_per_second: of messages of a client, two of the largest at once; faster ones stay unread in the client.
    joins_per_second: starts, joins, stops and changes of settings of a client, three at once; faster ones stay unread.
    wrong_token_delay: before a wrong token is answered.
    max_invalid_messages: in a row, before the socket is closed.
    max_question_chars, max_address_chars: of a question or query, and of a source address.
    max_queued_questions: of a stream; each chunk takes one.
    max_queued_messages: to a viewer; one who is further behind is disconnected.
    send_timeout: for a client to accept one message before it is disconnected.
    max_waiting_frames, max_kept_replies: of a stream that is used over HTTP: requests that wait at a time, and replies that
        wait for the next of them.
    max_logged_events: of all streams, for clients that come back to server-sent events, and for webhooks.
    unwatched_timeout: after which a stream without viewers ends.
    history_seconds: of captions kept for the VTT file.
    max_missed_captions: sent to a viewer who comes back.
    max_ended_streams, ended_stream_ttl: ended streams whose captions can still be read, and for how long.
    hang_timeout: without a sign of life of the engine before /health reports that it hangs.
    camera_timeout: without an image before a client's camera counts as gone.
    max_image_bytes, max_image_pixels, max_image_scans: of an image that a client sends; scans: passes over a JPEG.
    """

    max_viewers: int = 200
    max_viewers_per_stream: int = 100
    max_viewers_per_address: int = 32
    request_timeout: float = 10.0
    response_timeout: float = 60.0
    first_message_timeout: float = 30.0
    ping_interval: float = 20.0
    control_frames_per_second: float = 5.0
    max_message_bytes: int = 1_400_000
    messages_per_second: float = 20.0
    message_burst: int = 40
    bytes_per_second: float = 3e6
    joins_per_second: float = 1.0
    wrong_token_delay: float = 1.0
    max_invalid_messages: int = 8
    max_question_chars: int = 300
    max_address_chars: int = 500
    max_queued_questions: int = 8
    max_queued_messages: int = 600
    send_timeout: float = 10.0
    max_waiting_frames: int = 4
    max_kept_replies: int = 300
    max_logged_events: int = 10_000
    unwatched_timeout: float = 30.0
    history_seconds: float = 6 * 3600.0
    max_missed_captions: int = 300
    max_ended_streams: int = 16
    ended_stream_ttl: float = 600.0
    hang_timeout: float = 60.0
    camera_timeout: float = 15.0
    max_image_bytes: int = 1_000_000
    max_image_pixels: int = 1920 * 1080
    max_image_scans: int = 20

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise InputError(name, value, "more than 0", "raise it")

    @property
    def max_connections(self) -> int:
        """Open connections in all, sockets included."""
        return self.max_viewers + EXTRA_CONNECTIONS

    @property
    def max_connections_per_address(self) -> int:
        """Open connections from one client address, sockets included."""
        return self.max_viewers_per_address + EXTRA_CONNECTIONS_PER_ADDRESS
