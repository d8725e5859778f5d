"""The settings of a model and of a stream: frozen dataclasses.

Owns the field names (a model's are those of Hugging Face) and the checks between them. Knows no arrays, no files and no model
family: `families` reads and writes config.json and has the published sizes.
Units: sizes in elements, `window_size` and `patch_size` in pixels, `tokens_per_second` in temporal positions a second; of a
stream: windows in chunks, sink, text_window and replies in tokens.
"""

import json
import math
from dataclasses import dataclass, field, fields, replace
from types import UnionType
from typing import Any, Literal, Self, get_args

from svlm_jax.errors import InputError

Dtype = Literal["float32", "bfloat16"]
# From the most memory to the least, and from no FLOPs computed twice to the most (docs/training.md).
Remat = Literal["none", "save_projections", "save_up", "save_attention_block", "save_attention", "full"]
Attention = Literal[  # pallas_kernels.IMPLEMENTATIONS
    "auto", "xla", "cudnn", "mosaic_gpu", "mosaic_gpu_pingpong", "tpu", "interpret", "interpret_pingpong", "interpret_tpu"
]
Weights = Literal["full", "int8"]
ResizeOn = Literal["auto", "host", "device"]  # where frames of video are resized and cut into patches
Mode = Literal["streaming", "full", "window", "recompute"]
RopePositions = Literal["contiguous", "native"]
MovedReplyKV = Literal["reuse", "recompute"]
MropeTurns = Literal["all", "first"]
CutReply = Literal["keep", "drop_last"]
VisionNorm = Literal["rms_norm", "layer_norm"]
VisionActivation = Literal["silu", "quick_gelu", "gelu_pytorch_tanh"]  # names of Hugging Face; a silu is gated

VISION_EPS = 1e-6  # RMSNorm epsilon of the vision tower; no config.json has it
VISION_ROPE_THETA = 10_000.0
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of R, G and B values divided by 255
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower: `depth` blocks of width `hidden_size`, a merger to `out_hidden_size`. The defaults are Qwen2.5-VL's.

    Attributes:
        fullatt_block_indexes: blocks with full attention (of a frame); the others attend in windows of `window_size` pixels.
        window_size: 0: patches are not ordered by window; all blocks have full attention.
        tokens_per_second: temporal positions a second; None: one position a temporal patch, whatever the frame rate.
        image_mean, image_std: of the pixels that the tower was trained with: it normalises raw uint8 patches itself.
        norm: of the blocks and the merger.
        hidden_act: of the blocks' MLP. "silu" is gated (SwiGLU), the others have one matrix up and one down.
        patch_bias: whether the patch embedding has a bias.
        num_position_embeddings: rows of a square table of learned positions, resampled to each grid; 0: none.
        deepstack_visual_indexes: blocks after which a merger of their own makes features for the first decoder layers
            (DeepStack, arXiv 2406.04334).
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    fullatt_block_indexes: tuple[int, ...]
    tokens_per_second: int | None
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    window_size: int = 112
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD
    norm: VisionNorm = "rms_norm"
    hidden_act: VisionActivation = "silu"
    patch_bias: bool = False
    num_position_embeddings: int = 0
    deepstack_visual_indexes: tuple[int, ...] = ()

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def positions_per_side(self) -> int:
        """Learned positions on a side of their square table (48 in Qwen3-VL)."""
        return math.isqrt(self.num_position_embeddings)

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch: channels x frames x height x width (3 x 2 x 14 x 14 = 1176)."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merge_unit(self) -> int:
        """Patches that become one token of the decoder (4)."""
        return self.spatial_merge_size**2

    @property
    def window_patches(self) -> int:
        """Patches in a full attention window (64); windows at the edges are smaller."""
        return (self.window_size // self.patch_size) ** 2

    def temporal_step(self, fps: float | int) -> float:
        """Positions between two temporal patches of a video at `fps`: in Qwen2.5-VL 2 at 2 fps, 0.5 at 8 fps. Not truncated,
        unlike transformers (StreamingVLM keeps the fraction and is trained with it)."""
        return 1.0 if self.tokens_per_second is None else self.tokens_per_second * self.temporal_patch_size / fps

    def __post_init__(self) -> None:
        _check_divides("vision_config.hidden_size", self.hidden_size, "num_heads", self.num_heads)
        if self.window_size:
            factor = self.patch_size * self.spatial_merge_size
            _check_divides("vision_config.window_size", self.window_size, "patch_size * spatial_merge_size", factor)
        if self.head_dim % 4:
            raise InputError(
                "vision_config.num_heads",
                f"head_dim {self.head_dim}",
                "a head_dim divisible by 4 (two axes, two halves)",
                "change hidden_size or num_heads",
            )
        for name in ("fullatt_block_indexes", "deepstack_visual_indexes"):
            for index in getattr(self, name):
                if not 0 <= index < self.depth:
                    raise InputError(f"vision_config.{name}", index, f"indexes below depth {self.depth}", "mend config.json")
        if self.window_size == 0 and len(set(self.fullatt_block_indexes)) != self.depth:
            raise InputError(
                "vision_config.window_size", 0, "windows for the blocks without full attention", "mend config.json"
            )
        if self.positions_per_side**2 != self.num_position_embeddings:
            field, expected = "vision_config.num_position_embeddings", "the square of a whole number"
            raise InputError(field, self.num_position_embeddings, expected, "mend config.json")


@dataclass(frozen=True)
class TextConfig:
    """The decoder: grouped-query attention, SwiGLU, RMSNorm, M-RoPE. The defaults are Qwen2.5's.

    Attributes:
        mrope_section: rotary frequencies of t, h and w.
        mrope_interleaved: the three axes take turns along the frequencies (Qwen3-VL); otherwise they are blocks.
        head_dim: 0: hidden_size / num_attention_heads.
        qkv_bias: whether the projections to q, k and v have biases.
        qk_norm: RMSNorm over the head dim of each q and k head, before the rotation (Qwen3).
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float
    mrope_section: tuple[int, int, int]
    rope_theta: float = 1_000_000.0
    max_position_embeddings: int = 128_000
    mrope_interleaved: bool = False
    head_dim: int = 0
    qkv_bias: bool = True
    qk_norm: bool = False

    def __post_init__(self) -> None:
        if not self.head_dim:
            _check_divides("text_config.hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        _check_divides(
            "text_config.num_attention_heads", self.num_attention_heads, "num_key_value_heads", self.num_key_value_heads
        )
        if len(self.mrope_section) != 3 or sum(self.mrope_section) * 2 != self.head_dim:
            raise InputError(
                "text_config.mrope_section",
                list(self.mrope_section),
                f"three numbers that add up to head_dim/2 = {self.head_dim // 2}",
                "mend config.json",
            )


@dataclass(frozen=True)
class ModelConfig:
    """A vision-language model: decoder, vision tower, the ids of the vision tokens, and how it is computed.

    Attributes:
        model_type: the family, a key of `families.FAMILIES`.
        dtype: of computation; softmax, norms and rotary embeddings are float32 in any case.
        param_dtype: of parameters.
        scan_layers: parameters of the decoder are stacked on a leading layer axis and scanned: for training.
        remat: what a layer of the decoder, and a block of the tower, saves for the backward pass.
        attention: the kernels (`pallas_kernels`); "auto": the best for the device.
        weights: "int8" stores the decoder's matrices in 8 bits: for inference (`model/transforms`).
        fused: projections that share their input are one matrix: for inference.
        fused_decode: decode steps by fused kernels (`model/fused_decode`): on one Hopper GPU; not measured yet.
        lora_rank: of low-rank adapters on the decoder's matrices; 0: none (arXiv 2106.09685).
        lora_alpha: adapters are scaled by lora_alpha / lora_rank.
        hf_extra: JSON of the keys of config.json that no code here reads; they are written again.
    """

    text: TextConfig
    vision: VisionConfig
    model_type: str
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    tie_word_embeddings: bool = False
    dtype: Dtype = "bfloat16"
    param_dtype: Dtype = "bfloat16"
    scan_layers: bool = False
    remat: Remat = "none"
    attention: Attention = "auto"
    weights: Weights = "full"
    fused: bool = False
    fused_decode: bool = False
    lora_rank: int = 0
    lora_alpha: float = 16.0
    hf_extra: str = field(default="{}", repr=False)

    def __post_init__(self) -> None:
        choices = {"dtype": Dtype, "param_dtype": Dtype, "remat": Remat, "attention": Attention, "weights": Weights}
        for name, known in ((name, get_args(choice)) for name, choice in choices.items()):
            if getattr(self, name) not in known:
                raise InputError(name, repr(getattr(self, name)), f"one of {', '.join(known)}", "choose one of them")
        if self.scan_layers and (self.fused or self.weights != "full"):
            raise InputError("weights, fused", f"{self.weights}, {self.fused}", "full, False with scan_layers", "train first")
        if self.lora_rank and (self.fused or self.weights != "full"):
            raise InputError("lora_rank", self.lora_rank, "0 with fused or int8", "merge the adapters first")
        if self.vision.out_hidden_size != self.text.hidden_size:
            raise InputError(
                "vision_config.out_hidden_size",
                self.vision.out_hidden_size,
                f"text hidden_size {self.text.hidden_size}",
                "mend config.json",
            )

    def compute(self, dtype: Dtype, param_dtype: Dtype | None = None) -> Self:
        """The same model in another precision; `param_dtype` is `dtype` by default."""
        return replace(self, dtype=dtype, param_dtype=param_dtype or dtype)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """End-of-sequence ids of config.json; those of a generation_config.json take precedence."""
        eos = json.loads(self.hf_extra).get("text_config", {}).get("eos_token_id")
        return () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)


@dataclass(frozen=True)
class StreamConfig:
    """What a stream keeps and how it counts (StreamingVLM, arXiv 2510.09608, section 3; the defaults are the paper's).

    Attributes:
        mode: "streaming" (compact cache), "full" (nothing is evicted), "window" (everything is forgotten every
            `window_chunks`), "recompute" (windows, but no cache: each chunk computes all that is retained anew).
        vision_window: chunks whose frames are retained.
        text_rounds: newest replies that stay turns of their own; the words of older ones move into the previous text.
        sink, text_window: words retained at the beginning of the previous text, and tokens at its end; None: all of it.
        rope_positions: "contiguous" gives the retained tokens contiguous RoPE positions every chunk, "native" leaves them as
            they were: they grow, and beyond 4 million (a day or so) the stream begins afresh.
        moved_reply_kv: keys and values of a reply whose words move into the previous text: "reuse" those that were computed
            beside its frames (the original), or "recompute" them as the text that they are now, which windows of training show.
        mrope_axes: 3 (M-RoPE) or 1 (all tokens count up by one).
        mrope_turns: whose frames stand on 3 axes: those of "all" turns, or of the "first" alone, after which all tokens count
            up by one: transformers goes on so with a KV cache, and LiveCC's published code with it.
        fps, chunk_seconds: frames a second, and seconds a chunk; an even number of frames a chunk.
        first_chunk_seconds: of a stream's first chunk; None: as long as the others.
        previous_text_turn: whether there is a turn with previous text; without it words of older replies are dropped.
        question_after_frames: whether a question stands where the query does; otherwise it follows the time text.
        max_new_tokens: longest reply.
        cut_reply: a reply of so many tokens is retained whole ("keep"), or with the end of its turn in place of its last token
            ("drop_last").
        question_tokens: room for questions that are retained at one time.
    """

    mode: Mode = "streaming"
    vision_window: int = 16
    text_rounds: int = 16
    sink: int | None = 512
    text_window: int | None = 512
    rope_positions: RopePositions = "contiguous"
    moved_reply_kv: MovedReplyKV = "reuse"
    mrope_axes: int = 3
    mrope_turns: MropeTurns = "all"
    window_chunks: int = 100
    fps: float | int = 2.0
    chunk_seconds: float | int = 1.0
    first_chunk_seconds: float | int | None = None
    previous_text_turn: bool = True
    question_after_frames: bool = False
    max_new_tokens: int = 20
    cut_reply: CutReply = "keep"
    question_tokens: int = 256

    @property
    def chunk_frames(self) -> int:
        return round(self.fps * self.chunk_seconds)

    @property
    def first_chunk_frames(self) -> int:
        return self.chunk_frames if self.first_chunk_seconds is None else round(self.fps * self.first_chunk_seconds)

    @property
    def bounded(self) -> bool:
        """Whether there is a largest number of retained tokens."""
        return self.mode == "window" or (self.mode != "full" and (self.sink is not None or not self.previous_text_turn))

    def __post_init__(self) -> None:
        check_types(self)
        choices = {"mode": get_args(Mode), "rope_positions": get_args(RopePositions)}
        choices |= {"moved_reply_kv": get_args(MovedReplyKV), "mrope_axes": (1, 3)}
        choices |= {"mrope_turns": get_args(MropeTurns), "cut_reply": get_args(CutReply)}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(name, repr(getattr(self, name)), f"one of {', '.join(map(str, known))}", "choose one of them")
        for name in ("vision_window", "text_rounds", "window_chunks", "max_new_tokens", "question_tokens"):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "1 or more", "raise it")
        both = f"{self.sink} and {self.text_window}"
        if (self.sink is None) != (self.text_window is None):
            raise InputError("sink and text_window", both, "two numbers, or neither", "set both")
        if self.sink is not None and self.text_window is not None and (self.sink < 0 or self.text_window < 1):
            raise InputError("sink and text_window", both, "0 or more, and 1 or more", "raise them")
        if self.moved_reply_kv == "recompute" and self.rope_positions == "native":
            raise InputError(
                "moved_reply_kv",
                "'recompute' with rope_positions 'native'",
                "'contiguous' with it",
                "set moved_reply_kv to 'reuse', or rope_positions to 'contiguous'",
            )
        first = self.chunk_seconds if self.first_chunk_seconds is None else self.first_chunk_seconds
        for name, seconds in (("fps", self.chunk_seconds), ("first_chunk_seconds", first)):
            frames = self.fps * seconds
            if not (0 < frames < 10_000 and frames == round(frames) and round(frames) % 2 == 0):
                got = f"{self.fps:g} fps in chunks of {seconds:g} s"
                raise InputError(name, got, "an even number of frames a chunk", "2 fps and 1 s are usual")


def check_types(settings: Any, prefix: str = "") -> None:
    """Every number and bool of a dataclass of settings is one. Choices, tuples and objects are checked by their owner.

    Raises:
        InputError: a value of another type, as "3" of a command line for 3; a bool is no number here.
    """
    for item in fields(settings):
        types: tuple[Any, ...] = get_args(item.type) if isinstance(item.type, UnionType) else (item.type,)
        if not {int, float, bool}.intersection(types):
            continue
        if float in types:
            types = (*types, int)
        value = getattr(settings, item.name)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            expected = "true or false" if bool in types else "a number" if float in types else "a whole number"
            expected += " or None" if type(None) in types else ""
            raise InputError(prefix + item.name, f"{value!r} ({type(value).__name__})", expected, "change its type")


def _check_divides(name: str, value: int, by_name: str, by: int) -> None:
    if by <= 0 or value <= 0 or value % by:
        raise InputError(name, value, f"a multiple of {by_name} = {by}", "mend config.json")
