"""A language model as steps of curation ask it: with a prompt, at temperature 0, for JSON of a schema.

Owns what the editor and the judge have in common: the parameters of a request, how many are under way, and what a failure means
for a video. What they ask and how answers are read is theirs (`curate.editing.llm_editor`, `curate.annealing.llm_live_share`).
Host side, never jax.
"""

from collections.abc import Mapping, Sequence
from threading import BoundedSemaphore
from typing import Any

from svlm_jax.curate.outcome import NotDone
from svlm_jax.remote.chat_client import ChatClient
from svlm_jax.remote.connection import RequestError


def json_parameters(name: str, properties: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a request: temperature 0, and an answer that is an object with these properties, all of them. `ChatClient` leaves out
    what a server refuses."""
    schema = {"name": name, "strict": True, "schema": json_object(properties)}
    return {"temperature": 0.0, "response_format": {"type": "json_schema", "json_schema": schema}}


def json_object(properties: Mapping[str, Any]) -> Mapping[str, Any]:
    """The JSON schema of an object that has these properties and no others; "strict" servers want both said."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


class ModelQuestion:
    """Threads may share it.

    Attributes:
        client: the model.
        parameters: of each request.
    """

    def __init__(self, client: ChatClient, parameters: Mapping[str, Any], concurrency: int) -> None:
        """concurrency: requests at a time; further threads wait."""
        self.client, self.parameters = client, parameters
        self._slots = BoundedSemaphore(concurrency)

    def ask(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The answer.

        Raises:
            NotDone: the server does not answer this request.
            InputError: it will answer none: a refused key, an unknown model, no credit.
        """
        with self._slots:
            try:
                return self.client.complete(messages, **self.parameters).text
            except RequestError as error:
                raise NotDone(f"{self.client.flag}-url: {error}") from None
