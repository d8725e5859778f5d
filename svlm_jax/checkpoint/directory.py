"""Directories that are easily taken for a checkpoint, recognised by the file names in them: an adapter, pickles, what
DeepSpeed, FSDP, llama.cpp or another framework writes, a parent of checkpoints.

Owns the names of weight files. Host side. Opens no file but adapter_config.json.
"""

import os
import re
from pathlib import Path

from svlm_jax.errors import InputError
from svlm_jax.files import read_json

ADAPTER = "adapter_config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
# What download programs call a file until they have all of it.
_UNFINISHED = re.compile(rf"({SINGLE}|{SHARD.pattern})\.(incomplete|part(ial)?|crdownload|aria2|download|tmp)")
WEIGHTS = f"{SINGLE} or {INDEX}"
_USE_SOURCE = "use the safetensors checkpoint that it was made from"
_CONVERTED = "convert it to transformers' layout with the tools that wrote it"
_ABOVE = "name the directory above it; of a training run: svlm convert RUN_DIR OUT"
_AS_SAFETENSORS = "load it in transformers and save_pretrained it, which writes safetensors"
# Models in another form: pattern of file names, what that is, what to do. The first match is reported.
_FOREIGN = (
    (r".*\.gguf", "a GGUF file (quantised, of llama.cpp)", _USE_SOURCE),
    (r"global_step\d+|zero_to_fp32\.py|.*zero_pp_rank.*", "a DeepSpeed (ZeRO) checkpoint", "join it: zero_to_fp32.py . OUT"),
    (r".*\.orbax-checkpoint-tmp.*", "an Orbax checkpoint that was not written to its end", "write or copy it again"),
    (r"_CHECKPOINT_METADATA|manifest\.ocdbt", "the inside of an Orbax checkpoint", _ABOVE),
    (r"pytorch_model_fsdp.*|.*\.distcp", "an FSDP checkpoint in pieces", "join it: accelerate merge-weights"),
    (r"model_world_size_\d+_rank_\d+\.pt", "an FSDP checkpoint of verl in pieces", "join it: python -m verl.model_merger"),
    (r"mp_rank_\d+.*|iter_\d{7}|latest_checkpointed_iteration\.txt", "a Megatron checkpoint", _CONVERTED),
    (r"qmodel\.pt", "an HQQ (quantised) model", _USE_SOURCE),
    (r".*\.(bin|pth|pt|ckpt|pkl|pickle)", "PyTorch pickles, which can run code and are never read", _AS_SAFETENSORS),
    (
        r".*\.(h5|msgpack|onnx|npz|engine|tflite|pdparams|mlpackage|mlmodelc)|openvino_model\.xml|Modelfile",
        "a model of another framework",
        _USE_SOURCE,
    ),
)
_NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state.*|random_states.*)\.(bin|pth|pt|pkl)")


def refuse_other_kinds(directory: Path) -> None:
    """Refuse a directory without safetensors weights but with another form of a model. A directory with neither passes: the
    reader of what it lacks reports it.

    Raises:
        InputError: an adapter, a model in another form, or a directory of checkpoints.
    """
    names = _names(directory)
    _refuse_adapter(directory, names)
    if any(name.endswith(".safetensors") for name in names) or {INDEX, "params"} & set(names):
        return
    for pattern, kind, remedy in _FOREIGN:
        matches = [name for name in names if re.fullmatch(pattern, name) and not _NO_WEIGHTS.fullmatch(name)]
        if matches:
            raise InputError(str(directory), f"{kind} ({matches[0][:60]})", f"safetensors: {WEIGHTS}", remedy)
    names.sort(key=lambda name: [int(part) if part.isdecimal() else -1 for part in re.split(r"(\d+)", name)])  # newest last
    snapshots = [f"snapshots/{name}" for name in _names(directory / "snapshots")]  # of the hub's cache
    if inside := [name for name in [*names, *snapshots] if (directory / name / "config.json").is_file()]:
        got = f"directories of checkpoints ({', '.join(inside[:2])})"
        raise InputError(str(directory), got, f"config.json and {WEIGHTS}", f"point to one: {inside[-1][:60]}")


def shard_names(directory: Path) -> list[str]:
    """The files of a sharded checkpoint without its index, in order; none when there are no such files.

    Raises:
        InputError: one of them is missing too.
    """
    matches = {name: match for name in _names(directory) if (match := SHARD.fullmatch(name))}
    if not matches:
        return []
    totals = sorted({match[2] for match in matches.values()})
    if len(totals) > 1:
        got = f"shards of several checkpoints (of {', '.join(totals[:4])}) and no {INDEX}"
        raise InputError(str(directory), got, "those of one, or the index", "download the index")
    names = [f"model-{number:05}-of-{totals[0]}.safetensors" for number in range(1, int(totals[0]) + 1)]
    if missing := [name for name in names if name not in matches]:
        raise InputError(str(directory), f"no {', '.join(missing[:3])}, and no {INDEX}", "every shard", "download them")
    return names


def no_weights(directory: Path) -> InputError:
    """The error for a directory without weights."""
    names, remedy = _names(directory), "point to a checkpoint directory"
    others = [name for name in names if name.endswith(".safetensors")]
    if SINGLE in names:
        got = f"{SINGLE}, which is no file (a directory, or a broken link)"
    elif unfinished := [name for name in names if _UNFINISHED.fullmatch(name)]:
        got, remedy = f"a download that did not end ({unfinished[0]})", "download it again"
    else:
        got = f"no safetensors of that name ({', '.join(others[:2])})" if others else "no safetensors"
    return InputError(str(directory), got, WEIGHTS, remedy)


def _refuse_adapter(directory: Path, names: list[str]) -> None:
    weights = [name for name in names if re.fullmatch(r"(adapter_model|pytorch_lora_weights|adapters?)\.\w+", name)]
    has_model = {SINGLE, INDEX, "params"} & set(names) or any(SHARD.fullmatch(name) for name in names)
    if not weights and (has_model or ADAPTER not in names):
        return
    base, kind = "another model", "LoRA"
    if ADAPTER in names:
        try:
            settings = read_json(directory / ADAPTER, "an adapter config")
        except InputError:
            settings = {}
        base = str(settings.get("base_model_name_or_path") or base)[:80]
        kind = str(settings.get("peft_type") or kind)[:20]
    got = f"{'a model and a' if has_model else 'a'} {kind} (PEFT) adapter of {base}"
    remedy = f"merge it into {base} first (merge_and_unload)"
    raise InputError(str(directory), got, "a complete model", f"{remedy}, or move its files away" if has_model else remedy)


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []
