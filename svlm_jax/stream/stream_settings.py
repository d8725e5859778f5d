"""What one stream of a batch may choose for itself, and what of it may change while it plays.

Owns the fields. What a session has programs and slots for is decided in `admission`. Knows no device.
"""

from dataclasses import dataclass

from svlm_jax.config import StreamConfig
from svlm_jax.decode.sampling import Sampling
from svlm_jax.families.chat import Tokens
from svlm_jax.stream.alerts import AlertRule
from svlm_jax.stream.pacing import NO_PACING, Pacing


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """How one stream watches and speaks; None is what its session does.

    Attributes:
        query: what is asked for, in its first turn.
        previous: the text that came before, or the turns with which the stream begins.
        seed: of its random numbers.
        config: its windows, mode and frames a second, where the session has slots and programs for them.
        sampling: how its tokens are chosen.
        max_new_tokens: its longest reply; that of `config` by default.
        pacing: how often and how long it may speak.
        alert: a condition that it is asked in each chunk.
    """

    query: str = ""
    previous: str | Tokens | None = None
    seed: int = 0
    config: StreamConfig | None = None
    sampling: Sampling | None = None
    max_new_tokens: int | None = None
    pacing: Pacing = NO_PACING
    alert: AlertRule | None = None


DEFAULT_SETTINGS = StreamSettings()
