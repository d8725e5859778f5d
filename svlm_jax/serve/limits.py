"""How much of everything the live page allows: one frozen dataclass. Knows nothing else.

Units: seconds, bytes, pixels; counts of what the name says.
"""

from dataclasses import dataclass

from svlm_jax.errors import InputError


@dataclass(frozen=True)
class Limits:
    """Attributes:
    viewers, viewers_a_stream, sockets_an_address: sockets at a time, in all, on one stream, from one client address.
    message_bytes: largest message of a client; larger ones close the socket at the protocol level (code 1009).
    messages_a_second, burst: of a client, on average and at once; faster ones are not read, they wait in the client.
    mistakes: messages refused before the socket is closed.
    question_chars, address_chars: longest question (or query) and source address.
    questions_waiting: of a stream; one is asked a chunk.
    lines_waiting: messages that a viewer may be behind before he is disconnected.
    slow: seconds that one message may take to be taken by a client before it is disconnected.
    grace: seconds that a stream goes on with nobody watching.
    kept: seconds of captions that are kept for the VTT file; `missed`: captions given to one who comes back.
    ended, ended_kept: streams that have ended and can still be read, and seconds for which.
    hang: seconds without a sign of the engine before /health says that it hangs.
    camera_silence: seconds without a picture before a browser's camera counts as gone.
    camera_bytes, camera_pixels: largest picture of a browser's camera.
    """

    viewers: int = 200
    viewers_a_stream: int = 100
    sockets_an_address: int = 32
    message_bytes: int = 300_000
    messages_a_second: float = 20.0
    burst: int = 40
    mistakes: int = 8
    question_chars: int = 300
    address_chars: int = 500
    questions_waiting: int = 8
    lines_waiting: int = 64
    slow: float = 10.0
    grace: float = 30.0
    kept: float = 6 * 3600.0
    missed: int = 300
    ended: int = 16
    ended_kept: float = 600.0
    hang: float = 60.0
    camera_silence: float = 15.0
    camera_bytes: int = 250_000
    camera_pixels: int = 1920 * 1080

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise InputError(name, value, "more than 0", "raise it")
