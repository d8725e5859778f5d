"""What it will cost to ask a chat model, before it is asked. Host side, never jax."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from svlm_jax.remote.chat_client import CHARACTERS_PER_TOKEN, ChatClient, approximate_tokens


class Estimate(NamedTuple):
    """requests to the server and their tokens, about; cached: requests that are answered already. Second requests, after an
    answer that is not as asked, are not in it."""

    requests: int
    cached: int
    tokens_in: int
    tokens_out: int

    def cost(self, price_in: float, price_out: float) -> float:
        """Prices: of a million tokens."""
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6


def estimate(client: ChatClient, questions: Iterable[tuple[Sequence[Mapping[str, Any]], int]], **parameters: Any) -> Estimate:
    """
    Args:
        questions: (messages, tokens of the answer) each.
        parameters: with which each is asked.
    """
    schema_tokens = len(str(parameters.get("response_format", ""))) // CHARACTERS_PER_TOKEN
    requests = cached = tokens_in = tokens_out = 0
    for messages, answer_tokens in questions:
        if client.is_cached(messages, **parameters):
            cached += 1
            continue
        requests += 1
        tokens_in += approximate_tokens(messages) + schema_tokens
        tokens_out += answer_tokens
    return Estimate(requests, cached, tokens_in, tokens_out)
