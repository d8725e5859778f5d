"""Checkpoint directories as public bug reports have them, beside those of `hostile`: quantised by every tool, a model under
other names, one half of a model, downloads that did not end, layouts of other frameworks, files of odd kinds, settings that
lie. Same form: a name, and what makes it out of a whole checkpoint."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_dtypes import float8_e4m3fn

from tests.support.hostile import (
    EVIL,
    INDEX,
    LFS,
    SINGLE,
    both,
    edited,
    header,
    index,
    only,
    replaced,
    tensors,
    written,
)

CASES: dict[str, Callable[[Path], Any]] = {}
_Q = "model.layers.0.self_attn.q_proj"
_BIG = 10**9


def renamed(change: Callable[[str], str]) -> Callable[[Path], Any]:
    """Every tensor under another name, as the file has it."""

    def make(d: Path) -> None:
        from safetensors.numpy import load_file, save_file

        stored = load_file(d / SINGLE)
        save_file({change(name): value for name, value in stored.items()}, d / SINGLE, metadata={"format": "pt"})

    return make


def moved(file: str, to: str) -> Callable[[Path], Any]:
    return lambda d: (d / file).rename(d / to) and None


def linked(file: str, to: str) -> Callable[[Path], Any]:
    def make(d: Path) -> None:
        (d / file).unlink(missing_ok=True)
        (d / file).symlink_to(to)

    return make


def fifo(file: str) -> Callable[[Path], Any]:
    def make(d: Path) -> None:
        (d / file).unlink(missing_ok=True)
        os.mkfifo(d / file)

    return make


def without(part: str) -> Callable[[dict], Any]:
    return lambda t: [t.pop(name) for name in list(t) if part in name]


def twice_the_rows(t: dict) -> None:
    t["model.embed_tokens.weight"] = np.concatenate([t["model.embed_tokens.weight"]] * 2)
    t["lm_head.weight"] = np.concatenate([t["lm_head.weight"]] * 2)


# --- quantised: by which tool, and where it says so ---
_QUANT = {
    "fp8, fine-grained": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "bitsandbytes, 4 bits": {"quant_method": "bitsandbytes", "load_in_4bit": True, "_load_in_4bit": True},
    "bitsandbytes, without a method": {"load_in_8bit": True, "llm_int8_threshold": 6.0},
    "torchao": {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_data": {}}}},
    "eetq": {"quant_method": "eetq", "weights": "int8"},
    "aqlm": {"quant_method": "aqlm", "nbits_per_codebook": 16},
    "quanto": {"quant_method": "quanto", "weights": "int4"},
    "quark": {"quant_method": "quark", "global_quant_config": {}},
    "mxfp4": {"quant_method": "mxfp4"},
    "auto-round": {"quant_method": "auto-round", "bits": 4},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {}},
    "modelopt": {"quant_method": "modelopt", "quant_algo": "NVFP4", "producer": {"name": "modelopt"}},
}
for _name, _value in _QUANT.items():
    CASES[f"quantised: {_name}"] = edited("config.json", "quantization_config", _value)
CASES["quantised: compression_config"] = edited("config.json", "compression_config", {"format": "pack-quantized"})
CASES["quantised: in the vision section"] = edited("config.json", "vision_config.quantization_config", {"quant_method": "awq"})
CASES["quantised: hf_quant_config.json alone"] = both(
    written("hf_quant_config.json", json.dumps({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}})),
    tensors(lambda t: t.update({f"{_Q}.weight": t[f"{_Q}.weight"].astype(float8_e4m3fn), f"{_Q}.input_scale": np.ones(1)})),
)
CASES["quantised: quantize_config.json alone"] = both(
    written("quantize_config.json", json.dumps({"bits": 4, "group_size": 128, "desc_act": False})),
    tensors(lambda t: t.update({f"{_Q}.qweight": np.zeros((8, 64), np.int32), f"{_Q}.g_idx": np.zeros(64, np.int32)})),
)
for _name, _change in {
    "fp8 without a word": lambda t: t.update({f"{_Q}.weight": t[f"{_Q}.weight"].astype(float8_e4m3fn)}),
    "hqq": lambda t: t.update({f"{_Q}.W_q": np.zeros(9, np.uint8), f"{_Q}.zero": np.ones(2, np.float32)}),
    "aqlm": lambda t: t.update({f"{_Q}.codebooks": np.ones(9, np.float32), f"{_Q}.codes": np.zeros(9, np.int16)}),
    "quanto": lambda t: t.update({f"{_Q}.weight._data": np.zeros(9, np.uint8), f"{_Q}.weight._scale": np.ones(1, np.float32)}),
    "gguf names": lambda t: (t.clear(), t.update({"blk.0.attn_q.weight": np.zeros((64, 64), np.float32)})),
    "bool": lambda t: t.update({"model.norm.weight": np.zeros(64, bool)}),
}.items():
    CASES[f"quantised tensors: {_name}"] = tensors(_change)
CASES["gguf beside mmproj"] = only("model-Q4_K_M.gguf", "mmproj-F16.gguf", config=False)
CASES["gguf called model.safetensors"] = written(SINGLE, b"GGUF\x03\x00\x00\x00" + bytes(64))
CASES["zip called model.safetensors"] = written(SINGLE, b"PK\x03\x04" + bytes(64))
CASES["pickle called model.safetensors"] = written(SINGLE, b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.")
CASES["gzip called model.safetensors"] = written(SINGLE, b"\x1f\x8b\x08\x00" + bytes(64))

# --- wrappers in the names of tensors ---
for _prefix in ("_orig_mod.", "module.", "model.", "base_model.model.", "model.base_model.", "actor.", "thinker."):
    CASES[f"names: all begin with {_prefix}"] = renamed(lambda name, prefix=_prefix: prefix + name)
CASES["names: of the base class, without its head"] = both(
    tensors(lambda t: t.pop("lm_head.weight")),
    renamed(lambda name: name.removeprefix("model.").removeprefix("visual.")),
)
CASES["names: of MLX"] = renamed(
    lambda name: name.replace("visual.", "vision_tower.").replace("model.", "language_model.model.")
)
CASES["names: compiled parts"] = renamed(lambda name: name.replace("layers.", "layers._orig_mod."))
CASES["names: activation checkpointing"] = renamed(
    lambda name: name.replace("layers.0.", "layers.0._checkpoint_wrapped_module.")
)
CASES["names: of Megatron"] = both(
    tensors(without("layers.")), tensors(lambda t: t.update({"decoder.layers.0.mlp.linear_fc1.weight": np.ones(4, np.float32)}))
)
CASES["names: of GPT-2"] = tensors(
    lambda t: (t.clear(), t.update({"transformer.h.0.attn.c_attn.weight": np.ones(4, np.float32)}))
)

# --- half a model, or another one ---
CASES["half: text alone"] = tensors(without("visual."))
CASES["half: vision alone"] = tensors(lambda t: [t.pop(name) for name in list(t) if "visual." not in name])
CASES["half: one layer missing"] = tensors(without("layers.1."))
CASES["half: the last vision block missing"] = tensors(without("blocks.1."))
CASES["half: nothing but the embedding"] = tensors(lambda t: [t.pop(name) for name in list(t) if "embed_tokens" not in name])
CASES["vocabulary resized"] = tensors(twice_the_rows)
CASES["head of another size"] = tensors(lambda t: t.update({"lm_head.weight": t["lm_head.weight"][:400]}))
CASES["reward model"] = tensors(lambda t: (t.pop("lm_head.weight"), t.update({"score.weight": np.ones((1, 64), np.float32)})))
CASES["value head beside"] = tensors(lambda t: t.update({"v_head.summary.weight": np.ones((1, 64), np.float32)}))
CASES["transposed matrix"] = tensors(lambda t: t.update({"lm_head.weight": np.ascontiguousarray(t["lm_head.weight"].T)}))
CASES["tied by the config and different"] = edited("config.json", "tie_word_embeddings", True)
CASES["optimizer in the same file"] = tensors(lambda t: t.update({"optimizer.state.step": np.ones((), np.float32)}))
CASES["complex numbers"] = header(b'{"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}', data=b"x" * 8)
CASES["four bits in the header"] = header(b'{"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}', data=b"x")
CASES["header of 100 MB"] = lambda d: (
    (d / SINGLE).write_bytes((100 << 20).to_bytes(8, "little") + b"{"),
    os.truncate(d / SINGLE, 110 << 20),
)
CASES["header of a million tensors"] = header(
    b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % number for number in range(200_000)) + b"}"
)
CASES["offset below zero"] = header(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}', data=b"x" * 8)
CASES["metadata alone"] = header(b'{"__metadata__": {"format": "pt"}}')
CASES["metadata that is no object"] = header(b'{"__metadata__": 5}')

# --- downloads that did not end ---
for _suffix in (".incomplete", ".part", ".crdownload", ".aria2", ".tmp"):
    CASES[f"download: model.safetensors{_suffix} alone"] = moved(SINGLE, SINGLE + _suffix)
CASES["download: a shard is incomplete"] = both(
    index({}), moved("model-00002-of-00002.safetensors", "model-00002-of-00002.safetensors.incomplete")
)
CASES["download: shards incomplete, no index"] = both(
    index(None), moved("model-00002-of-00002.safetensors", "model-00002-of-00002.safetensors.part")
)
CASES["download: index alone"] = both(
    index({}), lambda d: [(d / f"model-{n:05}-of-00002.safetensors").unlink() for n in (1, 2)] and None
)
CASES["download: a shard is a pointer"] = both(index({}), written("model-00001-of-00002.safetensors", LFS))
CASES["download: a shard is empty"] = both(index({}), written("model-00001-of-00002.safetensors", b""))
CASES["download: xet pointer"] = written(SINGLE, b"# xet version 0\nfilesize = 12\nhash = 'ab'\n")
CASES["download: 404 as text"] = written(SINGLE, b"Entry not found")
CASES["download: 404 as config"] = written("config.json", b"Entry not found")
CASES["download: error as JSON"] = written("config.json", b'{"error": "Repository not found"}')
CASES["download: error as XML"] = written("config.json", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>')
CASES["download: error as XML, weights"] = written(SINGLE, b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>')
CASES["download: page after a comment"] = written("config.json", b"<!-- x --><!DOCTYPE html><html></html>")
CASES["download: zeros"] = written(SINGLE, bytes(1 << 16))
CASES["download: config of zeros"] = written("config.json", bytes(512))
for _file in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "merges.txt"):
    CASES[f"download: {_file} is a pointer"] = written(_file, LFS)
    CASES[f"download: {_file} is a web page"] = written(_file, "<!DOCTYPE html><html></html>")
    CASES[f"download: {_file} is empty"] = written(_file, b"")

# --- odd kinds of files ---
for _file in (
    "config.json",
    SINGLE,
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "preprocessor_config.json",
):
    CASES[f"fifo: {_file}"] = fifo(_file)
    CASES[f"endless: {_file}"] = linked(_file, "/dev/zero")
for _file in ("tokenizer.json", "tokenizer_config.json", "merges.txt"):
    CASES[f"directory: {_file}"] = replaced(_file, "directory")
    CASES[f"loop of links: {_file}"] = replaced(_file, "loop")
CASES["params is an empty directory"] = lambda d: (d / "params").mkdir() and None
CASES["config.json in upper case"] = moved("config.json", "CONFIG.JSON")
CASES["one level too high"] = lambda d: (
    shutil.move(d, d.parent / "inner"),
    d.mkdir(),
    shutil.move(d.parent / "inner", d / "snapshot"),
)
CASES["cache of the hub"] = lambda d: (
    shutil.move(d, d.parent / "inner"),
    (d / "snapshots").mkdir(parents=True),
    shutil.move(d.parent / "inner", d / "snapshots" / "0a1b2c"),
    (d / "refs").mkdir(),
    (d / "blobs").mkdir(),
)
CASES["Megatron's folders"] = only("mp_rank_00/model_optim_rng.pt", "latest_checkpointed_iteration.txt")
CASES["torch dcp"] = only("__0_0.distcp", ".metadata")
CASES["verl's shards"] = only("model_world_size_8_rank_0.pt", "fsdp_config.json")
CASES["only consolidated.safetensors"] = moved(SINGLE, "consolidated.safetensors")
CASES["only diffusion_pytorch_model.safetensors"] = moved(SINGLE, "diffusion_pytorch_model.safetensors")
CASES["only model.fp16.safetensors"] = moved(SINGLE, "model.fp16.safetensors")
CASES["flax"] = only("flax_model.msgpack")
CASES["tensorrt engine"] = only("rank0.engine", config=False)
CASES["ollama"] = only("Modelfile", config=False)
CASES["PaddlePaddle"] = only("model_state.pdparams")
CASES["coreml"] = only("model.mlpackage/Data/weights.bin", config=False)

# --- settings that lie ---
for _path, _values in {
    "hidden_size": [1 << 30, float("nan"), float("inf"), 1e3, "1e3"],
    "num_attention_heads": [3, 0, 10**6, "4"],
    "num_key_value_heads": [3, 8, 0],
    "intermediate_size": [_BIG, -1],
    "vocab_size": [_BIG, 100],
    "rms_norm_eps": [-1, "1e-6", float("nan")],
    "max_position_embeddings": ["32768", -1],
    "hidden_act": ["gelu", None, 5],
    "rope_scaling": [{"rope_type": "linear", "factor": 2.0, "mrope_section": [2, 3, 3]}, 5, {"mrope_section": [-1, 4, 5]}],
    "vision_config.num_heads": [3, 0, "2"],
    "vision_config.out_hidden_size": [32],
    "vision_config.spatial_merge_size": [1, 3, 0, 10**6],
    "vision_config.temporal_patch_size": [1, 10**6, "2"],
    "vision_config.hidden_size": [_BIG, "32"],
    "vision_config.depth": [999, 1, "3", [3]],
    "model_type": ["qwen2_5_VL", "qwen2.5_vl", "llava", "internvl_chat", "", "qwen3_omni_moe", "qwen3_vl_text"],
    "torch_dtype": ["fp16", "auto", "torch.float16", "float8_e4m3fn", "float64"],
    "tie_word_embeddings": ["true", 1],
}.items():
    for _value in _values:
        CASES[f"config.json {_path} = {_value!r:.60} (2)"] = edited("config.json", _path, _value)
CASES["config.json: number with 400 digits"] = edited("config.json", "hidden_size", int("9" * 400))
CASES["config.json: of the text half"] = lambda d: (
    (d / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl_text", "hidden_size": 64})) and None
)
CASES["config.json: of a processor"] = written("config.json", '{"processor_class": "Qwen2_5_VLProcessor"}')
CASES["config.json: single quotes"] = written("config.json", "{'model_type': 'qwen2_5_vl'}")
CASES["config.json: with a comment"] = written("config.json", '{\n// mine\n"model_type": "qwen2_5_vl"}')
CASES["config.json: comma at the end"] = written("config.json", '{"model_type": "qwen2_5_vl",}')
CASES["config.json: latin-1"] = written("config.json", '{"model_type": "é"}'.encode("latin-1"))
CASES["config.json: 17 MB"] = written("config.json", "{" + " " * (17 << 20) + "}")
CASES["config.json: half a surrogate"] = written("config.json", '{"model_type": "\\ud83c"}')
CASES["config.json: two objects"] = written("config.json", '{"model_type": "qwen2_5_vl"}{"a": 1}')
CASES["config.json: model_type twice"] = written("config.json", '{"model_type": "qwen2_5_vl", "model_type": "qwen2_vl"}')

for _file, _path, _value in (
    ("generation_config.json", "top_p", 1.5),
    ("generation_config.json", "temperature", float("inf")),
    ("generation_config.json", "temperature", True),
    ("generation_config.json", "top_p", -0.1),
    ("generation_config.json", "top_p", 0),
    ("generation_config.json", "repetition_penalty", -1),
    ("generation_config.json", "repetition_penalty", float("nan")),
    ("generation_config.json", "top_k", "50"),
    ("generation_config.json", "eos_token_id", [[435]]),
    ("generation_config.json", "eos_token_id", 10**12),
    ("generation_config.json", "eos_token_id", True),
    ("generation_config.json", "suppress_tokens", [10**9]),
    ("generation_config.json", "eos_token_id", [151645, 151643]),
    ("preprocessor_config.json", "do_resize", False),
    ("preprocessor_config.json", "resample", 2),
    ("preprocessor_config.json", "max_pixels", 1),
    ("preprocessor_config.json", "max_pixels", float("nan")),
    ("preprocessor_config.json", "image_mean", "CLIP"),
    ("video_preprocessor_config.json", "temporal_patch_size", 4),
    ("video_preprocessor_config.json", "max_pixels", -1),
    ("processor_config.json", "image_processor", {"patch_size": 15}),
    ("processor_config.json", "video_processor", {"merge_size": 2}),
    ("tokenizer.json", "model.merges", [["a"]]),
    ("tokenizer.json", "model.vocab", {"a": -1}),
    ("tokenizer.json", "decoder", {"type": "Unheard"}),
    ("tokenizer.json", "version", "9.0"),
):
    CASES[f"{_file} {_path} = {_value!r:.60} (2)"] = edited(_file, _path, _value)
CASES["tokenizer: of another model"] = lambda d: _another_tokenizer(d, 1000)
CASES["tokenizer: vocab.json alone"] = lambda d: [(d / name).unlink() for name in ("tokenizer.json", "merges.txt")] and None
CASES["tokenizer: 33 MB"] = written("tokenizer.json", b"{" + b" " * (33 << 20) + b"}")
CASES["tokenizer: added tokens with absurd ids"] = edited(
    "tokenizer_config.json", "added_tokens_decoder", {"1000000000": {"content": "<x>"}, "-1": {"content": "<y>"}}
)

# --- these load ---
LOADS = {
    "code of a remote repository named": edited("config.json", "auto_map", {"AutoModel": "evil/repo--modeling.T"}),
    "tokenizer of a remote repository named": both(
        edited("tokenizer_config.json", "auto_map", {"AutoTokenizer": ["evil/repo--tok.T", None]}), written("tok.py", EVIL)
    ),
    "params is a file": written("params", b"x"),
    "added tokens that are no list": edited("tokenizer.json", "added_tokens", 5),
    "quantization_config is null": edited("config.json", "quantization_config", None),
    "no tokenizer_config.json": lambda d: (d / "tokenizer_config.json").unlink(),
    "no generation_config.json": lambda d: (d / "generation_config.json").unlink(missing_ok=True),
    "no preprocessor files": lambda d: (
        [(d / name).unlink(missing_ok=True) for name in ("preprocessor_config.json", "video_preprocessor_config.json")] and None
    ),
    "no added_tokens.json": lambda d: (d / "added_tokens.json").unlink(),
    "merges.txt with other line ends": lambda d: (
        (d / "merges.txt").write_bytes((d / "merges.txt").read_bytes().replace(b"\n", b"\r\n")) and None
    ),
    "generation_config.json: other keys": edited("generation_config.json", "foo", {"bar": [None]}),
    "generation_config.json: a temperature with do_sample off": both(
        edited("generation_config.json", "do_sample", False), edited("generation_config.json", "temperature", 0.7)
    ),
    "generation_config.json: temperature 1e-6": both(
        edited("generation_config.json", "do_sample", True), edited("generation_config.json", "temperature", 1e-6)
    ),
    "generation_config.json: nulls": edited("generation_config.json", "top_k", None),
    "generation_config.json: no end": edited("generation_config.json", "eos_token_id", []),
    "chat_template.json": written("chat_template.json", '{"chat_template": "{{ 1 }}"}'),
    "extra special tokens as a list": edited("tokenizer_config.json", "extra_special_tokens", ["<|vision_start|>"]),
    "tokenizer class of transformers 5": edited("tokenizer_config.json", "tokenizer_class", "TokenizersBackend"),
    "length of a tokenizer": edited("tokenizer_config.json", "model_max_length", int(1e30)),
    "rotary buffers left": tensors(lambda t: t.update({"model.rotary_emb.inv_freq": np.ones(8, np.float32)})),
    "trainer's files beside": both(
        written("trainer_state.json", "{}"), written("rng_state_0.pth", b"x"), written("scheduler.pt", b"x")
    ),
    "finder's files beside": both(written(".DS_Store", b"x"), written("._model.safetensors", b"x")),
    "index of one file": lambda d: _index_of_single(d),
    "no format in the metadata": lambda d: _no_metadata(d),
    "unknown keys of a newer version": edited("config.json", "vision_config.new_thing", {"a": float("nan")}),
}
CASES |= LOADS


def _another_tokenizer(d: Path, extra: int) -> None:
    content = json.loads((d / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {f"Ġtok{number}": 448 + number for number in range(extra)}
    (d / "tokenizer.json").write_text(json.dumps(content))


def _index_of_single(d: Path) -> None:
    from safetensors.numpy import load_file

    weights = dict.fromkeys(load_file(d / SINGLE), SINGLE)
    (d / INDEX).write_text(json.dumps({"metadata": {"total_size": "?"}, "weight_map": weights}))


def _no_metadata(d: Path) -> None:
    from safetensors.numpy import load_file, save_file

    save_file(load_file(d / SINGLE), d / SINGLE)
