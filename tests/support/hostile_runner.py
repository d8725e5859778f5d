"""Tries the checkpoint directories of `hostile` and `foreign` with every family, in one process.

`python -m tests.support.hostile_runner WORK some` makes those of `SAID` and every fourth of the others in WORK, dealt to the
families in turn, tries to load and to convert it, and prints a JSON line: what was said, and the memory of the process. With
`every` it makes all of them with each family.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support import FIXTURES, foreign, hostile
from tests.support.families import tiny_checkpoint

CASES = hostile.CASES | foreign.CASES
LOADS = {*hostile.LOADS, *foreign.LOADS}
FAMILIES = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl")
# What a family has no use for, and what is another case with it.
_NOT_WITH = {
    "vision_config.fullatt_block_indexes": ("qwen2_vl", "qwen3_vl"),
    "vision_config.window_size": ("qwen2_vl", "qwen3_vl"),
    "patch_size = 16": ("qwen3_vl",),
    "both key layouts": ("qwen3_vl",),  # it has one
    "vision_config.out_hidden_size": ("qwen2_vl",),
    "model_type = 'qwen2_vl'": ("qwen2_vl", "qwen3_vl"),
}
# What the line must hold: the kind that it is, or the way out.
SAID = {
    "config.json quantization_config = {'quant_method': 'awq'}": ("quantised", "awq"),
    "config.json quantization = {'group_size': 64, 'bits': 4}": ("quantised", "MLX"),
    "tensors: awq without a word": ("quantised", "qweight"),
    "tensors: mlx": ("quantised", "biases"),
    "only m-q4_k_m.gguf": ("GGUF", "quantised"),
    "adapter": ("adapter of o/base", "merge"),
    "adapter, no config": ("adapter of o/base", "merge"),
    "adapter beside the model": ("a model and a", "adapter"),
    "tensors: unmerged": ("adapters that are not merged",),
    "tensors: ZeRO-3, empty": ("ZeRO-3", "[0]"),
    "tensors: ZeRO-3, flattened": ("of another shape",),
    "deepspeed": ("DeepSpeed", "zero_to_fp32.py"),
    "fsdp": ("FSDP",),
    "only pytorch_model.bin": ("pickles", "save_pretrained"),
    "only consolidated.00.pth, no config": ("pickles",),
    "trainer's output": ("directories of checkpoints", "checkpoint-500"),
    "other name": ("merged.safetensors",),
    "tokenizer.json: git lfs pointer": ("tokenizer.json", "Git LFS pointer", "git lfs pull"),
    "model.safetensors: git lfs pointer": ("model.safetensors", "Git LFS pointer", "git lfs pull"),
    "config.json: git lfs pointer": ("config.json", "Git LFS pointer", "git lfs pull"),
    "config.json model_type = 'qwen2_vl'": ("vision hidden_act", "'silu'", "'quick_gelu'"),
    "config.json model_type = 'qwen3_5'": ("Qwen3.5", "cannot forget a frame", "use a Qwen3-VL"),
    "config.json model_type = 'qwen3_vl_moe'": ("mixture of experts", "use a dense Qwen3-VL"),
    "config.json model_type = 'qwen2'": ("text alone",),
    "config.json torch_dtype = 'float16'": ("'float16'", "--dtype"),
    "config.json: 200,000 brackets": ("nested too deeply",),
    "config.json num_hidden_layers = 10000000": ("num_hidden_layers", "10000000"),
    "config.json vision_config.window_size = 100": ("config.json vision_config.window_size: got 100",),
    "index: parent": ("../secret.safetensors", "in this directory"),
    "index: number": ("5 for model.norm.weight",),
    "tensors: both key layouts": ("model.norm.weight twice", "model.language_model.norm.weight"),
    "index: both layouts": ("model.language_model.norm.weight",),
    "safetensors: a tensor twice": ("the key 'a' twice",),
    "safetensors: length of 2^63": ("a header of 9223372036854775807 bytes",),
    "safetensors: overlap": ("overlap",),
    "shards: one missing": ("model-00002-of-00002.safetensors", "index"),
    "generation_config.json top_p = 2": ("generation_config.json sampling top_p: got 2",),
    "preprocessor_config.json patch_size = 16": ("expected 14",),
    "quantised: hf_quant_config.json alone": ("quantised", "input_scale"),
    "quantised: quantize_config.json alone": ("quantised", "q_proj"),
    "quantised: bitsandbytes, 4 bits": ("quantised", "bitsandbytes", "quantised from"),
    "quantised: in the vision section": ("quantised", "awq"),
    "quantised tensors: fp8 without a word": ("quantised", "F8_E4M3"),
    "quantised tensors: gguf names": ("other names", "blk.0.attn_q.weight"),
    "gguf called model.safetensors": ("GGUF",),
    "pickle called model.safetensors": ("a pickle, which can run code",),
    "names: all begin with _orig_mod.": ("names with _orig_mod in them", "layers.0", "without what wraps it"),
    "names: all begin with module.": ("names with module in them",),
    "names: activation checkpointing": ("_checkpoint_wrapped_module",),
    "half: text alone": ("no vision tower", "visual."),
    "half: vision alone": ("no language model",),
    "metadata alone": ("no tensors",),
    "vocabulary resized": ("of another shape", "[896, 64]"),
    "download: model.safetensors.part alone": ("did not end", "model.safetensors.part"),
    "download: a shard is a pointer": ("model-00001-of-00002.safetensors", "git lfs pull"),
    "download: 404 as text": ("text that begins 'Entry no'",),
    "download: error as XML": ("XML",),
    "fifo: tokenizer_config.json": ("tokenizer_config.json", "no file"),
    "loop of links: tokenizer.json": ("tokenizer.json", "no file"),
    "cache of the hub": ("point to one: snapshots/0a1b2c",),
    "verl's shards": ("verl", "model_merger"),
    "tokenizer: of another model": ("ids up to 1446", "448"),
    "generation_config.json eos_token_id = [151645, 151643] (2)": ("eos_token_id", "below vocab_size 448"),
}


def pairs(how_many: str) -> Iterator[tuple[str, str]]:
    """(case, family): all, or the cases of `SAID` and every fourth of the others with one family."""
    for number, name in enumerate(CASES):
        families = [family for family in FAMILIES if not any(part in name and family in of for part, of in _NOT_WITH.items())]
        if how_many == "every":
            yield from ((name, family) for family in families)
        elif name in SAID or number % 4 == 0:
            yield name, families[number // 4 % len(families)]


def write_whole(family: str, directory: Path) -> None:
    """A whole checkpoint of a family, with processor files; that of Qwen2.5-VL is as transformers 4 writes it, flat."""
    from svlm_jax.families import FAMILIES as known

    if family == "qwen2_5_vl":
        for source in (FIXTURES / "processor", FIXTURES / "models" / "tiny"):
            shutil.copytree(source, directory, dirs_exist_ok=True)
        return
    tiny_checkpoint(known[family], directory)
    vision = next(iter(known[family].presets.values())).vision
    own = {"patch_size": vision.patch_size, "image_mean": vision.image_mean, "image_std": vision.image_std}
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        pixels = json.loads((FIXTURES / "processor" / name).read_text())
        (directory / name).write_text(json.dumps(pixels | own))


def said(action: Callable[[], Any]) -> str:
    """What a user is told: the line, "" when it went well, a traceback's last line otherwise."""
    import traceback

    from svlm_jax.errors import InputError

    try:
        action()
    except InputError as error:
        return str(error)
    except BaseException:
        return "TRACEBACK " + traceback.format_exc()[-800:]
    return ""


def peak_memory() -> int:
    """Most bytes this process has held. Not `ru_maxrss`, which begins with the peak of the process that started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main(work: Path, how_many: str) -> None:
    import svlm_jax
    from svlm_jax.cli import convert

    whole = Path(tempfile.mkdtemp())
    for family in FAMILIES:
        write_whole(family, whole / family)

    def copy(family: str) -> Path:
        shutil.rmtree(work / "d", ignore_errors=True)
        return shutil.copytree(whole / family, work / "d")

    def converted() -> None:
        sys.argv = ["svlm convert", str(work / "d"), str(work / "out")]
        convert.main()

    os.chdir(work)
    for family in FAMILIES:
        svlm_jax.from_pretrained(copy(family))
        converted()
        shutil.rmtree(work / "out")
    before = peak_memory()
    for name, family in pairs(how_many):
        CASES[name](copy(family))
        loaded, turned = said(lambda: svlm_jax.from_pretrained(work / "d")), said(converted)
        shutil.rmtree(work / "out", ignore_errors=True)
        peak = peak_memory()
        line = {"name": name, "family": family, "loaded": loaded, "converted": turned, "left": sorted(os.listdir(work))}
        line |= {"peak": peak, "grown": peak - before}
        print("CASE " + json.dumps(line), flush=True)
    shutil.rmtree(whole)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
