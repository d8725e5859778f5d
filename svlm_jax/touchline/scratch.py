"""A model to train from scratch: a tokenizer of the words in annotations, random weights, the Hugging Face layout.

Owns the sizes of the shipped model and the initialisation of its weights. Such a model can be of any family: it is a published
one of the family with these sizes. Units: pixels of a frame.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from svlm_jax.checkpoint import huggingface
from svlm_jax.config import ModelConfig, TextConfig, VisionConfig
from svlm_jax.data.annotation import Annotation
from svlm_jax.errors import InputError
from svlm_jax.families import QWEN2_5_VL
from svlm_jax.families.family import Family
from svlm_jax.files import atomic_directory
from svlm_jax.model.parameters import Parameters, shapes

TEXT_SIZES = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "rope_theta": 10_000.0}
TEXT_SIZES |= {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 64}
VISION_SIZES = {"depth": 3, "hidden_size": 128, "num_heads": 4, "out_hidden_size": 192}
GATED_MLP, PLAIN_MLP = 320, 512  # as many parameters, nearly: three matrices or two
POSITIONS = 16 * 16  # learned ones, where a tower has them
FRAME_TOKENS = 24  # least and most of a frame: 6 x 4 a second of 3:2 video, 168 x 112 pixels where a token is 28 x 28
# Default streaming settings: the previous text of its training samples; greedy. The vision window is a third of that in
# training, which keeps the previous replies nearer (docs/touchline.md).
STREAMING = {
    "stream": {"vision_window": 8, "sink": 64, "text_window": 576, "moved_reply_kv": "recompute"},
    "sampling": {"temperature": 0.0, "repetition_penalty": 1.0},
}
VOCAB_SIZE = 640  # max tokens, markup included
PAD_MARKS = ("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
_RUST_OSERROR = re.compile(r"\(os error (\d+)\)")
_PADS = ("bos_token_id", "pad_token_id")
# Qwen's pattern, except that the time text of a turn is few tokens, and the two numbers of a score are different tokens, " 2"
# and "-1": the model need not learn from their order which team's goals they count.
_SPLIT_PATTERN = (
    r"Time=|\.0-|\.0s|(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|-\p{N}| ?\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def scratch(
    target: str | Path, annotations: Iterable[Annotation], *, family: Family = QWEN2_5_VL, seed: int = 0
) -> ModelConfig:
    """Write a model of random weights, with a tokenizer of the words in `annotations`; the directory is complete or absent.

    Raises:
        InputError: a target that exists; annotations without words.
    """
    with atomic_directory(target) as draft:
        ids, size = _tokenizer(draft, texts(annotations, family), family)
        config = ModelConfig(
            *small_shape(family, size),
            family.model_type,
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
            tie_word_embeddings=True,
            dtype="float32",
            param_dtype="float32",
            hf_extra=json.dumps(
                {"text_config": {"eos_token_id": ids["<|im_end|>"], **dict.fromkeys(_PADS, ids["<|endoftext|>"])}}
            ),
        )
        _processor(draft, family, config.vision)
        frame = {"frame": dict.fromkeys(("min_pixels", "max_pixels"), _frame_pixels(config.vision))}
        streaming = STREAMING | (frame if family.video_size == "video" else {})  # else its files say it
        (draft / "streaming_config.json").write_text(json.dumps(streaming, indent=1))
        huggingface.write(draft, config, random_parameters(config, seed))
    return config


def small_shape(family: Family, vocab_size: int) -> tuple[TextConfig, VisionConfig]:
    """A published model of the family, made small."""
    published = next(iter(family.presets.values()))
    mrope_section = tuple(size * TEXT_SIZES["head_dim"] // published.text.head_dim for size in published.text.mrope_section)
    text = replace(published.text, vocab_size=vocab_size, mrope_section=mrope_section, **TEXT_SIZES)
    depth, vision = VISION_SIZES["depth"], published.vision
    sizes = {
        **VISION_SIZES,
        "intermediate_size": GATED_MLP if vision.hidden_act == "silu" else PLAIN_MLP,
        "fullatt_block_indexes": (depth - 1,) if vision.window_size else tuple(range(depth)),
        "num_position_embeddings": min(vision.num_position_embeddings, POSITIONS),
        "deepstack_visual_indexes": tuple(range(depth - 1))[: len(vision.deepstack_visual_indexes)],
    }
    return text, replace(vision, **sizes)


def texts(annotations: Iterable[Annotation], family: Family) -> Iterator[str]:
    """The tokenizer's corpus: commentary, questions and answers, and the chat format's words, as often as in samples."""
    chat = family.chat
    time = chat.time_text(0.0, 1.0) if chat.frame_text is None else chat.frame_text(0.5)
    chat_words = ("system", chat.system_prompt, "previous text", "user", "assistant", "\n", time, " ...")
    for annotation in annotations:
        yield annotation.query
        yield "".join(f" {word.text}" for word in annotation.words)
        for question in annotation.questions:
            yield from (question.text, f" {question.text}", question.answer)
        yield from chat_words


def random_parameters(config: ModelConfig, seed: int) -> Parameters:
    """Random parameters: normal with variance 1 / fan-in, and 1 / (2 depth) of that for projections into the residual stream;
    norms are 1, biases 0."""
    values: Parameters = {}
    for index, (path, leaf) in enumerate(sorted(shapes(config).items())):
        key = jax.random.fold_in(jax.random.key(seed), index)
        depth = config.vision.depth if path.startswith("vision.") else config.text.num_hidden_layers
        if path.endswith("scale"):
            values[path] = jnp.ones(leaf.shape, leaf.dtype)
        elif path.endswith("bias"):
            values[path] = jnp.zeros(leaf.shape, leaf.dtype)
        else:
            fan_in = leaf.shape[1] if path.endswith("embedding") else np.prod(leaf.shape[: 2 if ".out." in path else 1])
            scale = float(fan_in) ** -0.5 * ((2 * depth) ** -0.5 if ".out." in path or "s.mlp.down" in path else 1.0)
            values[path] = (scale * jax.random.normal(key, leaf.shape, jnp.float32)).astype(leaf.dtype)
    return values


def _tokenizer(directory: Path, corpus: Iterator[str], family: Family) -> tuple[dict[str, int], int]:
    """Train a byte-level BPE with Qwen's names for markup; returns the ids of the markup, and the number of tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    markup = ("<|endoftext|>", *family.chat.marks, *PAD_MARKS)
    tokenizer = Tokenizer(models.BPE())
    splitter = pre_tokenizers.Split(Regex(_SPLIT_PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [splitter, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE - len(markup), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    if tokenizer.get_vocab_size() <= len(alphabet):
        raise InputError("annotations", "no words", "at least one", "check the file")
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in markup])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(markup[1:]),
        clean_up_tokenization_spaces=False,
    )
    try:
        wrapped.save_pretrained(directory)
    except Exception as error:  # of tokenizers, which is written in Rust: a bare Exception, also for a full disk
        if (code := _RUST_OSERROR.search(str(error))) is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from None
    vocabulary = wrapped.get_vocab()
    return {name: vocabulary[name] for name in markup}, len(vocabulary)


def _frame_pixels(vision: VisionConfig) -> int:
    return FRAME_TOKENS * (vision.patch_size * vision.spatial_merge_size) ** 2


def _processor(directory: Path, family: Family, vision: VisionConfig) -> None:
    """The files of both processors of transformers. Where the video's bounds are on all frames together, it caps each by its
    number of tokens."""
    size = _frame_pixels(vision)
    token, classes = size // FRAME_TOKENS, family.processor_classes
    pixels = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": vision.image_mean,
        "image_std": vision.image_std,
        "size": {"shortest_edge": size, "longest_edge": size},
        "merge_size": vision.spatial_merge_size,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "processor_class": classes["processor"],
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    bounds = {"min_pixels": size, "max_pixels": size}  # for transformers 4.49, beside `size`
    image = pixels | bounds | {"image_processor_type": classes["image_processor"]}
    video = pixels | {"video_processor_type": classes["video_processor"]}
    if family.video_size == "frame":
        video |= bounds
    else:
        longest = family.video_tokens * vision.temporal_patch_size * token
        video |= {"size": {"shortest_edge": token, "longest_edge": longest}}
        video |= {"cap_pixels_per_frame": True, "max_video_tokens": FRAME_TOKENS}
    for name, settings in (("preprocessor", image), ("video_preprocessor", video)):
        (directory / f"{name}_config.json").write_text(json.dumps(settings, indent=1, sort_keys=True))
