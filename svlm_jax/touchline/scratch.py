"""A model to train from scratch: a tokenizer of the words in annotations, random weights, the Hugging Face layout.

Owns the config of the shipped model and the initialisation of its weights. Units: pixels of a frame.
"""

import json
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
from svlm_jax.families import QWEN2_5_VL as FAMILY
from svlm_jax.files import atomic_directory
from svlm_jax.model.parameters import Parameters, shapes

TEXT = TextConfig(0, 192, 512, 4, 3, 3, rms_norm_eps=1e-6, mrope_section=(8, 12, 12), rope_theta=10_000.0)
VISION = VisionConfig(3, 128, 320, 4, 192, fullatt_block_indexes=(2,), tokens_per_second=2)
PIXELS = (168 * 112, 168 * 112)  # min and max of a frame: 6 x 4 vision tokens a second of 3:2 video
# Default streaming settings: the previous text of its training samples; greedy. The vision window is a third of that in
# training, which keeps the previous replies nearer (docs/touchline.md).
STREAMING = {
    "stream": {"vision_window": 8, "sink": 64, "text_window": 576, "moved_reply_kv": "recompute"},
    "sampling": {"temperature": 0.0, "repetition_penalty": 1.0},
}
VOCAB_SIZE = 640  # max tokens, markup included
MARKUP = (
    *("<|endoftext|>", *FAMILY.chat.marks),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
_PADS = ("bos_token_id", "pad_token_id")
# Qwen's pattern, except that the time text of a turn is few tokens, and the two numbers of a score are different tokens, " 2"
# and "-1": the model need not learn from their order which team's goals they count.
_SPLIT_PATTERN = (
    r"Time=|\.0-|\.0s|(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|-\p{N}| ?\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def scratch(target: str | Path, annotations: Iterable[Annotation], *, seed: int = 0) -> ModelConfig:
    """Write a model of random weights, with a tokenizer of the words in `annotations`; the directory is complete or absent.

    Raises:
        InputError: a target that exists; annotations without words.
    """
    with atomic_directory(target) as draft:
        ids, size = _tokenizer(draft, texts(annotations))
        config = ModelConfig(
            replace(TEXT, vocab_size=size),
            VISION,
            FAMILY.model_type,
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
        _processor(draft)
        (draft / "streaming_config.json").write_text(json.dumps(STREAMING, indent=1))
        huggingface.write(draft, config, random_parameters(config, seed))
    return config


def texts(annotations: Iterable[Annotation]) -> Iterator[str]:
    """The tokenizer's corpus: commentary, questions and answers, and the chat format's words, as often as in samples."""
    chat_words = (
        "system",
        FAMILY.chat.system_prompt,
        "previous text",
        "user",
        "assistant",
        "\n",
        FAMILY.chat.time_text(0.0, 1.0),
        " ...",
    )
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
            fan_in = leaf.shape[1] if path == "text.embedding" else np.prod(leaf.shape[: 2 if ".out." in path else 1])
            scale = float(fan_in) ** -0.5 * ((2 * depth) ** -0.5 if ".out." in path or "s.mlp.down" in path else 1.0)
            values[path] = (scale * jax.random.normal(key, leaf.shape, jnp.float32)).astype(leaf.dtype)
    return values


def _tokenizer(directory: Path, corpus: Iterator[str]) -> tuple[dict[str, int], int]:
    """Train a byte-level BPE with Qwen's names for markup; returns the ids of the markup, and the number of tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    splitter = pre_tokenizers.Split(Regex(_SPLIT_PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [splitter, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE - len(MARKUP), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    if tokenizer.get_vocab_size() <= len(alphabet):
        raise InputError("annotations", "no words", "at least one", "check the file")
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in MARKUP])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(MARKUP[1:]),
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(directory)
    vocabulary = wrapped.get_vocab()
    return {name: vocabulary[name] for name in MARKUP}, len(vocabulary)


def _processor(directory: Path) -> None:
    min_pixels, max_pixels = PIXELS
    pixels = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": VISION.image_mean,
        "image_std": VISION.image_std,
        "image_processor_type": FAMILY.processor_classes["image_processor"],
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
        "size": {"shortest_edge": min_pixels, "longest_edge": max_pixels},
        "merge_size": VISION.spatial_merge_size,
        "patch_size": VISION.patch_size,
        "temporal_patch_size": VISION.temporal_patch_size,
        "processor_class": FAMILY.processor_classes["processor"],
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    video = {"image_processor_type": FAMILY.processor_classes["video_processor"]}
    for name, changes in (("preprocessor", {}), ("video_preprocessor", video)):
        (directory / f"{name}_config.json").write_text(json.dumps(pixels | changes, indent=1, sort_keys=True))
