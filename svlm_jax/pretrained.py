"""A model with its tokenizer and processor, from a directory or the Hugging Face hub.

vlm = svlm_jax.from_pretrained("Qwen/Qwen2.5-VL-3B-Instruct")
vlm.caption("photo.jpg")
for caption in vlm.watch("match.mp4", query="Commentate on this match"):
    print(caption.start, caption.text)
"""

import difflib
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from pallas_kernels import dispatch
from svlm_jax.checkpoint import convert
from svlm_jax.checkpoint.directory import ADAPTER, INDEX
from svlm_jax.config import Attention, Dtype, ResizeOn, StreamConfig, Weights
from svlm_jax.data.batch import collate
from svlm_jax.decode.detokenize import whole_text
from svlm_jax.decode.generate import generate
from svlm_jax.decode.sampling import COMMENTARY, Sampling
from svlm_jax.decode.score import score
from svlm_jax.errors import InputError, shortened
from svlm_jax.families import config_json
from svlm_jax.families.chat import Tokenizer
from svlm_jax.files import read_json, refuse_other_kinds_of_file
from svlm_jax.inputs import Clip, Sample
from svlm_jax.media.processor import PROCESSOR_FILES, Processor
from svlm_jax.media.sources import open_source
from svlm_jax.model.fused_decode import interpreted
from svlm_jax.model.parameters import Parameters, from_parameters, parameters
from svlm_jax.model.transforms import fuse, quantize
from svlm_jax.model.vlm import QwenVL
from svlm_jax.presets import preset_of
from svlm_jax.settings import read_generation_config, read_streaming_config
from svlm_jax.stream.admission import check_query
from svlm_jax.stream.alerts import AlertRule
from svlm_jax.stream.events import Caption, Dropped, Event, Note
from svlm_jax.stream.frames import resizes_on_device
from svlm_jax.stream.pacing import NO_PACING, Pacing
from svlm_jax.stream.playback import Playback
from svlm_jax.stream.runner import VIDEO, OnToken, Runner
from svlm_jax.stream.stream_settings import StreamSettings
from svlm_jax.stream.turn_tokenizer import TurnTokenizer
from svlm_jax.stream.watch import watch

# Models in the package, by name; the second is what the first was fine-tuned from.
SHIPPED = {name: Path(__file__).parent / "touchline" / "weights" / name for name in ("touchline", "touchline-base")}
SETTINGS = ("config.json", ADAPTER, INDEX, *PROCESSOR_FILES)  # of a hub repository, downloaded before its weights
HUB_ID = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Reply(NamedTuple):
    """text: without special tokens and outer blanks. num_tokens: generated, the one that ended it included."""

    text: str
    num_tokens: int


@dataclass(frozen=True)
class Pretrained:
    """A model, its tokenizer and its processor. stream, sampling: how it streams by default. generation: how `generate` and
    `caption` sample by default."""

    model: QwenVL
    tokenizer: Tokenizer
    processor: Processor
    eos_token_ids: tuple[int, ...]
    stream: StreamConfig = StreamConfig()
    sampling: Sampling = COMMENTARY
    generation: Sampling = Sampling()

    def __repr__(self) -> str:
        config, size = self.model.config, sum(value.size for value in self.parameters.values())
        scale, unit = (1e9, "B") if size >= 1e9 else (1e6, "M")
        weights = ", decoder in 8 bits" if config.weights == "int8" else ""
        kernels = dispatch.implementation_for(config.attention, config.dtype, config.text.head_dim)
        return (
            f"Pretrained({type(self.model).__name__}, {size / scale:.1f} {unit} parameters, {config.dtype}{weights}, "
            f"attention {kernels}, {config.text.vocab_size} tokens)"
        )

    @property
    def parameters(self) -> Parameters:
        """Every parameter, by dotted path."""
        return parameters(self.model)

    def caption(self, source: Any, prompt: str | None = None, **options: Any) -> str:
        """Describe an image or a video (path, PIL image, array, or a list of frames taken at 2 a second).

        Args:
            prompt: "Describe this image." or "Describe this video." by default.
            options: of `generate`.
        """
        return self.caption_clip(self.processor.open(source), prompt, **options)

    def caption_clip(self, clip: Clip, prompt: str | None = None, **options: Any) -> str:
        """`caption` of what `processor.open` returned (which takes fps, start and duration)."""
        text = prompt or f"Describe this {'video' if clip.video else 'image'}."
        return self.generate([self.processor.prompt(text, clip)], **options)[0]

    def watch(self, source: Any, **options: Any) -> Iterator[Caption]:
        """Comment on a video chunk by chunk, in memory that does not grow: the captions among `events`, whose arguments these
        are. What is dropped or unusual is a warning."""
        return self._captions(self.events(source, **options))

    def _captions(self, events: Iterator[Event]) -> Iterator[Caption]:
        for event in events:
            match event:
                case Caption():
                    yield event
                case Dropped():
                    warnings.warn(f"dropped {event.start:g} to {event.end:g} s: too late", stacklevel=2)
                case Note():
                    warnings.warn(f"{event.start:g} s: {event.text}", stacklevel=2)

    def events(
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
        on_token: OnToken | None = None,
        pacing: Pacing = NO_PACING,
        alert: AlertRule | None = None,
        resize_on: ResizeOn = "auto",
        **settings: Any,
    ) -> Iterator[Event]:
        """Watch a video: a file, a folder of frames, a URL, the number of a webcam, or an open `media.sources.Source`. A file
        is watched as fast as possible. The kinds of events are in `stream.events`. `svlm stream` does more.

        Args:
            query: what is asked for, in the first turn.
            previous: commentary that came before.
            start, duration: seconds.
            config: windows, mode, frames a second; the model's own by default, as is `sampling`.
            on_token: called with each `TokenDelta` as it is decoded, at the cost of a round trip to the device a token.
            pacing: how often and how long it may speak.
            alert: a condition that it is asked with each chunk, in place of commentary; `Alert` events tell of changes.
            resize_on: where frames are resized: on the "host" or the "device", to the same pixels. "auto": on a GPU or TPU if
                there is one.
            settings: fields of `StreamConfig` to change (fps=4, mode="full", vision_window=8).

        Raises:
            InputError: what is wrong with a setting, the query, or the source, in one line; at once, but for the source.
        """
        config, sampling = with_settings(config or self.stream, settings), sampling or self.sampling
        check_query(query, config, TurnTokenizer.of(self.tokenizer, self.model.config))
        on_device = resizes_on_device(resize_on, self.processor, config)
        timing = {"fps": config.fps, "chunk_seconds": config.chunk_seconds, "start": start, "duration": duration}
        timing["first_chunk_seconds"] = config.first_chunk_seconds

        def join(clip: Clip) -> Runner:
            options = {"sampling": sampling, "previous": previous, "tokens": on_token is not None, "choices": alert is not None}
            runner = Runner.compiled(self.model, self.tokenizer, config, clip, **options)
            runner.join(VIDEO, StreamSettings(query=query, seed=seed, pacing=pacing, alert=alert))
            return runner

        def play() -> Iterator[Event]:
            with Playback(self.processor, on_device=on_device) as playback:
                yield from watch(playback, open_source(source, **timing), join, on_token=on_token)

        return play()

    def generate(self, samples: Sequence[Sample], **options: Any) -> list[str]:
        """Replies to a batch of prompts (`processor.prompt`). options: of `replies`."""
        return [reply.text for reply in self.replies(samples, **options)]

    def replies(
        self,
        samples: Sequence[Sample],
        *,
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        seed: int | Sequence[int] = 0,
    ) -> list[Reply]:
        """`generate`, with the number of tokens of each reply.

        Args:
            sampling: that of the model's generation_config.json by default, or greedy if it has none.
            seed: for all prompts, or one for each: then a reply does not depend on its place in the batch.
        """
        inputs = collate(samples, self.model.config.vision, side="left")
        options = {"max_new_tokens": max_new_tokens, "sampling": sampling or self.generation, "seed": seed}
        replies = generate(self.model, inputs, eos=self.eos_token_ids, **options)
        return [Reply(whole_text(ids.tolist(), self.tokenizer).strip(), len(ids)) for ids in replies]

    def score(self, sample: Sample, options: Sequence[str], *, length_normalized: bool = False) -> np.ndarray:
        """Log-probability [n] float32 of each option as the beginning of the reply to a prompt (`processor.prompt`): the sum
        over its tokens, or their mean. For multiple choice, take the largest."""
        inputs = collate([sample], self.model.config.vision, side="left")
        ids = [self.tokenizer.encode(option, add_special_tokens=False) for option in options]
        return score(self.model, inputs, ids, length_normalized=length_normalized).log_probs


def from_pretrained(
    name: str | Path,
    *,
    processor: str | Path | None = None,
    dtype: Dtype | None = None,
    attention: Attention = "auto",
    weights: Weights = "full",
    fused_decode: bool = False,
    preset: str | None = None,
    mesh: Mesh | None = None,
    progress=None,
) -> Pretrained:
    """Load a checkpoint directory (Hugging Face or Orbax form), a hub id or a model of `SHIPPED`.

    Args:
        processor: a directory with the tokenizer and processor files, if they are not with the weights.
        dtype: of computation and parameters; that of config.json by default.
        attention: the kernels (`pallas_kernels.IMPLEMENTATIONS`); by default what suits the device.
        weights: "int8" holds the matrices of the decoder in 8 bits: faster replies, with an error (`model.transforms`).
        fused_decode: decode steps by fused kernels, on one Hopper GPU (`model.fused_decode`).
        preset: how it streams, by a name of `svlm_jax.presets`; by default as its streaming_config.json says.
        mesh: devices to shard over (`svlm_jax.sharding.make_mesh`).
        progress: called with (tensors done, tensors in all).

    Raises:
        InputError: what is missing or wrong, in one line.
    """
    directory = local_directory(name)
    config = config_json.read(directory, dtype)
    config = replace(config.compute(dtype or config.dtype), scan_layers=False, attention=attention)
    if fused_decode:
        config = replace(config, fused_decode=True)
        interpreted(config, 1 if mesh is None else mesh.size)
    stream, sampling = read_streaming_config(directory, preset)
    generation, eos = read_generation_config(directory, config)
    # Before the weights, which take long to load: a missing tokenizer shows at once.
    loaded_processor = Processor.from_directory(processor or directory, config)
    if preset is not None:
        loaded_processor = loaded_processor.with_preset(preset_of(preset))
    stored = [kind for kind in convert.check(directory, config) if kind != config.param_dtype]
    if stored and dtype is None:
        cast = f"tensors of {', '.join(stored)} are cast to {config.param_dtype}, as its config.json says"
        warnings.warn(f"{directory}: {cast}; dtype (--dtype) chooses", stacklevel=2)
    values = convert.load(directory, config, mesh, progress)
    config, values = fuse(config, values)
    if weights == "int8":
        config, values = quantize(config, values)
    model = from_parameters(config, values)
    return Pretrained(model, loaded_processor.tokenizer, loaded_processor, eos, stream, sampling, generation)


def with_settings(config: StreamConfig, settings: Mapping[str, Any]) -> StreamConfig:
    """The config with some fields changed.

    Raises:
        InputError: a name that is no field, or a value that the field does not take.
    """
    names = [field.name for field in fields(StreamConfig)]
    if unknown := settings.keys() - set(names):
        raise InputError(f"setting {min(unknown):.60}", "no field of StreamConfig", f"one of {', '.join(names)}", "correct it")
    return replace(config, **settings)


def local_directory(name: str | Path) -> Path:
    """The directory of a model: `name` itself if it is a directory, that of a shipped model, or the hub snapshot of an id.

    Raises:
        InputError: nothing of that name, or not the directory of a model. A name that can be no hub id is not looked for there.
    """
    text = str(name)
    path = Path(os.path.expanduser(text))
    if text.strip() and os.path.isdir(path):  # unlike Path.is_dir, quiet about names that no file can have
        return path
    if text in SHIPPED:
        return SHIPPED[text]
    if text.strip() and os.path.exists(path):
        if path.is_file():
            refuse_other_kinds_of_file(path, "the directory of a model")
        remedy = f"name the one it lies in: {shortened(path.parent, 80)}"
        raise InputError("model", f"{shortened(text, 80)}, a file", "a directory", remedy)
    if not HUB_ID.fullmatch(text):
        similar = difflib.get_close_matches(text.strip().lower(), SHIPPED, 1)
        got = f"{shortened(text if text.isprintable() and text.strip() else repr(text), 80)} (no such directory)"
        expected = f"a directory, a hub id (OWNER/NAME) or a shipped model ({', '.join(SHIPPED)})"
        raise InputError("model", got, expected, f"did you mean {similar[0]}?" if similar else "check the name")
    return _hub_snapshot(text)


def _hub_snapshot(hub_id: str) -> Path:
    """The snapshot of a hub repository, downloaded if need be. Its settings come first: a model that cannot be used costs no
    download of weights."""
    from huggingface_hub import snapshot_download

    try:
        directory = Path(snapshot_download(hub_id, allow_patterns=list(SETTINGS)))
        if (directory / "config.json").is_file() and not (directory / ADAPTER).is_file():
            config = read_json(directory / "config.json", "a Hugging Face config.json")
            config_json.check_model_type(config, f"{hub_id} config.json")
            directory = Path(snapshot_download(hub_id, allow_patterns=[*SETTINGS, "*.safetensors"]))
    except InputError:
        raise
    except Exception as error:  # of the hub's client, of its HTTP library (which of several differs by version), of the disk
        reason = shortened((str(error).strip() or type(error).__name__).splitlines()[0], 80)
        expected = f"a directory, a hub id that can be reached or a shipped model ({', '.join(SHIPPED)})"
        raise InputError(
            "model", f"{shortened(hub_id, 80)} ({reason})", expected, "check the name, or the connection"
        ) from None
    if not any((directory / name).is_file() for name in ("config.json", ADAPTER)):
        got = "a repository without config.json (of GGUF files?)"
        raise InputError(hub_id, got, "one of a model in safetensors", "use the one that it was made from")
    return directory
