"""How much of everything the live page allows: one frozen dataclass. Knows nothing else.

Units: seconds, bytes, pixels; counts of what the name says.
"""

from dataclasses import dataclass

from svlm_jax.errors import InputError

ROOM, ROOM_AN_ADDRESS = 200, 32  # connections beside the sockets of viewers


@dataclass(frozen=True)
class Limits:
    """Attributes:
    viewers, viewers_a_stream, sockets_an_address: sockets at a time, in all, on one stream, from one client address.
        Of connections, which also are pages being loaded and such as say nothing, there may be ROOM and ROOM_AN_ADDRESS more.
    request, answer: seconds for a whole request to come, and for its answer to be taken, before a connection is dropped.
    first_message: seconds for a socket to say anything; ping: between two pings, and for one to be answered.
    controls_a_second: pings and pongs of a client, ten times that at once; of more the socket is dropped.
    message_bytes: largest message of a client; larger ones close the socket at the protocol level (code 1009).
    messages_a_second, burst: of a client, on average and at once; faster ones are not read, they wait in the client.
    joins_a_second: starts, joins and stops of a client, three at once; like messages, faster ones wait in the client.
    wrong_token: seconds before a wrong token is answered.
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
    camera_bytes, camera_pixels, camera_scans: largest picture of a browser's camera; passes over a JPEG.
    """

    viewers: int = 200
    viewers_a_stream: int = 100
    sockets_an_address: int = 32
    request: float = 10.0
    answer: float = 60.0
    first_message: float = 30.0
    ping: float = 20.0
    controls_a_second: float = 5.0
    message_bytes: int = 300_000
    messages_a_second: float = 20.0
    burst: int = 40
    joins_a_second: float = 1.0
    wrong_token: float = 1.0
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
    camera_scans: int = 20

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise InputError(name, value, "more than 0", "raise it")

    @property
    def connections(self) -> int:
        """At a time, in all."""
        return self.viewers + ROOM

    @property
    def connections_an_address(self) -> int:
        """At a time, from one client address."""
        return self.sockets_an_address + ROOM_AN_ADDRESS
