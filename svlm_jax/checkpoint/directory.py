"""What a user took for a checkpoint directory, by the names in it: an adapter, pickles, what DeepSpeed, FSDP, llama.cpp or
another framework leaves, the parent of checkpoints. Host side; of all files adapter_config.json alone is opened.
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
WEIGHTS = f"{SINGLE} or {INDEX}"
_ITS_SOURCE = "use the safetensors checkpoint that it was made from"
_AS_SAFETENSORS = "load it in transformers and save_pretrained it, which writes safetensors"
# What holds a model in another form: the names, what that is, what to do. The first that fits is told.
_FOREIGN = (
    (r".*\.gguf", "a GGUF file (quantised, of llama.cpp)", _ITS_SOURCE),
    (r"global_step\d+|zero_to_fp32\.py|.*zero_pp_rank.*", "a DeepSpeed (ZeRO) checkpoint", "join it: zero_to_fp32.py . OUT"),
    (r"pytorch_model_fsdp.*|.*\.distcp", "an FSDP checkpoint in pieces", "join it: accelerate merge-weights"),
    (r"qmodel\.pt", "an HQQ (quantised) model", _ITS_SOURCE),
    (r".*\.(bin|pth|pt|ckpt|pkl|pickle)", "PyTorch pickles, which can run code and are never read", _AS_SAFETENSORS),
    (r".*\.(h5|msgpack|onnx|npz|engine|tflite)|openvino_model\.xml", "a model of another framework", _ITS_SOURCE),
)
_NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state.*|random_states.*)\.(bin|pth|pt|pkl)")


def refuse_other_kinds(directory: Path) -> None:
    """Refuse a directory that holds no Qwen2.5-VL weights as safetensors but something that is easily taken for them. One that
    holds neither passes: what it lacks is told where that is read.

    Raises:
        InputError: an adapter, a model in another form, or a directory of checkpoints.
    """
    names = _names(directory)
    _refuse_adapter(directory, names)
    if any(name.endswith(".safetensors") for name in names) or {INDEX, "params"} & set(names):
        return
    for pattern, what, remedy in _FOREIGN:
        found = [name for name in names if re.fullmatch(pattern, name) and not _NO_WEIGHTS.fullmatch(name)]
        if found:
            raise InputError(str(directory), f"{what} ({found[0][:60]})", f"safetensors: {WEIGHTS}", remedy)
    if inside := [name for name in names if (directory / name / "config.json").is_file()]:
        got = f"directories of checkpoints ({', '.join(inside[:2])})"
        raise InputError(str(directory), got, f"config.json and {WEIGHTS}", f"point to one: {inside[-1][:60]}")


def shard_names(directory: Path) -> list[str]:
    """The files of a sharded checkpoint whose index is not there, in order; none when there are no such files.

    Raises:
        InputError: one of them is not there either.
    """
    found = {name: match for name in _names(directory) if (match := SHARD.fullmatch(name))}
    if not found:
        return []
    totals = sorted({match[2] for match in found.values()})
    if len(totals) > 1:
        got = f"shards of several checkpoints (of {', '.join(totals[:4])}) and no {INDEX}"
        raise InputError(str(directory), got, "those of one, or the index", "download the index")
    wanted = [f"model-{number:05}-of-{totals[0]}.safetensors" for number in range(1, int(totals[0]) + 1)]
    if lost := [name for name in wanted if name not in found]:
        raise InputError(str(directory), f"no {', '.join(lost[:3])}, and no {INDEX}", "every shard", "download them")
    return wanted


def unknown_weights(directory: Path) -> str:
    """What to say of a directory in which no weights were found."""
    if SINGLE in _names(directory):
        return f"{SINGLE}, which is no file (a directory, or a link to nothing)"
    others = [name for name in _names(directory) if name.endswith(".safetensors")]
    return f"no safetensors of that name ({', '.join(others[:2])})" if others else "no safetensors"


def _refuse_adapter(directory: Path, names: list[str]) -> None:
    weights = [name for name in names if re.fullmatch(r"(adapter_model|pytorch_lora_weights|adapters?)\.\w+", name)]
    whole = {SINGLE, INDEX, "params"} & set(names) or any(SHARD.fullmatch(name) for name in names)
    if not weights and (whole or ADAPTER not in names):
        return
    base, kind = "another model", "LoRA"
    if ADAPTER in names:
        try:
            settings = read_json(directory / ADAPTER, "an adapter config")
        except InputError:
            settings = {}
        base = str(settings.get("base_model_name_or_path") or base)[:80]
        kind = str(settings.get("peft_type") or kind)[:20]
    got = f"{'a model and a' if whole else 'a'} {kind} (PEFT) adapter of {base}"
    remedy = f"merge it into {base} first (merge_and_unload)"
    raise InputError(str(directory), got, "a whole model", f"{remedy}, or move its files away" if whole else remedy)


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []
