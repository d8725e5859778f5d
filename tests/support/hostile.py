"""Checkpoint directories that hold something else than a model of a family, or hold it damaged: each made by code from a small
model of any family. `foreign` has more; `hostile_runner` tries them."""

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
MARKER = "somebody ran code"  # a file that appears if code of a checkpoint is run
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 4978265728\n"
CASES: dict[str, Callable[[Path], Any]] = {}
ROOT_KEYS = ("model_type", "vision_config", "text_config", "tie_word_embeddings", "torch_dtype", "image_token_id", "auto_map")
ROOT_KEYS += ("quantization_config", "quantization", "compression_config")
# What loads all the same: an odd directory is not yet a wrong one.
LOADS = ("odd chat template", "code beside", "code of an unknown tokenizer", "merged adapter config left")
LOADS += ("shards without index", "extra pickles beside", "vocab.json and merges.txt alone")


def edited(file: str, path: str, value: Any) -> Callable[[Path], Any]:
    """A JSON file with the value at a dotted path replaced. A path of the flat config.json stands for its place in a nested
    one."""

    def make(d: Path) -> None:
        content = json.loads((d / file).read_text()) if (d / file).is_file() else {}
        *parents, leaf = (_in_text_config(path) if file == "config.json" and "text_config" in content else path).split(".")
        node = content
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
        (d / file).write_text(json.dumps(content))

    return make


def _in_text_config(path: str) -> str:
    first = path.partition(".")[0]
    if first in ("rope_theta", "rope_scaling"):
        place = "rope_parameters" if first == "rope_scaling" else "rope_parameters.rope_theta"
        return f"text_config.{path.replace(first, place)}"
    return path if first in ROOT_KEYS else f"text_config.{path}"


def written(file: str, content: bytes | str) -> Callable[[Path], Any]:
    return lambda d: (d / file).write_bytes(content.encode() if isinstance(content, str) else content) and None


def only(*names: str, config: bool = True) -> Callable[[Path], Any]:
    """Without safetensors, but with files (or folders: names that end in /) of these names."""

    def make(d: Path) -> None:
        (d / SINGLE).unlink()
        if not config:
            (d / "config.json").unlink()
        for name in names:
            (d / name).parent.mkdir(parents=True, exist_ok=True)
            (d / name).mkdir() if name.endswith("/") else (d / name).write_bytes(b"PK\x03\x04 whatever")

    return make


def tensors(change: Callable[[dict], Any]) -> Callable[[Path], Any]:
    def make(d: Path) -> None:
        from safetensors.numpy import load_file, save_file

        stored = load_file(d / SINGLE)
        held = {_flat_name(name): value for name, value in stored.items()}
        change(held)
        save_file({_name_like(name, stored): value for name, value in held.items()}, d / SINGLE, metadata={"format": "pt"})

    return make


def _flat_name(name: str) -> str:
    """The name of a tensor as Qwen2.5-VL has it, in which cases speak of them."""
    for prefix, flat in (("model.language_model.", "model."), ("model.visual.", "visual.")):
        if name.startswith(prefix):
            return flat + name.removeprefix(prefix)
    return name


def _name_like(name: str, stored: Collection[str]) -> str:
    """The inverse of `_flat_name` in a file with these names."""
    if any(other.startswith("model.language_model.") for other in stored):
        for prefix, flat in (("model.language_model.", "model."), ("model.visual.", "visual.")):
            if name.startswith(flat):
                return prefix + name.removeprefix(flat)
    return name


def header(content: bytes, length: int | None = None, data: bytes = b"") -> Callable[[Path], Any]:
    """model.safetensors from the bytes of its header."""
    size = len(content) if length is None else length
    return written(SINGLE, size.to_bytes(8, "little") + content + data)


def index(entries: Any) -> Callable[[Path], Any]:
    """The checkpoint in two shards, and an index that also says `entries`."""

    def make(d: Path) -> None:
        from safetensors.numpy import load_file, save_file

        held = load_file(d / SINGLE)
        (d / SINGLE).unlink()
        names, weights = sorted(held), {}
        for number, part in enumerate((names[::2], names[1::2]), 1):
            file = f"model-{number:05}-of-00002.safetensors"
            save_file({name: held[name] for name in part}, d / file, metadata={"format": "pt"})
            weights |= dict.fromkeys(part, file)
        save_file(held, d.parent / "secret.safetensors")
        if entries is not None:
            if isinstance(entries, dict):
                weights |= {_name_like(name, names): file for name, file in entries.items()}
            else:
                weights = entries
            (d / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weights}))

    return make


def both(*makes: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda d: [make(d) for make in makes] and None


def replaced(name: str, by: str) -> Callable[[Path], Any]:
    """A directory, a loop of links or a link to nothing in the place of a file."""

    def make(d: Path) -> None:
        (d / name).unlink(missing_ok=True)
        if by == "directory":
            (d / name).mkdir()
        else:
            (d / name).symlink_to(d / name if by == "loop" else "/nowhere/at/all")

    return make


CONFIG_FILES = ("config.json", "generation_config.json", "streaming_config.json", "preprocessor_config.json")
CONFIG_FILES += ("video_preprocessor_config.json", "processor_config.json")
READ_FILES = (*CONFIG_FILES, "tokenizer.json", SINGLE, INDEX)
DEEP = "[" * 200_000

for _file in READ_FILES:
    CASES[f"{_file}: git lfs pointer"] = written(_file, LFS)
    CASES[f"{_file}: empty"] = written(_file, b"")
    CASES[f"{_file}: web page"] = written(_file, "<!DOCTYPE html><html><body>404</body></html>")
for _file in (*CONFIG_FILES, INDEX):
    CASES[f"{_file}: 200,000 brackets"] = written(_file, DEEP)
    CASES[f"{_file}: deep in a key"] = written(_file, '{"a":' * 100_000)
    CASES[f"{_file}: utf-16"] = written(_file, "{}".encode("utf-16"))
    CASES[f"{_file}: byte order mark"] = written(_file, b"\xef\xbb\xbf{}")
    CASES[f"{_file}: a list"] = written(_file, "[1, 2]")
    CASES[f"{_file}: key twice"] = written(_file, '{"a": 1, "a": 2}')
    CASES[f"{_file}: endless number"] = written(_file, '{"a": ' + "9" * 5000 + "}")
    CASES[f"{_file}: directory"] = replaced(_file, "directory")
    CASES[f"{_file}: loop of links"] = replaced(_file, "loop")
for _file in ("config.json", SINGLE):
    CASES[f"{_file}: missing"] = lambda d, file=_file: (d / file).unlink()
    CASES[f"{_file}: link to nothing"] = replaced(_file, "nothing")
CASES["empty directory"] = lambda d: [path.unlink() for path in d.iterdir()] and None

# config.json
for _path, _values in {
    "model_type": ["qwen2_vl", "qwen3_5", "qwen3_vl_moe", "qwen2", None, 5, ["qwen2_5_vl"], "\x1b[31mred\ud800", "x" * 5000],
    "hidden_size": [0, -64, 64.5, "64", None, [64], 10**30, True],
    "num_hidden_layers": [10**7, 10**10, 0, -1, 7],
    "vocab_size": [10**12, 1, "448"],
    "rope_theta": [float("nan"), float("inf"), -1, "1e6"],
    "rms_norm_eps": [float("inf"), [1e-6]],
    "rope_scaling": [[], "mrope", {"type": "yarn", "mrope_section": [2, 3, 3]}, {"mrope_section": [2, 3, 10**20]}],
    "rope_scaling.mrope_section": [5, [2, 3], [0] * 100_000, {"a": 1}],
    "vision_config": [[], None, "vision", {"depth": 10**9}],
    "vision_config.depth": [10**9, 0],
    "vision_config.fullatt_block_indexes": [[-1], [99], "1", [[1]], 7],
    "vision_config.patch_size": [10**9, 0, 7],
    "vision_config.in_channels": [1, 10**9],
    "vision_config.window_size": [10**12, 100],
    "text_config": [[], 3, {}],
    "tie_word_embeddings": ["yes", 2, True],
    "torch_dtype": ["float16", "int8", 5, ["float32"], "x" * 3000],
    "eos_token_id": ["end", -1, [[1]], {}],
    "image_token_id": ["pad", -1, 10**20],
    "quantization_config": [{"quant_method": method} for method in ("awq", "gptq", "bitsandbytes", "fp8", "hqq", "torchao", "")]
    + [{"quant_method": "compressed-tensors", "config_groups": {}}, "awq", {"bits": 4}, {"quant_method": ["a"] * 9999}],
    "quantization": [{"group_size": 64, "bits": 4}],
    "text_config.quantization_config": [{"quant_method": "modelopt"}],
    "layer_types": [["sliding_attention"] * 4],
}.items():
    for _value in _values:
        CASES[f"config.json {_path} = {_value!r:.60}"] = edited("config.json", _path, _value)

# other settings
for _file, _path, _value in (
    ("generation_config.json", "temperature", "hot"),
    ("generation_config.json", "temperature", float("nan")),
    ("generation_config.json", "repetition_penalty", 0),
    ("generation_config.json", "repetition_penalty", [1.05]),
    ("generation_config.json", "top_p", 2),
    ("generation_config.json", "top_k", 1.5),
    ("generation_config.json", "top_k", -1),
    ("generation_config.json", "do_sample", "true"),
    ("generation_config.json", "eos_token_id", "<|im_end|>"),
    ("generation_config.json", "eos_token_id", [1, None]),
    ("generation_config.json", "suppress_tokens", {"a": 1}),
    ("streaming_config.json", "stream", []),
    ("streaming_config.json", "stream.vision_window", 10**9),
    ("streaming_config.json", "stream.vision_window", "16"),
    ("streaming_config.json", "stream.fps", float("nan")),
    ("streaming_config.json", "stream.mode", ["full"]),
    ("streaming_config.json", "stream.\x1b[2J", 1),
    ("streaming_config.json", "sampling.temperature", float("inf")),
    ("streaming_config.json", "sampling.suppressed", [1.5]),
    ("streaming_config.json", "sampling", None),
    ("streaming_config.json", "frame", 5),
    ("streaming_config.json", "frame.max_pixels", -5),
    ("streaming_config.json", "frame.pixels", 5),
    ("streaming_config.json", "other", {}),
    ("preprocessor_config.json", "patch_size", 0),
    ("preprocessor_config.json", "patch_size", 10**9),
    ("preprocessor_config.json", "patch_size", 16),
    ("preprocessor_config.json", "merge_size", 1),
    ("preprocessor_config.json", "temporal_patch_size", 1),
    ("preprocessor_config.json", "min_pixels", 10**15),
    ("preprocessor_config.json", "max_pixels", 10**300),
    ("preprocessor_config.json", "max_pixels", "12845056"),
    ("preprocessor_config.json", "image_mean", [0.5, 0.5]),
    ("preprocessor_config.json", "image_std", [0, 1, 1]),
    ("preprocessor_config.json", "image_std", [float("nan"), 1, 1]),
    ("preprocessor_config.json", "rescale_factor", float("inf")),
    ("preprocessor_config.json", "resample", [3]),
    ("video_preprocessor_config.json", "patch_size", 16),
    ("video_preprocessor_config.json", "image_mean", None),
    ("processor_config.json", "image_processor", []),
    ("processor_config.json", "image_processor.size", 5),
    ("processor_config.json", "video_processor", "Qwen2VLVideoProcessor"),
    ("tokenizer.json", "model", 5),
    ("tokenizer.json", "model.vocab", []),
    ("tokenizer.json", "model.type", "Unheard"),
    ("tokenizer.json", "pre_tokenizer", 7),
    ("tokenizer_config.json", "tokenizer_class", 5),
    ("tokenizer_config.json", "added_tokens_decoder", [1, 2]),
):
    CASES[f"{_file} {_path} = {_value!r:.60}"] = edited(_file, _path, _value)
CASES["tokenizer.json: deep"] = written("tokenizer.json", '{"model":' * 100_000)

# another kind of checkpoint
for _name in (
    "pytorch_model.bin",
    "pytorch_model-00001-of-00002.bin",
    "consolidated.00.pth",
    "model.ckpt",
    "m-q4_k_m.gguf",
):
    CASES[f"only {_name}"] = only(_name)
    CASES[f"only {_name}, no config"] = only(_name, config=False)
CASES["deepspeed"] = only("global_step500/zero_pp_rank_0_mp_rank_00_model_states.pt", "latest", "zero_to_fp32.py")
CASES["fsdp"] = only("pytorch_model_fsdp_0/__0_0.distcp")
CASES["onnx"] = only("model.onnx", config=False)
CASES["trainer's output"] = only("checkpoint-500/config.json", "checkpoint-1000/config.json", config=False)
CASES["other name"] = lambda d: (d / SINGLE).rename(d / "merged.safetensors") and None
CASES["adapter"] = both(only("adapter_model.safetensors"), edited("adapter_config.json", "base_model_name_or_path", "o/base"))
CASES["adapter, no config"] = both(CASES["adapter"], lambda d: (d / "config.json").unlink())
CASES["adapter beside the model"] = lambda d: (d / "adapter_model.safetensors").write_bytes(b"x") and None
CASES["adapter config broken"] = both(only("adapter_model.bin"), written("adapter_config.json", DEEP))
CASES["adapter of a long name"] = both(
    only("adapter_model.bin"), edited("adapter_config.json", "base_model_name_or_path", "a" * 9999)
)
_Q = "model.layers.0.self_attn.q_proj"
for _name, _change in {
    "unmerged": lambda t: t.update(
        {f"{_Q}.base_layer.weight": t.pop(f"{_Q}.weight"), f"{_Q}.lora_A.default.weight": np.ones(2)}
    ),
    "awq without a word": lambda t: t.update({f"{_Q}.qweight": np.zeros((64, 8), np.int32), f"{_Q}.scales": np.ones(2)}),
    "int8": lambda t: t.update({f"{_Q}.weight": np.zeros((64, 64), np.int8)}),
    "bitsandbytes": lambda t: t.update({f"{_Q}.weight.quant_state.bitsandbytes__nf4": np.zeros(4, np.uint8)}),
    "weight_scale": lambda t: t.update({f"{_Q}.weight_scale_inv": np.ones(4, np.float32)}),
    "mlx": lambda t: t.update({f"{_Q}.scales": np.ones(4, np.float32), f"{_Q}.biases": np.ones(4, np.float32)}),
    "ZeRO-3, empty": lambda t: t.update({name: np.zeros(0, np.float32) for name in t}),
    "ZeRO-3, flattened": lambda t: t.update({name: value.reshape(-1) for name, value in t.items()}),
    "FSDP, flattened": lambda t: t.update({"_fsdp_wrapped_module._flat_param": np.zeros(9, np.float32)}),
    "both key layouts": lambda t: t.update({"model.language_model.norm.weight": t["model.norm.weight"] + 1}),
    "another head": lambda t: t.pop("lm_head.weight"),
    "nothing in it": lambda t: t.clear(),
    "names of 5,000 letters": lambda t: t.update({"x" * 5000: np.ones(2, np.float32)}),
    "names with escapes": lambda t: t.update({"a\x1b[31m\n\nb": np.ones(2, np.float32)}),
    "integers": lambda t: t.update({"model.norm.weight": np.zeros(64, np.int64)}),
    "scalars": lambda t: t.update({"model.norm.weight": np.ones((), np.float32)}),
}.items():
    CASES[f"tensors: {_name}"] = tensors(_change)

# safetensors that lie
_ENTRY = '{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
for _name, _make in {
    "length of 2^63": header(b"{}", 2**63 - 1),
    "length of 2^40": header(b"{}", 2**40),
    "length one too long": header(b"{}", 3),
    "seven bytes": written(SINGLE, b"1234567"),
    "no JSON": header(b"hello"),
    "a list": header(b"[]"),
    "deep": header(DEEP.encode()),
    "a tensor twice": header(f'{{"a": {_ENTRY}, "a": {_ENTRY}}}'.encode(), data=b"12345678"),
    "overlap": header(f'{{"a": {_ENTRY}, "b": {_ENTRY}}}'.encode(), data=b"12345678"),
    "hole": header(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}', data=b"x" * 16),
    "more data": header(f'{{"a": {_ENTRY}}}'.encode(), data=b"x" * 9),
    "less data": header(f'{{"a": {_ENTRY}}}'.encode(), data=b"x" * 7),
    "absurd shape": header(
        b'{"a": {"dtype": "F32", "shape": [1099511627776, 1048576], "data_offsets": [0, 8]}}', data=b"x" * 8
    ),
    "negative shape": header(b'{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}', data=b"x" * 8),
    "shape of text": header(b'{"a": {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}}', data=b"x" * 8),
    "entry is a number": header(b'{"a": 5}'),
    "type is a list": header(b'{"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}', data=b"x" * 8),
    "unknown type": header(b'{"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}', data=b"x"),
    "offsets backwards": header(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}', data=b"x" * 8),
    "cut in the middle": lambda d: os.truncate(d / SINGLE, (d / SINGLE).stat().st_size // 2),
    "cut by one byte": lambda d: os.truncate(d / SINGLE, (d / SINGLE).stat().st_size - 1),
}.items():
    CASES[f"safetensors: {_name}"] = _make

# an index that lies
for _name, _entries in {
    "number": {"model.norm.weight": 5},
    "list": {"model.norm.weight": ["a.safetensors"]},
    "null": {"model.norm.weight": None},
    "parent": {"model.norm.weight": "../secret.safetensors"},
    "absolute": {"model.norm.weight": "/etc/passwd"},
    "absolute safetensors": {"model.norm.weight": "/tmp/secret.safetensors"},
    "folder": {"model.norm.weight": "sub/model.safetensors"},
    "dots": {"model.norm.weight": ".."},
    "backslash": {"model.norm.weight": "..\\secret.safetensors"},
    "5,000 letters": {"model.norm.weight": "m" * 5000 + ".safetensors"},
    "NUL": {"model.norm.weight": "a\0.safetensors"},
    "pickle": {"model.norm.weight": "pytorch_model.bin"},
    "missing shard": {"model.norm.weight": "model-00003-of-00003.safetensors"},
    "wrong shard": {
        "model.norm.weight": "model-00001-of-00002.safetensors",
        "lm_head.weight": "model-00002-of-00002.safetensors",
    },
    "both layouts": {"model.language_model.norm.weight": "model-00001-of-00002.safetensors"},
    "empty map": [],
    "map of text": "model.safetensors",
}.items():
    CASES[f"index: {_name}"] = index(_entries)
CASES["index: beside a whole file"] = lambda d: (
    shutil.copy(d / SINGLE, d.parent / "kept"),
    index({})(d),
    shutil.move(d.parent / "kept", d / SINGLE),
)
CASES["shards: one missing"] = both(index(None), lambda d: (d / "model-00002-of-00002.safetensors").unlink())
CASES["shards: of two checkpoints"] = both(index(None), written("model-00001-of-00003.safetensors", b"x"))


class _Bomb:
    def __reduce__(self):
        return os.system, (f"touch '{MARKER}'",)


def _pickle() -> bytes:
    held = io.BytesIO()
    pickle.dump(_Bomb(), held)
    return held.getvalue()


EVIL = f"open({MARKER!r}, 'w').write('x')\nclass T: pass\n"
CASES["pickle alone"] = both(only("pytorch_model.bin"), written("pytorch_model.bin", _pickle()))
# These load.
CASES["code of an unknown tokenizer"] = both(
    edited("tokenizer_config.json", "auto_map", {"AutoTokenizer": ["evil.T", None]}),
    edited("tokenizer_config.json", "tokenizer_class", "EvilTokenizer"),
    written("evil.py", EVIL),
)
CASES["vocab.json and merges.txt alone"] = lambda d: (d / "tokenizer.json").unlink()
CASES["code beside"] = both(
    edited("config.json", "auto_map", {"AutoConfig": "evil.T", "AutoModel": "evil.T"}),
    edited("tokenizer_config.json", "auto_map", {"AutoTokenizer": ["evil.T", "evil.T"]}),
    written("evil.py", EVIL),
)
CASES["odd chat template"] = written("chat_template.jinja", "{{ ().__class__.__base__.__subclasses__() }}{% for x in y")
CASES["merged adapter config left"] = edited("adapter_config.json", "base_model_name_or_path", "o/base")
CASES["shards without index"] = index(None)
CASES["extra pickles beside"] = both(written("training_args.bin", _pickle()), written("optimizer.pt", _pickle()))
