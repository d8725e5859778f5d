"""A model with its tokenizer and processor, from a directory or the Hugging Face hub.

vlm = svlm_jax.from_pretrained("Qwen/Qwen2.5-VL-3B-Instruct")
vlm.caption("photo.jpg")
for reply in vlm.watch("match.mp4", query="Commentate on this match"):
    print(reply.start, reply.text)
"""

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from pallas_kernels import dispatch
from svlm_jax import hf_config
from svlm_jax.checkpoint import convert, hf
from svlm_jax.config import Attention, Dtype, ModelConfig, StreamConfig, Weights
from svlm_jax.data.batch import Clip, Sample, collate
from svlm_jax.data.chat import Tokenizer
from svlm_jax.data.player import Player
from svlm_jax.data.processor import FILES, Processor
from svlm_jax.data.sources import open_source
from svlm_jax.errors import InputError
from svlm_jax.model.prepare import fuse, quantize
from svlm_jax.model.vlm import Parameters, QwenVL, from_parameters, parameters
from svlm_jax.stream.generate import generate
from svlm_jax.stream.sampling import COMMENTARY, Sampling
from svlm_jax.stream.sequence import Chunk
from svlm_jax.stream.session import Reply, Session

# Models in the package, by name; the second is what the first was fine-tuned from.
SHIPPED = {name: Path(__file__).parent / "models" / name for name in ("touchline", "touchline-base")}
STREAMING = "streaming_config.json"
WANTED = ("config.json", "*.safetensors", "model.safetensors.index.json", *FILES)


@dataclass(frozen=True)
class Pretrained:
    """What `from_pretrained` returns; `stream` and `sampling`: how it streams unless told otherwise."""

    model: QwenVL
    tokenizer: Tokenizer
    processor: Processor
    eos_token_ids: tuple[int, ...]
    stream: StreamConfig = StreamConfig()
    sampling: Sampling = COMMENTARY

    def __repr__(self) -> str:
        config, size = self.model.config, sum(value.size for value in self.parameters.values())
        scale, unit = (1e9, "B") if size >= 1e9 else (1e6, "M")
        held = ", decoder in 8 bits" if config.weights == "int8" else ""
        kernels = dispatch.taken(config.attention, config.dtype, config.text.head_dim)
        return (
            f"Pretrained({type(self.model).__name__}, {size / scale:.1f} {unit} parameters, {config.dtype}{held}, "
            f"attention {kernels}, {config.text.vocab_size} tokens)"
        )

    @property
    def parameters(self) -> Parameters:
        """Every parameter, by dotted path."""
        return parameters(self.model)

    def caption(self, source: Any, prompt: str | None = None, **options: Any) -> str:
        """Describe an image or a video (path, PIL image, array, or a list of frames taken at 2 a second).

        Args:
            prompt: what to say with it; "Describe this image." or "... video." by default.
            options: of `generate`.
        """
        return self.caption_clip(self.processor.open(source), prompt, **options)

    def caption_clip(self, clip: Clip, prompt: str | None = None, **options: Any) -> str:
        """`caption` of what `processor.open` returned (which takes fps, start and duration)."""
        text = prompt or f"Describe this {'video' if clip.video else 'image'}."
        return self.generate([self.processor.prompt(text, clip)], **options)[0]

    def watch(
        self,
        source: Any,
        *,
        query: str = "",
        previous: str = "",
        start: float | int = 0.0,
        duration: float | int | None = None,
        config: StreamConfig | None = None,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> Iterator[Reply]:
        """Comment on a video (file, folder of frames, URL, number of a webcam, match:SEED) chunk by chunk, in memory that does
        not grow. A file is watched as fast as possible; what a live source drops is warned of. `launch.stream` does more.

        Args:
            query: what is asked for, in the first turn.
            previous: commentary that came before.
            start, duration: seconds.
            config: windows, mode, frames a second; the model's own by default, as is `sampling`.
        """
        config, sampling = config or self.stream, sampling or self.sampling
        clock = {"fps": config.fps, "chunk_seconds": config.chunk_seconds, "start": start, "duration": duration}
        session, state = None, None

        def lost(chunks: Sequence[Any]) -> None:
            warnings.warn(f"dropped {chunks[0].start:g} to {chunks[-1].end:g} s: too late", stacklevel=3)

        def prepare(chunk: Any) -> Clip:
            return self.processor.video(chunk.frames, fps=config.fps, levels=True)

        with Player(open_source(source, **clock), prepare, report=lost) as player:
            for chunk, clip in player:
                if session is None or state is None:
                    options = {"sampling": sampling, "previous": previous}
                    session = Session(self.model, self.tokenizer, config, clip.grid, **options)
                    state = session.join(session.start(), query=query, seed=seed)
                state, (reply,) = session.step(state, [Chunk(chunk.start, chunk.end, clip)])
                if reply is not None:
                    yield reply

    def generate(
        self, samples: Sequence[Sample], *, max_new_tokens: int = 128, sampling: Sampling = Sampling(), seed: int = 0
    ) -> list[str]:
        """Replies to a batch of prompts (`processor.prompt`), greedy unless `sampling` says otherwise."""
        inputs = collate(samples, self.model.config.vision, side="left")
        replies = generate(
            self.model, inputs, max_new_tokens=max_new_tokens, eos=self.eos_token_ids, sampling=sampling, seed=seed
        )
        return [self.tokenizer.decode(reply.tolist(), skip_special_tokens=True).strip() for reply in replies]


def from_pretrained(
    name: str | Path,
    *,
    processor: str | Path | None = None,
    dtype: Dtype | None = None,
    attention: Attention = "auto",
    weights: Weights = "full",
    mesh: Mesh | None = None,
    progress=None,
) -> Pretrained:
    """Load a checkpoint directory (Hugging Face or Orbax form), a hub id or a model of `SHIPPED`.

    Args:
        processor: a directory with the tokenizer and processor files, if they are not beside the weights.
        dtype: of computation and parameters; that of config.json by default.
        attention: the kernels (`pallas_kernels.IMPLEMENTATIONS`); by default what suits the device.
        weights: "int8" holds the matrices of the decoder in 8 bits: faster replies, with an error (`model/prepare`).
        mesh: devices to shard over (`svlm_jax.sharding.make_mesh`).
        progress: called with (tensors done, tensors in all).

    Raises:
        InputError: what is missing or wrong, in one line.
    """
    directory = local_directory(name)
    config = hf_config.read(directory)
    config = replace(config.compute(dtype or config.dtype), scan_layers=False, attention=attention)
    beside = Processor.from_directory(processor or directory, config)  # before the weights: a missing tokenizer shows at once
    values = convert.load(directory, config, mesh, progress)
    config, values = fuse(config, values)
    if weights == "int8":
        config, values = quantize(config, values)
    model = from_parameters(config, values)
    return Pretrained(model, beside.tokenizer, beside, _eos(directory, config), *streaming(directory))


def local_directory(name: str | Path) -> Path:
    """`name` itself when it is a directory, that of a shipped model, or the hub snapshot of an id (downloaded if need be).

    Raises:
        InputError: nothing of that name; a name that can be no hub id is not looked for there.
    """
    text, shipped = str(name), ", ".join(SHIPPED)
    path = Path(os.path.expanduser(text))
    if text.strip() and os.path.isdir(path):  # which says no, too, where a name is too long
        return path
    if text in SHIPPED:
        return SHIPPED[text]
    remedy = "check the name"
    if near := get_close_matches(text.strip().lower(), SHIPPED, 1):
        remedy = f"did you mean {near[0]}?"
    if text.strip() and os.path.exists(path):
        raise InputError("model", f"{_short(text)}, a file", "a directory", f"name the one it lies in: {_short(path.parent)}")
    if not re.fullmatch(r"[\w\-][\w.\-]*/[\w.\-]*\w", text, re.ASCII):  # what is no ORG/NAME is no id
        got = f"{_short(text if text.isprintable() and text.strip() else repr(text))} (no such directory)"
        raise InputError("model", got, f"a directory, a hub id (ORG/NAME) or a shipped model ({shipped})", remedy)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name), allow_patterns=list(WANTED)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = _short((str(error).strip() or type(error).__name__).splitlines()[0])
        expected = f"a directory, a hub id that can be reached or a shipped model ({shipped})"
        raise InputError("model", f"{_short(text)} ({reason})", expected, "check the name, or the connection") from None


def _short(text: object) -> str:
    return text if len(text := str(text)) <= 80 else f"{text[:77]}..."


def streaming(directory: Path) -> tuple[StreamConfig, Sampling]:
    """How a model streams unless told otherwise: its streaming_config.json, the paper's settings for what that leaves out.

    Raises:
        InputError: a file with other keys or values.
    """
    path = directory / STREAMING
    told = hf_config.read_json(path, "streaming settings") if path.is_file() else {}
    if unknown := told.keys() - {"stream", "sampling"}:
        raise InputError(str(path), f"the key {min(unknown)}", "stream and sampling", "remove it")
    try:
        return StreamConfig(**told.get("stream", {})), replace(COMMENTARY, **told.get("sampling", {}))
    except TypeError as error:
        raise InputError(str(path), str(error), "fields of StreamConfig and of Sampling", "mend the file") from None


def _eos(directory: Path, config: ModelConfig) -> tuple[int, ...]:
    path = directory / hf.GENERATION
    if not path.is_file():
        return config.eos_token_ids
    eos = hf_config.read_json(path, "a generation config").get("eos_token_id")
    if eos is None:
        return config.eos_token_ids
    ids = tuple(eos) if isinstance(eos, list) else (eos,)
    if not all(type(one) is int for one in ids):
        raise InputError(f"{path} eos_token_id", repr(eos), "a token id or a list of them", "mend the file")
    return ids
