"""Who answers: a model of this library, or a server that speaks OpenAI's protocol (`eval.captioner`), behind one interface.

Owns requests and the local model. Does not know benchmarks. Units: seconds, tokens.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple, Protocol

from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.eval.frames import FrameSet
from svlm_jax.families.chat import plain
from svlm_jax.pretrained import Pretrained


class Request(NamedTuple):
    """One question. text: what is asked, after the frames. frames: None: no pictures. system: "" for none."""

    text: str
    frames: FrameSet | None = None
    system: str = ""
    max_new_tokens: int = 128


class Answerer(Protocol):
    """Answers questions; `settings` is what a result needs to be repeated (model, sampling)."""

    def settings(self) -> dict[str, Any]: ...

    def answer(self, request: Request) -> str: ...


class LocalModel:
    """A model of this library. Greedy unless `sampling` says otherwise."""

    def __init__(self, vlm: Pretrained, name: str, *, sampling: Sampling | None = None, seed: int = 0) -> None:
        self.vlm, self.name, self.seed = vlm, name, seed
        self.sampling = sampling or replace(vlm.generation, temperature=0.0)

    def settings(self) -> dict[str, Any]:
        config = self.vlm.model.config
        shared = {"model": self.name, "dtype": config.dtype, "weights": config.weights}
        return {**shared, "sampling": asdict(self.sampling), "seed": self.seed}

    def answer(self, request: Request) -> str:
        sample = self._prompt(request)
        options = {"max_new_tokens": request.max_new_tokens, "sampling": self.sampling, "seed": self.seed}
        return self.vlm.generate([sample], **options)[0]

    def choose(self, request: Request, options: Sequence[str], *, ended: bool = False) -> tuple[int, list[float]]:
        """Which of some replies is likeliest, and the log-probability of each; no token is generated. Options that begin alike
        ("Answer: A", "Answer: B") are compared in what differs. ended: each with the end of the reply behind it, without which
        "10" is never likelier than "1"."""
        if len(options) < 2:
            raise InputError("options", len(options), "2 or more", "mend the item, or leave it out")
        end = self.vlm.tokenizer.decode([self.vlm.eos_token_ids[0]], skip_special_tokens=False) if ended else ""
        log_probs = self.vlm.score(self._prompt(request), [plain(option, "option") + end for option in options])
        return int(log_probs.argmax()), [float(each) for each in log_probs]

    def _prompt(self, request: Request) -> Any:
        processor, frames = self.vlm.processor, request.frames
        clips = [] if frames is None else [processor.video(list(frames.pixels), fps=frames.fps, start=frames.start)]
        return processor.prompt(request.text, *clips, system=request.system or None)
