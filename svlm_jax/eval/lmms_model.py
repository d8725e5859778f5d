"""A chat model of lmms-eval: its requests to batches of prompts, its replies in the order of the requests.

Owns the calls of lmms-eval's interface (version 0.7.3). Does not know tasks or scores. lmms-eval imports this file by name
(`eval.lmms`), when the model is asked for; nothing else here does. A request of a chat task has the arguments
(context, doc_to_messages, generation_kwargs, doc_id, task, split). Units: tokens.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from lmms_eval.api.instance import GenerationResult, TokenCounts  # pyright: ignore[reportMissingImports]
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from svlm_jax.errors import InputError
from svlm_jax.eval.asking import in_order
from svlm_jax.eval.lmms_messages import chat_turns
from svlm_jax.eval.lmms_settings import HARNESS, ModelArgs, ReplySettings, batch_size_of, reply_settings
from svlm_jax.families.chat import encode
from svlm_jax.inputs import Sample
from svlm_jax.pretrained import Pretrained, from_pretrained

PREFETCH = 2  # batches whose files are read while the model replies


class ChatModel(lmms):
    """A model of this library for lmms-eval. One process, whatever devices it uses: rank 0 of 1.

    What is wrong with a document (no such video) is an InputError that names its task and number: no answer is made up for it.
    """

    is_simple = False

    def __init__(self, batch_size: Any = 1, vlm: Pretrained | None = None, **model_args: Any) -> None:
        """Args:
            vlm: a model that is loaded already.
            model_args: of `ModelArgs`; and max_batch_size and device of lmms-eval, which change nothing: the device is jax's.

        Raises:
            InputError: a name or value that is wrong, or a model that does not load.
        """
        super().__init__()
        self.batch_size = batch_size_of(batch_size)
        self.args = ModelArgs.parse({name: value for name, value in model_args.items() if name not in HARNESS})
        self.vlm = vlm or from_pretrained(self.args.pretrained, **self.args.loading())
        self._notes: set[str] = set()

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """A `GenerationResult` for each request, in order."""
        results: list[Any] = [None] * len(requests)
        with tqdm(total=len(requests), desc="documents", disable=self.rank != 0) as progress:
            for (settings, messages), prompts in in_order(self._batches(requests), self._encode_batch(requests), PREFETCH):
                batch = prompts.result()
                replies = self._replies(requests, batch, settings, [(number, 0) for number in batch])
                for number, reply in zip(messages, replies, strict=True):
                    results[number] = reply
                    self._remember("generate_until", requests[number], reply.text)
                progress.update(len(batch))
        return results

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """The replies of all rounds of each request, in order. A round sees what the task puts into it, no round before it."""
        results: list[list[str]] = [[] for _ in requests]
        info: dict[int, Any] = {}  # state of the task, passed from round to round
        with tqdm(total=len(requests), desc="documents of several rounds", disable=self.rank != 0) as progress:
            for numbers, settings in self._groups(requests):
                queue = deque(numbers)
                while queue:
                    batch: dict[int, Sample] = {}
                    while queue and len(batch) < self.batch_size:  # a document that is through makes room for the next
                        number = queue.popleft()
                        prompt, info[number] = self._next_prompt(requests[number], results[number], info.get(number))
                        if prompt is not None:
                            batch[number] = prompt
                            continue
                        self._remember("generate_until_multi_round", requests[number], results[number])
                        progress.update()
                    rounds = [(number, len(results[number])) for number in batch]
                    for number, reply in zip(batch, self._replies(requests, batch, settings, rounds), strict=True):
                        results[number].append(reply.text)
                    queue.extendleft(reversed(batch))
        return results

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not for chat models: lmms-eval refuses such tasks for them before it calls this."""
        raise NotImplementedError("svlm_jax replies in text, without loglikelihood: choose a generate_until task")

    def _groups(self, requests: Sequence[Any]) -> Iterator[tuple[list[int], ReplySettings]]:
        """Numbers of requests with equal settings: those of a batch, so that a short reply does not wait for a long one."""
        groups: dict[ReplySettings, list[int]] = {}
        for number, request in enumerate(requests):
            with _naming([request]):
                settings = reply_settings(request.args[2], self.args, self.vlm.generation, self._notes)
            groups.setdefault(settings, []).append(number)
        return ((numbers, settings) for settings, numbers in groups.items())

    def _batches(self, requests: Sequence[Any]) -> Iterator[tuple[ReplySettings, dict[int, Any]]]:
        """(settings, messages by number of request) of each batch. The task's functions are called here, one after the other;
        what takes long, reading the files that they name, is `_encode`, which may run ahead in threads."""
        for numbers, settings in self._groups(requests):
            for first in range(0, len(numbers), self.batch_size):
                yield settings, {number: self._ask(requests[number]) for number in numbers[first : first + self.batch_size]}

    def _encode_batch(self, requests: Sequence[Any]) -> Callable[[tuple[ReplySettings, dict[int, Any]]], dict[int, Sample]]:
        return lambda item: {number: self._encode(requests[number], messages) for number, messages in item[1].items()}

    def _prompt(self, request: Any) -> Sample:
        """The prompt of a request, or of its first round."""
        return self._encode(request, self._ask(request))

    def _next_prompt(self, request: Any, replies: list[str], info: Any) -> tuple[Sample | None, Any]:
        """The prompt of the round after so many replies, None after the last; and what the task wants back in the next."""
        if not replies:
            return self._prompt(request), info
        round_state = {"round_idx": len(replies), "previous_output": list(replies), "previous_round_info": info}
        answer = self._ask(request, **round_state)
        if not (isinstance(answer, tuple) and len(answer) == 4):  # a task without rounds
            return None, info
        messages, is_over, _, info = answer
        return None if is_over else self._encode(request, messages), info

    def _ask(self, request: Any, **round_state: Any) -> Any:
        """What `doc_to_messages` of the task makes of its document."""
        _, doc_to_messages, _, doc_id, task, split = request.args
        try:
            return doc_to_messages(self.task_dict[task][split][doc_id], **round_state)
        except Exception as error:
            expected, remedy = "a document that its task can read", "check its files, or leave it out (--offset, --limit)"
            raise InputError(_name([request]), f"{type(error).__name__} ({error})", expected, remedy) from error

    def _encode(self, request: Any, messages: Any) -> Sample:
        with _naming([request]):
            turns = chat_turns(messages, self.vlm.processor, self.args)
            return encode(turns, self.vlm.tokenizer, self.vlm.model.config)

    def _replies(
        self, requests: Sequence[Any], batch: dict[int, Sample], settings: ReplySettings, rounds: Sequence[tuple[int, int]]
    ) -> list[Any]:
        """Of the prompts in `batch`, by number of request. rounds: (that number, round): random numbers are drawn from it, so
        that a reply does not depend on the batch it is in."""
        if not batch:
            return []
        seeds = [int(np.random.SeedSequence((self.args.seed, *pair)).generate_state(1)[0]) for pair in rounds]
        options = {"max_new_tokens": settings.max_new_tokens, "sampling": settings.sampling, "seed": seeds}
        with _naming([requests[number] for number in batch]):
            replies = self.vlm.replies(list(batch.values()), **options)
        return [
            GenerationResult(settings.cut(reply.text), TokenCounts(len(prompt.ids), reply.num_tokens))
            for prompt, reply in zip(batch.values(), replies, strict=True)
        ]

    def _remember(self, kind: str, request: Any, reply: Any) -> None:
        self.cache_hook.add_partial(kind, (request.args[0], request.args[2]), reply)


@contextmanager
def _naming(requests: Sequence[Any]) -> Iterator[None]:
    """Bad input is reported with its task and documents."""
    try:
        yield
    except InputError as error:
        raise error.within(_name(requests)) from None


def _name(requests: Sequence[Any]) -> str:
    return f"task {requests[0].args[4]} document {', '.join(str(request.args[3]) for request in requests)}"
